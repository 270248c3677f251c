"""What sparsity costs and saves in time: inference latency, the training step, the projection."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence

Row = dict[str, Any]

WAYS = {  # of projecting, as benchmark.json names them before the pattern: label, look
    "nxm project": ("nxm, projection", {"marker": "o", "color": "#0072B2"}),
    "nxm mask": ("nxm, mask", {"marker": "o", "color": "#0072B2", "markerfacecolor": "white"}),
    "topk": ("topk, mask", {"marker": "^", "color": "#009E73"}),
    "torch.ao": ("torch.ao, mask", {"marker": "s", "color": "#D55E00"}),
}


def draw(evidence: Evidence) -> Figure:
    """Medians with their 10th to 90th percentile; what the device cannot do is named with the reason.

    (a) from the stage deployment, PyTorch as it is, a panel for each device and precision; (b), (c) from the benchmark.
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
    entries = {}
    for axes in top.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        top.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower left",
            ncols=3 if len(entries) > 4 else 4,
            columnspacing=1.4,
        )
    left, right = bottom.subplots(1, 2)
    benchmark = evidence.benchmark or {"training_step": [], "projection": [], "provenance": {}}
    _steps(left, benchmark["training_step"])
    _projections(right, benchmark["projection"])
    style.footnote(figure, _said(evidence, benchmark))
    return figure


def _panels(evidence: Evidence) -> dict[tuple[str, str], list[Row]]:
    """Rows of PyTorch's own forms by device and precision, those of models that are not there left out."""
    found: dict[tuple[str, str], list[Row]] = {}
    for file in evidence.deployment:
        for row in file["rows"]:
            if row.get("way") == "eager":
                found.setdefault((file["device"], row["dtype"]), []).append(row)
    return found


def _label(row: Row) -> str:
    name = labels.run_label(row["model"])
    return name if row["kernel"] == "dense" else f"{name} ({row['kernel']} kernels)"


def _latency(axes: Axes, rows: list[Row], title: str) -> None:
    axes.set(title=title, ylabel="Latency of a batch (ms)")
    absent = [row for row in rows if "absent" in row]
    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        style.missing(axes, "No latency was measured. " + " ".join(_absent(absent)))
        return
    shapes = sorted({(row["length"], row["batch"]) for row in rows})
    kinds = list(dict.fromkeys((row["model"], row["kernel"]) for row in rows))
    for k, (model, kernel) in enumerate(kinds):
        own = [row for row in rows if (row["model"], row["kernel"]) == (model, kernel)]
        shift = 0.76 * ((k + 0.5) / len(kinds) - 0.5)
        x = [shapes.index((row["length"], row["batch"])) + shift for row in own]
        look = labels.look(model)
        face = look.color if kernel == "dense" else "white"
        _dots(axes, x, own, "y", marker=look.marker, color=look.color, markerfacecolor=face, label=_label(own[0]))
        for place, row in zip(x, own, strict=True):
            speedup = row.get("speedup_over_dense_fp32")
            worth = kernel != "dense" or (model != "dense" and len(kinds) <= 5)  # more would not be legible
            if speedup is not None and worth:
                _remark(axes, f"{speedup:.1f}", (place, row["p90_ms"]), (0, 2), ha="center", va="bottom")
    style.log_scale(axes)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    slots = len(shapes) + bool(absent)
    for edge in range(slots - 1):
        axes.axvline(edge + 0.5, color=style.PALE, linewidth=0.8)
    places = [f"{batch} × {length}" for length, batch in shapes]
    if absent:
        axes.axvspan(slots - 1.5, slots - 0.5, color="#f2f2f2", linewidth=0, zorder=1)
        letters = int(axes.get_window_extent().width / axes.get_figure(root=True).dpi * 16 / slots)
        said = "\n".join(textwrap.fill(sentence, max(letters, 14)) for sentence in _absent(absent))
        at = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "center"}
        axes.text(slots - 1, 0.5, said, fontsize=8, color=style.GREY, **at)
        places.append("absent")
    axes.set_xticks(range(slots), places)
    axes.set(xlim=(-0.5, slots - 0.5), xlabel="Batch × tokens")


