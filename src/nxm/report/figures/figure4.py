"""Figure 4: how much of their magnitude weights keep, by the ADMM iterations that they spent outside the mask."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import labels, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.study.results import Result

MOST = 10  # iterations outside that are drawn; more are said in the footnote


def draw(evidence: Evidence) -> Figure:
    """Mean |w| at the end of the ADMM phase over mean |w| pretrained, in percent; STS-B, the paper's, when there."""
    figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 3.2)
    runs = [run for run in statistics.whole_runs(evidence.results) if run.name == "nxm" and run.admm is not None]
    task = statistics.own_task(runs)
    runs = [run for run in runs if run.task == task and run.admm.swaps]
    if not runs:
        style.missing(axes, f"Study {evidence.study} has no NxM run that counted its weights outside the mask yet.")
        style.footnote(figure, [statistics.study_phrase(evidence)])
        return figure
    table = _table(runs)
    most = min(int(table.index.max()), MOST)
    shown = table.loc[table.index <= most]
    blue = labels.look("nxm").color
    axes.plot(
        shown.index - 0.13, shown["all"], linestyle="", marker="o", markersize=6, color=blue, label="NxM, all weights"
    )
    kept = shown.dropna(subset=["kept"])
    axes.plot(
        kept.index,
        kept["kept"],
        linestyle="",
        marker="^",
        markersize=6.5,
        color="#E69F00",
        markeredgecolor=style.INK,
        markeredgewidth=0.6,
        label="NxM, those in the final mask",
    )
    theirs = {outside: 100 * share for outside, share in paper.MAGNITUDE_KEPT.items() if outside <= most}
    axes.plot(
        [x + 0.13 for x in theirs],
        list(theirs.values()),
        linestyle="",
        marker="D",
        markersize=5.5,
        markerfacecolor="white",
        markeredgecolor=style.INK,
        label="the paper (BERT-base, STS-B)",
    )
    bare = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for x, y in theirs.items():
        axes.annotate(
            f"{y:.0f} %", (x + 0.13, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, bbox=bare
        )
    axes.axhline(100, color=style.GREY, linewidth=0.8, zorder=1)
    axes.set(
        xticks=list(shown.index),
        xlim=(-0.5, most + 0.5),
        xlabel="ADMM iterations spent outside the mask",
        ylabel="Mean |w| after / before (%)",
    )
    axes.set_xticklabels(
        f"{outside}\n{statistics.millions(row['count'])}\n{statistics.millions(row['kept_count'])}"
        for outside, row in shown.iterrows()
    )
    axes.annotate(
        "times outside\nweights\nin the final mask",
        (0, 0),
        xycoords="axes fraction",
        xytext=(-6, -6.5),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=style.GREY,
    )
    axes.grid(axis="x", visible=False)
    _limits(axes, [*shown["all"].dropna(), *kept["kept"], *theirs.values()])
    axes.legend(loc="best")
    beyond = table.loc[table.index > most, "count"].sum()
    style.footnote(
        figure,
        [
            statistics.study_phrase(evidence, [task]),
            "Before: pretrained; after: W at the end of the ADMM phase, before any hard prune.",
            "Means over seeds." if len(runs) > 1 else "",
            f"Not drawn: {statistics.millions(beyond)} weights that were outside more than {most} times."
            if beyond
            else "",
        ],
    )
    return figure


def _table(runs: list[Result]) -> pd.DataFrame:
    """By iterations outside: counts (mean over seeds) and percent of the magnitude kept (mean over seeds)."""

    def ratio(after: float | None, before: float | None) -> float | None:
        return 100 * after / before if after is not None and before else None

    rows = [
        {
            "outside": swap.iterations_outside,
            "count": swap.count,
            "kept_count": swap.kept_count,
            "all": ratio(swap.mean_abs_after, swap.mean_abs_before),
            "kept": ratio(swap.kept_mean_abs_after, swap.kept_mean_abs_before),
        }
        for run in runs
        for swap in run.admm.swaps
    ]
    frame = pd.DataFrame(rows).astype(float)
    return (
        frame.groupby("outside")
        .mean()
        .sort_index()
        .rename_axis("outside")
        .set_axis(sorted({row["outside"] for row in rows}), axis=0)
    )


def _limits(axes: Axes, values: list[float]) -> None:
    low, high = min(values), max([*values, 100.0])
    pad = 0.1 * (high - low) + 0.5
    axes.set_ylim(max(low - pad, 0) if low > 25 else 0, high + pad)
