"""Score over speed, all runs in one picture: left, in the same form; right, each in its fastest form."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nxm.report import captions, labels, published, statistics, style
from nxm.report.evidence import Evidence
from nxm.report.forms import LOST, Row, absences, described, fastest_forms, is_plain, largest


def draw(evidence: Evidence) -> Figure:
    """Return a row of two panels for each device on which models were measured and scored."""
    files = [file for file in evidence.deployment if file["scores"] and any("median_ms" in row for row in file["rows"])]
    tasks = statistics.tasks_of(statistics.whole_runs(evidence.results))[:1]  # deployed models are of the first task
    if not files or not tasks:
        figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 2.4)
        style.missing(
            axes, f"Study {evidence.study} has no scored form yet. {' '.join(absences(evidence.deployment))}".strip()
        )
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    figure, grid = style.canvas(style.TWO_COLUMNS, 3.4 * len(files) + 1.2, len(files), 2)
    shrunk = any(run.structure is not None for run in evidence.results)
    noisy = 0
    for (left, right), file in zip(grid, files, strict=True):
        rows = largest(file["rows"])
        noisy += sum(row["noisy"] for row in rows)
        _same_form(left, evidence, rows, tasks)
        _fastest_forms(right, rows, file["scores"])
        for axes, form in ((left, "PyTorch fp32"), (right, "each in its fastest form")):
            axes.set(title=f"{file['device'].upper()}: {form}", xlabel="Speed-up over dense in fp32 (×)")
            axes.set_ylabel("% of the dense score")
            if shrunk:
                axes.axvline(published.MLPRUNING_SPEED_UP, color=labels.GREY, linestyle=(0, (1, 2)), linewidth=1.0)
    _legend(figure, files)
    first = largest(files[0]["rows"])[0]
    point = f"{first['batch']} × {first['length']} tokens"
    style.footnote(
        figure,
        captions.caption(
            evidence,
            f"Speed-up over the dense model in PyTorch fp32, {point}. Left: mean over seeds with 95 % intervals. "
            f"Right: the fastest form that costs its model at most {LOST:g} point, scores of one seed. "
            "Line: no point is both faster and better."
            + (" Dotted: MLPruning's published speed-up (not measured here)." if shrunk else ""),
            tasks,
            more=[f"{noisy} times have a spread over 10 %." if noisy else "", *absences(files)],
        ),
    )
    return figure


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (speed-up, score) of which no other is both at least as fast and better, by speed."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def _same_form(axes: Axes, evidence: Evidence, rows: list[Row], tasks: list[str]) -> None:
    """Draw every model in PyTorch fp32: what was removed, and nothing else, makes it faster."""
    points = []
    for row in filter(is_plain, rows):
        share = statistics.retention_interval(evidence, row["model"], "dense", tasks)
        if share is None:
            continue
        look, speed = labels.look(row["model"]), row["speedup_over_dense_fp32"]
        points.append((speed, share.value))
        if share.low is not None and share.high is not None and row["model"] != "dense":
            axes.vlines(speed, share.low, share.high, color=look.color, linewidth=1.2, zorder=2)
        axes.plot(speed, share.value, linestyle="", zorder=3, **_mark(look.color, look.marker))
    _finish(axes, points)


def _fastest_forms(axes: Axes, rows: list[Row], scores: list[Row]) -> None:
    dense = next((score["score"] for score in scores if score["model"] == "dense" and is_plain(score)), None)
    points = []
    for model, (row, score) in fastest_forms(rows, scores).items():
        if dense is None:
            break
        look, point = labels.look(model), (row["speedup_over_dense_fp32"], 100 * score / dense)
        points.append(point)
        axes.plot(*point, linestyle="", zorder=3, **_mark(look.color, look.marker))
        axes.annotate(
            described(row),
            point,
            xytext=(5, -3),
            textcoords="offset points",
            fontsize=8,
            color=style.INK,
        )
    _finish(axes, points)


def _finish(axes: Axes, points: list[tuple[float, float]]) -> None:
    if not points:
        style.missing(axes, "No model was timed and scored in these forms.")
        return
    axes.axhline(100, color=style.INK, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    axes.step(*zip(*front(points), strict=True), where="pre", color=labels.GREY, linewidth=0.8, zorder=1.5)
    style.log_scale(axes, "x")
    axes.margins(0.15)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.2)  # room for the names right of the marks


def _mark(color: str, marker: Any) -> dict[str, Any]:
    return {
        "marker": marker,
        "markersize": 7,
        "markerfacecolor": color,
        "markeredgecolor": "white",
        "markeredgewidth": 0.5,
    }


def _legend(figure: Figure, files: list[dict[str, Any]]) -> None:
    models = statistics.in_order((row["model"] for file in files for row in largest(file["rows"])), labels.RUNS)
    looks = [labels.look(model) for model in models]
    entries = [Line2D([], [], linestyle="", label=look.label, **_mark(look.color, look.marker)) for look in looks]
    figure.legend(handles=entries, loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.3)
