"""Numbers of `nxm bench` in sentences: a GPU's before a CPU's, the latest call's, and nothing that was not measured."""

from __future__ import annotations

import pytest

from nxm.errors import UserError
from nxm.report import forms
from nxm.report.evidence import Evidence
from nxm.report.page.deployed import DEPLOYED
from nxm.report.page.speeds import SPEEDS
from synthetic_study import make_bench, make_deployment


@pytest.fixture
def evidence() -> Evidence:
    return Evidence("embedded", [], None, bench=make_bench())


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("product_gain", ("bf16", 3072, 768, 4096), "1.62"),
        ("product_gains", ("bf16",), "1.30 to 1.62"),
        ("default_gains", ("bf16",), "0.80 to 0.80"),
        ("way_gains", ("bf16", "masked"), "0.99 to 0.99"),
        ("product_rate", ("bf16", "2:4"), "810"),
        ("product_rate", ("bf16", "dense"), "500"),
        ("encoder_gain", ("BERT-base", 32, 128, "fp8", "2:4"), "1.10"),
        ("encoder_gain", ("BERT-base", 32, 128, "bf16", "2:4", "eager"), "0.10"),
        ("encoder_energy", ("BERT-base", 32, 128, "bf16", "2:4"), "80 %"),
        ("proven_encoders", (), "3 of 3"),
        ("block_gains", (64, 0.2), "1.40 to 1.40"),
        ("block_shares", (64, 0.2), "17 %"),
    ],
)
def test_numbers_are_the_gpus(evidence, name, arguments, said):
    assert SPEEDS[name](evidence, *arguments) == said


def test_the_machine_is_named_with_what_decides_its_speed(evidence):
    assert "Some GPU (700 W), PyTorch 2.13.0" in SPEEDS["bench_machine"](evidence)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("product_gain", ("bf16", 1, 2, 3)),
        ("product_gains", ("fp16",)),
        ("product_rate", ("fp8", "2:4")),
        ("encoder_gain", ("BERT-large", 32, 128, "bf16", "2:4")),
        ("block_gains", (16, 0.2)),
        ("block_shares", (64, 0.3)),
        ("way_gains", ("bf16", "2:4 to int32")),
        ("packed_share", ()),
    ],
)
def test_what_was_not_measured_is_refused(evidence, name, arguments):
    with pytest.raises(UserError, match=r"study embedded: .*was not measured by nxm bench"):
        SPEEDS[name](evidence, *arguments)


def test_a_study_without_a_bench_is_refused():
    with pytest.raises(UserError, match="study embedded has no result of nxm bench"):
        SPEEDS["bench_machine"](Evidence("embedded", [], None))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("deployed_gain", ("distil",), "2.00"),
        ("deployed_gain", ("distil", "onnx", "int8"), "5.00"),
        ("fastest_form", ("nxm",), "ONNX INT8"),
        ("fastest_gain", ("nxm",), "2.5"),
        ("fastest_share", ("distil",), "94.1 %"),  # 80 of 85
        ("deployed_point", (), "32 × 128 tokens"),
    ],
)
def test_speeds_of_deployed_models_are_those_of_the_largest_batch(name, arguments, said):
    evidence = Evidence("embedded", [], None, deployment=make_deployment())
    assert DEPLOYED[name](evidence, *arguments) == said


@pytest.mark.parametrize(("name", "arguments"), [("deployed_gain", ("asp",)), ("fastest_gain", ("cut50",))])
def test_a_model_that_was_not_deployed_is_refused(name, arguments):
    evidence = Evidence("embedded", [], None, deployment=make_deployment())
    with pytest.raises(UserError, match=f"study embedded: {arguments[0]}, .* not measured by the stage deployment"):
        DEPLOYED[name](evidence, *arguments)


def test_a_form_that_loses_a_models_score_is_not_its_fastest():
    (file, _) = make_deployment()
    for score in file["scores"]:
        if (score["model"], score["dtype"]) == ("nxm", "int8"):
            score["score"] -= forms.LOST + 0.1
    evidence = Evidence("embedded", [], None, deployment=[file])
    assert DEPLOYED["fastest_form"](evidence, "nxm") == "PyTorch bf16"
    assert DEPLOYED["fastest_form"](evidence, "dense") == "ONNX INT8"
