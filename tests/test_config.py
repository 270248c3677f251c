"""Explanations of wrong settings: an unknown key is named with the nearest known one, however deep it is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nxm.config import Settings, explain, read_yaml
from nxm.errors import UserError


class Inner(Settings):
    rate: float
    epochs: int = 1


class Other(Settings):
    decay: float


class Outer(Settings):
    one: Inner | None = None
    named: dict[str, Inner | Other] = {}
    several: list[Inner] = []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"onne": None}, "f: unknown key 'onne'; did you mean 'one'?"),
        ({"one": {"rate": 1.0, "epoch": 2}}, "f: unknown key 'one.epoch'; did you mean 'epochs'?"),
        ({"several": [{"rate": 1.0, "zzz": 2}]}, "f: unknown key 'several.0.zzz'; known here: epochs, rate"),
        (
            {"named": {"a": {"decays": 2}}},
            "f: unknown key 'named.a.Other.decays'; did you mean 'decay'?",
        ),
        ({"one": {}}, "f: 'one.rate' is missing"),
        (
            {"one": {"rate": "x"}},
            "f: one.rate = 'x': Input should be a valid number, unable to parse string as a number",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(values, message):
    with pytest.raises(ValidationError) as raised:
        Outer.model_validate(values)
    assert message in [explain("f", problem, Outer) for problem in raised.value.errors()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        ("a: [", "not a YAML file"),
        ("- 1", "expected a mapping of settings, found list"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(text, message, tmp_path):
    path = tmp_path / "f.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(path)


def test_numbers_are_read_as_yaml_1_2_has_them(tmp_path):
    (tmp_path / "f.yaml").write_text("rate: 3e-5\non: yes\n")
    assert read_yaml(tmp_path / "f.yaml") == {"rate": 3e-5, "on": "yes"}
