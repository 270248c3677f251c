"""Explanations of wrong settings: an unknown key is named with the nearest known one, however deep it is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nxm import BEST_ADMM, DISTILLATION
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
    ("content", "message"),
    [
        (None, "there is no such file"),
        pytest.param(
            b"",
            "the file is empty; expected a mapping of settings",
            marks=pytest.mark.situation("settings", "an empty params.yaml", "refused"),
        ),
        (b"- 1", "expected a mapping of settings, found list"),
        (b"a: [", "line 2: not a YAML file: while parsing a flow node, did not find expected node content"),
        (b"a: 1\nb: {c: 'x\n", "line 3: not a YAML file: while scanning a quoted scalar"),
        (b"a: 1\nb: \x00\n", "line 2: not a YAML file: a control character"),
        (b"a: 2020-13-01\n", "not a YAML file: month must be in 1..12"),
        pytest.param(
            b"a: 1\nb: 2\n\na: 3\n",
            "line 4: the key 'a' is there twice, first in line 1: keep one of them",
            marks=pytest.mark.situation("settings", "a key twice in params.yaml", "refused"),
        ),
        (b"a: [{b: 1,\n b: 2}]\n", "line 2: the key 'b' is there twice, first in line 1"),
        (b"a: &x {b: 1}\nc: {<<: *x, d: 1,\n  d: 2}\n", "line 3: the key 'd' is there twice, first in line 2"),
        pytest.param(
            b"a:\n\tb: 1\n",
            "line 2: a tab; YAML indents with spaces",
            marks=pytest.mark.situation("settings", "a tab as indentation in params.yaml", "refused"),
        ),
        pytest.param(
            b"a: &x 1\nb: [*y, 1]\n",
            "line 2: '*y' refers to an anchor '&y', which nothing above it has",
            marks=pytest.mark.situation("settings", "a mistyped YAML anchor", "refused"),
        ),
        (b"a: 1\n---\na: 2\n", "line 2: a second document starts here; the settings are one"),
        pytest.param(
            b"a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> other\n",
            "line 2: a conflict mark of git: settle the conflict, and remove the mark",
            marks=pytest.mark.situation("settings", "git's conflict marks in params.yaml", "refused"),
        ),
        pytest.param(
            "a: 1\n# Ü\n".encode("latin-1"),
            "line 2: the byte 0xdc is not UTF-8: save the file as UTF-8",
            marks=pytest.mark.situation("settings", "params.yaml in another encoding than UTF-8", "refused"),
        ),
        ("a: 1\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_is_no_mapping_is_named_with_the_line_and_the_reason(content, message, tmp_path):
    path = tmp_path / "f.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


@pytest.mark.situation("settings", "params.yaml with Windows line ends or a byte order mark", "works")
@pytest.mark.situation("settings", "YAML anchors and merge keys", "works")
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_what_editors_write_is_read(start, end, tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes((start + "a: &x {b: 1}" + end + "c: {<<: *x, b: 2}\t# a tab" + end + "d: *x" + end).encode())
    assert read_yaml(path) == {"a": {"b": 1}, "c": {"b": 2}, "d": {"b": 1}}


# --- changed copies --------------------------------------------------------------------------------------------------


@pytest.mark.situation("settings", "a setting changed with BEST_ADMM.replace(interval=80)", "works")
def test_a_changed_copy_has_the_other_values():
    changed = BEST_ADMM.replace(interval=80)
    assert type(changed) is type(BEST_ADMM)
    assert changed.model_dump() == BEST_ADMM.model_dump() | {"interval": 80}
    assert BEST_ADMM.interval == "auto"
    assert BEST_ADMM.model_copy() == BEST_ADMM
    nested = Outer(one=Inner(rate=1.0)).replace(several=[Inner(rate=2.0)])
    assert nested == Outer(one=Inner(rate=1.0), several=[Inner(rate=2.0)])


@pytest.mark.parametrize("copy", [lambda own, **new: own.replace(**new), lambda own, **new: own.model_copy(update=new)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"intervall": 80},
            "Admm: unknown key 'intervall'; did you mean 'interval'?",
            marks=pytest.mark.situation("settings", "a mistyped name in a changed copy of the settings", "refused"),
        ),
        pytest.param(
            {"rho": 0.0},
            "Admm: rho = 0.0: Input should be greater than 0",
            marks=pytest.mark.situation("settings", "rho, rates or temperatures of 0 or below", "refused"),
        ),
        ({"rho": -1}, "Admm: rho = -1: Input should be greater than 0"),
        pytest.param(
            {"rho": float("inf")},
            "Admm: rho = inf: Input should be a finite number",
            marks=pytest.mark.situation("settings", "infinity or NaN for any number", "refused"),
        ),
        ({"freeze_at": float("nan")}, "Admm: freeze_at = nan: Input should be a finite number"),
        ({"rho": True}, "Admm: rho = True: Input should be a valid number"),
        ({"rho": "0.1"}, "Admm: rho = '0.1': Input should be a valid number"),
        pytest.param(
            {"interval": 0},
            "Admm: interval = 0: Input should be 'auto' or 'epoch'\nAdmm: interval = 0: Input should be greater than 0",
            marks=pytest.mark.situation("settings", "an interval of 0 steps", "refused"),
        ),
        pytest.param(
            {"relaxation": 2.0},
            "Admm: relaxation = 2.0: Input should be less than 2",
            marks=pytest.mark.situation("settings", "a relaxation outside of 1 to 2", "refused"),
        ),
        ({"relaxation": 0.9}, "Admm: relaxation = 0.9: Input should be greater than or equal to 1"),
        ({"recipe": "paper"}, "Admm: recipe 'paper' has a constant rho"),
    ],
)
def test_a_changed_copy_is_checked(copy, changes, message):
    with pytest.raises(UserError) as error:
        copy(BEST_ADMM, **changes)
    assert str(error.value).startswith(message)


def test_every_number_of_every_class_of_settings_must_be_finite():
    for changes in ({"temperature": float("inf")}, {"task": float("nan")}):
        with pytest.raises(UserError, match="should be a finite number"):
            DISTILLATION.replace(**changes)


def test_numbers_are_read_as_yaml_1_2_has_them(tmp_path):
    (tmp_path / "f.yaml").write_text("rate: 3e-5\non: yes\n")
    assert read_yaml(tmp_path / "f.yaml") == {"rate": 3e-5, "on": "yes"}
