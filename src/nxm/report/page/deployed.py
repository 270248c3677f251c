"""Speeds and scores of deployed models for sentences: functions that a template calls, from the files of `deployment`.

    deployed_gain(MODEL, WAY="eager", TYPE="fp32")   2.03: speed-up over the dense model in PyTorch fp32
    fastest_form(MODEL)                              OpenVINO INT8: the fastest form that costs at most a point
    fastest_gain(MODEL)                              12.4: its speed-up
    fastest_share(MODEL)                             98.7 %: its score, of the dense model's in PyTorch fp32
    deployed_point()                                 8 × 128 tokens: where all of these were measured
    deployed_machine()                               Intel Xeon, 2 cores

Each takes `study=`. All are at the largest batch and length of the first device that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nxm.errors import UserError
from nxm.report import captions, statistics
from nxm.report.evidence import Evidence
from nxm.report.forms import Row, described, fastest_forms, is_plain, largest


def deployed_gain(evidence: Evidence, model: str, way: str = "eager", dtype: str = "fp32") -> str:
    """The speed-up of a model in one form with dense kernels."""
    wanted = model, way, dtype, "dense"
    for row in largest(_file(evidence)["rows"]):
        if (row["model"], row["way"], row["dtype"], row["kernel"]) == wanted:
            return f"{row['speedup_over_dense_fp32']:.2f}"
    raise _unmeasured(evidence, *wanted)


def fastest_form(evidence: Evidence, model: str) -> str:
    """The name of a model's fastest form."""
    return described(_fastest(evidence, model)[0])


def fastest_gain(evidence: Evidence, model: str) -> str:
    """The speed-up of a model's fastest form."""
    return f"{_fastest(evidence, model)[0]['speedup_over_dense_fp32']:.1f}"


def fastest_share(evidence: Evidence, model: str) -> str:
    """The score of a model's fastest form as a share of the dense model's."""
    dense = [score["score"] for score in _file(evidence)["scores"] if score["model"] == "dense" and is_plain(score)]
    if not dense:
        raise _unmeasured(evidence, "dense", "score")
    return statistics.percent(statistics.retention(_fastest(evidence, model)[1], dense[0]))


def deployed_point(evidence: Evidence) -> str:
    """Batch and length."""
    row = largest(_file(evidence)["rows"])[0]
    return f"{row['batch']} × {row['length']} tokens"


def deployed_machine(evidence: Evidence) -> str:
    """The machine, and the versions on which its speed depends."""
    return captions.machine_of(_file(evidence))


DEPLOYED: dict[str, Callable[..., str]] = {
    make.__name__: make
    for make in (deployed_gain, fastest_form, fastest_gain, fastest_share, deployed_point, deployed_machine)
}


def _file(evidence: Evidence) -> dict[str, Any]:
    for file in evidence.deployment:
        if any("median_ms" in row for row in file["rows"]):
            return file
    raise UserError(f"study {evidence.study} has no form measured")


def _fastest(evidence: Evidence, model: str) -> tuple[Row, float]:
    file = _file(evidence)
    found = fastest_forms(largest(file["rows"]), file["scores"])
    if model not in found:
        raise _unmeasured(evidence, model, "a form with its score")
    return found[model]


def _unmeasured(evidence: Evidence, *wanted: object) -> UserError:
    return UserError(f"study {evidence.study}: {', '.join(map(str, wanted))} was not measured by the stage deployment")
