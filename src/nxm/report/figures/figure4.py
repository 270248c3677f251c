"""Figure 4: the share of their magnitude that weights retain, by the ADMM iterations they spent outside the mask."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nxm.report import captions, paper, statistics, style
from nxm.report.evidence import Evidence
from nxm.report.labels import Look, look
from nxm.study.results import Result

MOST = 10  # iterations outside that are drawn; the caption names those beyond
LOOKS = {
    "all": Look("NxM, all weights", look("nxm").color, "o", "-"),
    "kept": Look("NxM, those in the final mask", "#E69F00", "^", "-"),
    "paper": Look("the paper (BERT-base, STS-B)", style.INK, "D", "-"),
}


def draw(evidence: Evidence) -> Figure:
    """Return mean |w| after the ADMM phase as a share of pretrained mean |w|, on STS-B where the study has it."""
    figure, ((axes,),) = style.canvas(style.TWO_COLUMNS, 3.2)
    runs = [run for run in statistics.whole_runs(evidence.results) if run.name == "nxm" and run.admm is not None]
    task = statistics.own_task(runs)
    runs = [run for run in runs if run.task == task and run.admm.swaps]
    if not runs:
        style.missing(axes, f"Study {evidence.study} has no NxM run that counted its weights outside the mask yet.")
        style.footnote(figure, captions.caption(evidence, ""))
        return figure
    counts, shares = _counts(runs), _shares(runs)
    most = min(int(counts.index.max()), MOST)
    shown = counts.loc[counts.index <= most]
    order = list(shown.index)
    data = pd.concat([shares[shares["category"] <= most], _papers(most)])
    style.points(axes, data, LOOKS, order, along="y", dodge=0.26, size=6)
    for outside, share in paper.MAGNITUDE_KEPT.items():
        if outside in order:
            _annotate(axes, f"{100 * share:.0f} %", order.index(outside) + 0.13, 100 * share)
    axes.axhline(100, color=style.GREY, linewidth=0.8, zorder=1)
    axes.set(xlabel="ADMM iterations spent outside the mask", ylabel="Mean |w| after / before (%)")
    axes.set_xticks(
        range(len(order)),
        [
            f"{outside}\n{statistics.millions(row['count'])}\n{statistics.millions(row['kept_count'])}"
            for outside, row in shown.iterrows()
        ],
    )
    axes.annotate(
        "iterations\nweights\nin the final mask",
        (0, 0),
        xycoords="axes fraction",
        xytext=(-6, -6.5),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=style.GREY,
    )
    _limits(axes, data["value"])
    *ours, theirs = style.handles(LOOKS.values())
    axes.legend(handles=[*ours, *style.open_marks([theirs])], loc="best")
    beyond = counts.loc[counts.index > most, "count"].sum()
    style.footnote(
        figure,
        captions.caption(
            evidence,
            f"Before: pretrained; after: at the end of the ADMM phase, not yet pruned."
            f"{' Means and range over seeds.' if len(runs) > 1 else ''}",
            [task],
            [f"Not drawn: {statistics.millions(beyond)} weights outside more than {most} times." if beyond else ""],
        ),
    )
    return figure


def _counts(runs: list[Result]) -> pd.DataFrame:
    """Return counts by iterations outside, means over seeds."""
    rows = [
        {"outside": swap.iterations_outside, "count": swap.count, "kept_count": swap.kept_count}
        for run in runs
        for swap in run.admm.swaps
    ]
    return pd.DataFrame(rows).groupby("outside").mean()


def _shares(runs: list[Result]) -> pd.DataFrame:
    """Return percent of the magnitude retained, mean and range over seeds, by iterations outside and series."""
    rows = []
    for swap in (swap for run in runs for swap in run.admm.swaps):
        for series, after, before in (
            ("all", swap.mean_abs_after, swap.mean_abs_before),
            ("kept", swap.kept_mean_abs_after, swap.kept_mean_abs_before),
        ):
            if after is not None and before:
                rows.append((swap.iterations_outside, series, 100 * after / before))
    frame = pd.DataFrame(rows, columns=["category", "series", "share"]).groupby(["category", "series"])["share"]
    return frame.agg(value="mean", low="min", high="max").reset_index()


def _papers(most: int) -> pd.DataFrame:
    rows = [(outside, "paper", 100 * share, True) for outside, share in paper.MAGNITUDE_KEPT.items() if outside <= most]
    return pd.DataFrame(rows, columns=["category", "series", "value", "open"])


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    bare = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, bbox=bare)


def _limits(axes: Axes, values: Iterable[float]) -> None:
    values = list(values)
    low, high = min(values), max([*values, 100.0])
    pad = 0.1 * (high - low) + 0.5
    axes.set_ylim(max(low - pad, 0) if low > 25 else 0, high + pad)
