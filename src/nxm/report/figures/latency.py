"""The cost of sparsity in time: (a) inference, (b) a training step, (c) the projection."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, labels, statistics, style
from nxm.report.evidence import Evidence
from nxm.report.labels import Look

Row = dict[str, Any]

WAYS = {  # of projecting: the word in benchmark.json before the pattern, and its look
    "nxm project": Look("nxm, projection", "#0072B2", "o", "-"),
    "nxm mask": Look("nxm, mask", "#0072B2", "o", "-"),
    "topk": Look("topk, mask", "#009E73", "^", "-"),
    "torch.ao": Look("torch.ao, mask", "#D55E00", "s", "-"),
}
_OPEN = ("nxm mask",)
_DODGE = 0.7  # of the space of a category


def draw(evidence: Evidence) -> Figure:
    """Return medians with their 10th to 90th percentile.

    (a) is from the stage deployment, eager PyTorch in a panel per device and precision; (b) and (c) are from the
    benchmark.
    """
    panels = _panels(evidence)
    if evidence.benchmark is None and not panels:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(axes, f"Study {evidence.study} has no benchmark and no deployment yet: nothing was timed.")
        return figure
    heights = [2.4 * max(len(panels), 1) + 0.4, 2.6]
    figure = Figure(figsize=(style.TWO_COLUMNS, sum(heights) + 0.7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights)
    slots = top.subplots(max(len(panels), 1), 1, squeeze=False)[:, 0]
    if not panels:
        _latency(slots[0], [], "(a) Inference")
    for axes, ((device, dtype), rows) in zip(slots, panels.items(), strict=False):
        _latency(axes, rows, f"(a) Inference on {device.upper()}, {dtype}")
    kinds = {_kind(row): row for rows in panels.values() for row in rows if "median_ms" in row}
    if kinds:
        entries = [
            *style.handles(_look(kind) for kind in kinds if kind[1] == "dense"),
            *style.open_marks(style.handles(_look(kind) for kind in kinds if kind[1] != "dense")),
        ]
        columns = 3 if len(entries) > 4 else 4
        top.legend(handles=entries, loc="outside lower left", ncols=columns, columnspacing=1.4, handletextpad=0.2)
    left, right = bottom.subplots(1, 2)
    benchmark = evidence.benchmark or {"training_step": [], "projection": []}
    _steps(left, benchmark["training_step"])
    _projections(right, benchmark["projection"])
    absent = [row for part in ("training_step", "projection") for row in benchmark[part] if "absent" in row]
    devices = [file for file in evidence.deployment if "absent" in file]
    style.footnote(
        figure,
        captions.measured(
            evidence,
            "Medians, 10th to 90th percentile. Grey: (a) speed-up over dense fp32, (b) time added to a dense step, "
            "(c) speed-up over torch.ao.",
            [
                *(f"Absent: {file['device'].upper()}: {file['absent']}." for file in devices),
                *(f"Absent: {sentence}" for sentence in _absences(absent)),
            ],
        ),
    )
    return figure


def _panels(evidence: Evidence) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of eager PyTorch by device and precision."""
    found: dict[tuple[str, str], list[Row]] = {}
    for file in evidence.deployment:
        for row in file["rows"]:
            if row.get("way") == "eager":
                found.setdefault((file["device"], row["dtype"]), []).append(row)
    return found


def _kind(row: Row) -> tuple[str, str]:
    return row["model"], row["kernel"]


def _look(kind: tuple[str, str]) -> Look:
    look = labels.look(kind[0])
    return look if kind[1] == "dense" else replace(look, label=f"{look.label} ({kind[1]} kernels)")