def _absent(rows: list[Row]) -> list[str]:
    """One sentence a reason: what could not be measured, and why."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        name = _label(row) if "model" in row else labels.run_label(row.get("method", "?"))
        reasons.setdefault(row["absent"], {})[name] = None
    return [f"{statistics.listed(names)}: {reason.rstrip('.')}." for reason, names in reasons.items()]


def _dots(axes: Axes, places: list[float], rows: list[Row], which: str, **look: Any) -> None:
    """Medians with 10th to 90th percentile along `which` axis."""
    medians = [row["median_ms"] for row in rows]
    # A ratio within rounds may put a median outside its own percentiles by rounding: never a negative bar.
    spread = [
        [max(m - row["p10_ms"], 0.0) for m, row in zip(medians, rows, strict=True)],
        [max(row["p90_ms"] - m, 0.0) for m, row in zip(medians, rows, strict=True)],
    ]
    x, y = (medians, places) if which == "x" else (places, medians)
    axes.errorbar(x, y, **{f"{which}err": spread}, linestyle="", markersize=5.5, elinewidth=1.0, **look)


def _remark(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **options: Any) -> None:
    axes.annotate(text, place, xytext=offset, textcoords="offset points", fontsize=8, color=style.GREY, **options)


def _steps(axes: Axes, rows: list[Row]) -> None:
    axes.set(title="(b) Training step", xlabel="Time of a step (ms)")
    rows = [row for row in rows if "median_ms" in row]
    if not rows:
        style.missing(axes, "No training step was measured.")
        return
    order = statistics.in_order((row["method"] for row in rows), labels.RUNS)
    rows = sorted(rows, key=lambda row: order.index(row["method"]))
    for y, row in enumerate(rows):
        look = labels.look(row["method"])
        _dots(axes, [y], [row], "x", marker=look.marker, color=look.color)
        ratio = row.get("ratio_to_dense")
        if ratio is not None and row["method"] != "dense":
            _remark(axes, f"{100 * (ratio - 1):+.1f} %", (row["p90_ms"], y), (5, 0), va="center")
    axes.set_yticks(range(len(rows)), [labels.run_label(row["method"]) for row in rows])
    axes.set_xlim(0, 1.35 * max(row["p90_ms"] for row in rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _projections(axes: Axes, rows: list[Row]) -> None:
    rows = [row for row in rows if "median_ms" in row]
    shapes = {" × ".join(str(n) for n in row["shape"]) for row in rows}
    axes.set(title=f"(c) Projection, {shapes.pop()}" if len(shapes) == 1 else "(c) Projection", xlabel="Time (ms)")
    if not rows:
        style.missing(axes, "No projection was measured.")
        return
    split = [(next((w for w in WAYS if row["method"].startswith(f"{w} ")), ""), row) for row in rows]
    patterns = list(dict.fromkeys(row["method"].removeprefix(f"{way} ") for way, row in split))
    for way in dict.fromkeys(way for way, _ in split):
        own = [row for w, row in split if w == way]
        places = [patterns.index(row["method"].removeprefix(f"{way} ")) for row in own]
        label, look = WAYS.get(way, ("other", {"marker": "*", "color": style.GREY}))
        _dots(axes, places, own, "x", label=label, **look)
        for y, row in zip(places, own, strict=True):
            speedup = row.get("speedup_over_torch_ao")
            if way == "nxm project" and speedup is not None:
                _remark(axes, f"{speedup:.1f}×", (row["median_ms"], y), (0, 5), ha="center", va="bottom")
    style.log_scale(axes, "x")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(patterns)), [pattern.replace("unstructured", "unstruc-\ntured") for pattern in patterns])
    axes.set_ylim(len(patterns) - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    axes.get_figure(root=False).legend(
        *axes.get_legend_handles_labels(), loc="outside lower right", ncols=4, columnspacing=1.0, handletextpad=0.2
    )


def _said(evidence: Evidence, benchmark: Row) -> list[str]:
    absent = [row for part in ("training_step", "projection") for row in benchmark[part] if "absent" in row]
    measured = [*(file for file in evidence.deployment if "absent" not in file), benchmark]
    machines = [file["provenance"]["machine"] for file in measured if "machine" in file["provenance"]]
    places = statistics.listed(dict.fromkeys(map(statistics.machine_text, machines)))
    low, high = paper.MATMUL_SPEEDUP
    return [
        f"Study {evidence.study}. Medians, 10th to 90th percentile; dense kernels unless said.",
        "Grey numbers: speed-up over dense fp32 (a), time added to a dense step (b), speed-up over torch.ao (c).",
        *(f"Absent: {file['device'].upper()}: {file['absent']}." for file in evidence.deployment if "absent" in file),
        *(f"Absent: {sentence}" for sentence in _absent(absent)),
        f"Machine: {places}." if machines else "",
        f"The paper cites {low}–{high}× for BERT's matrix products on an A100.",
    ]