def _latency(axes: Axes, rows: list[Row], title: str) -> None:
    axes.set_title(title)
    absent = [row for row in rows if "absent" in row]
    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        style.missing(axes, "No latency was measured. " + " ".join(_absences(absent)))
        return
    shapes = sorted({(row["length"], row["batch"]) for row in rows})
    places = [f"{batch} × {length}" for length, batch in shapes]
    looks = {kind: _look(kind) for kind in dict.fromkeys(map(_kind, rows))}
    data = pd.DataFrame(
        _times(row, f"{row['batch']} × {row['length']}") | {"series": _kind(row), "open": row["kernel"] != "dense"}
        for row in rows
    )
    style.points(axes, data, looks, places, along="y", dodge=_DODGE, size=5.5)
    for row in rows:
        model, kernel = _kind(row)
        worth = kernel != "dense" or (model != "dense" and len(looks) <= 5)  # more numbers would overlap
        if worth and row.get("speedup_over_dense_fp32") is not None:
            shift = list(looks).index(_kind(row)) / max(len(looks) - 1, 1) - 0.5
            place = (shapes.index((row["length"], row["batch"])) + _DODGE * shift, row["p90_ms"])
            _remark(axes, f"{row['speedup_over_dense_fp32']:.1f}", place, (0, 4), ha="center", va="bottom")
    style.log_scale(axes)
    axes.margins(y=0.15)
    slots = len(places) + bool(absent)
    for edge in range(slots - 1):
        axes.axvline(edge + 0.5, color=style.PALE, linewidth=0.8)
    if absent:
        axes.axvspan(slots - 1.5, slots - 0.5, color="#f2f2f2", linewidth=0, zorder=1)
        letters = int(axes.get_window_extent().width / axes.get_figure(root=True).dpi * 16 / slots)
        text = "\n".join(textwrap.fill(sentence, max(letters, 14)) for sentence in _absences(absent))
        at = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "center"}
        axes.text(slots - 1, 0.5, text, fontsize=8, color=style.GREY, **at)
        places.append("absent")
    axes.set_xticks(range(slots), places)
    axes.set(xlim=(-0.5, slots - 0.5), xlabel="Batch × tokens", ylabel="Latency of a batch (ms)")


def _times(row: Row, category: str) -> Row:
    return {"category": category, "value": row["median_ms"], "low": row["p10_ms"], "high": row["p90_ms"]}


def _absences(rows: list[Row]) -> list[str]:
    """Return one sentence per reason: what could not be measured, and why."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        name = _look(_kind(row)).label if "model" in row else labels.run_label(row.get("method", "?"))
        reasons.setdefault(row["absent"], {})[name] = None
    return [f"{statistics.listed(names)}: {reason.rstrip('.')}." for reason, names in reasons.items()]


def _remark(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    axes.annotate(text, place, xytext=offset, textcoords="offset points", fontsize=8, color=style.GREY, **options)


def _steps(axes: Axes, rows: list[Row]) -> None:
    axes.set_title("(b) Training step")
    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        style.missing(axes, "No training step was measured.")
        return
    names = statistics.in_order((row["method"] for row in rows), labels.RUNS)
    data = pd.DataFrame(_times(row, row["method"]) | {"series": row["method"]} for row in rows)
    style.points(axes, data, {name: labels.look(name) for name in names}, names, size=5.5)
    for row in rows:
        ratio = row.get("ratio_to_dense")
        if ratio is not None and row["method"] != "dense":
            place = (row["p90_ms"], names.index(row["method"]))
            _remark(axes, f"{100 * (ratio - 1):+.1f} %", place, (5, 0), va="center")
    axes.set_yticks(range(len(names)), [labels.run_label(name) for name in names])
    axes.set(xlim=(0, 1.35 * data["high"].max()), xlabel="Time of a step (ms)")


def _projections(axes: Axes, rows: list[Row]) -> None:
    rows = [row for row in rows if "median_ms" in row]
    shapes = {" × ".join(str(n) for n in row["shape"]) for row in rows}
    axes.set_title(f"(c) Projection, {shapes.pop()}" if len(shapes) == 1 else "(c) Projection")
    if not rows:
        style.missing(axes, "No projection was measured.")
        return
    looks = WAYS | {"": Look("other", style.GREY, "*", "-")}
    split = [(next((way for way in WAYS if row["method"].startswith(f"{way} ")), ""), row) for row in rows]
    patterns = list(dict.fromkeys(row["method"].removeprefix(f"{way} ") for way, row in split))
    data = pd.DataFrame(
        _times(row, row["method"].removeprefix(f"{way} ")) | {"series": way, "open": way in _OPEN} for way, row in split
    )
    looks = {way: look for way, look in looks.items() if (data["series"] == way).any()}
    style.points(axes, data, looks, patterns, size=5.5)
    for way, row in split:
        speedup = row.get("speedup_over_torch_ao")
        if way == "nxm project" and speedup is not None:
            place = (row["median_ms"], patterns.index(row["method"].removeprefix(f"{way} ")))
            _remark(axes, f"{speedup:.1f}×", place, (0, 5), ha="center", va="bottom")
    style.log_scale(axes, "x")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(patterns)), [pattern.replace("unstructured", "unstruc-\ntured") for pattern in patterns])
    axes.set_ylim(len(patterns) - 0.5, -0.7)
    axes.set_xlabel("Time (ms)")
    entries = [
        entry
        for way, look in looks.items()
        for entry in (style.open_marks if way in _OPEN else list)(style.handles([look]))
    ]
    axes.get_figure(root=False).legend(
        handles=entries, loc="outside lower right", ncols=4, columnspacing=1.0, handletextpad=0.2
    )
