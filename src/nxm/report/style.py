"""The look of all figures, the marks that several share, and their rendering to two files.

Type is 8 points or more at print size. The colours, markers and dashes of runs are in `nxm.report.labels`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from nxm.files import write_bytes
from nxm.report.labels import GREY, Look

ONE_COLUMN = 3.4  # inches
TWO_COLUMNS = 7.0
INK = "#1a1a1a"
PALE = "#d9d9d9"

RC: dict[str, Any] = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "font.family": "DejaVu Sans",  # part of matplotlib: the same letters on every machine
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.bottom": True,
    "ytick.left": True,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "savefig.facecolor": "white",
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text in the PDF can be searched and edited
}


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` x `height` inches and its axes as an array (rows, columns).

    It is made without pyplot, so it is registered nowhere and needs no closing.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def mosaic(width: float, height: float, panels: list[list[str]], **options: Any) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure of `width` x `height` inches and its axes by name; a name in several cells spans them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplot_mosaic(panels, **options)


def footnote(figure: Figure, lines: Iterable[str]) -> None:
    """Put paragraphs in small grey letters under the figure; the layout makes room for them."""
    columns = int(figure.get_size_inches()[0] * 16.3)  # letters of 8 points in a line
    text = "\n".join(textwrap.fill(line, columns) for line in lines if line)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=GREY, linespacing=1.25)


def missing(axes: Axes, text: str) -> None:
    """Empty a panel and write into it what is missing and why."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    width = int(axes.get_window_extent().width / axes.get_figure(root=True).dpi * 13)  # letters of 8.5 points
    axes.text(
        0.5, 0.5, textwrap.fill(text, max(width, 18)), ha="center", va="center", color=GREY, transform=axes.transAxes
    )


def reference(axes: Axes, y: float, label: str, color: str = INK, above: bool = True) -> None:
    """Draw a horizontal dashed line with its label right of the panel, above or below the line's height."""
    axes.axhline(y, color=color, linewidth=1.0, linestyle=(0, (5, 2)), zorder=1.5)
    axes.annotate(
        label,
        (1, y),
        xycoords=("axes fraction", "data"),
        xytext=(3, -3 if above else 3),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=8,
        color=color,
        annotation_clip=False,
    )


def points(
    axes: Axes,
    data: pd.DataFrame,
    looks: Mapping[str, Look],
    order: Iterable[str],
    *,
    along: str = "x",
    dodge: float = 0.0,
    size: float = 6.5,
) -> None:
    """Draw a point with its interval for each row of `data`, on a categorical axis.

    seaborn estimates intervals from samples. These are known already, so that each row is passed as three values, of
    which seaborn draws the median and the range.

    Args:
        data: columns `category`, `series` (a key of `looks`), `value`, `low` and `high` (NaN: no interval), `open` (an
            open mark; optional).
        looks: the looks of the series, in the order in which they dodge.
        order: the categories on the axis.
        along: the axis of the values, x or y.
        dodge: width over which the series of a category are spread, in categories.
        size: diameter of a mark in points.
    """
    across = "y" if along == "x" else "x"
    data = data.assign(
        low=data[["low", "value"]].min(axis=1).where(data["low"].notna()),  # rounding may put a median outside
        high=data[["high", "value"]].max(axis=1).where(data["high"].notna()),
        open=data["open"].eq(True) if "open" in data else False,
    )
    samples = data.melt(["category", "series", "open"], ["low", "value", "high"], value_name="x").dropna(subset="x")
    for is_open, part in samples.groupby("open"):
        sns.pointplot(
            part,
            **{along: "x", across: "category"},
            order=list(order),
            hue="series",
            hue_order=list(looks),
            palette=[look.color for look in looks.values()],
            markers=[look.marker for look in looks.values()],
            linestyles="none",
            dodge=dodge if len(looks) > 1 else False,
            estimator="median",
            errorbar=("pi", 100),
            err_kws={"linewidth": 1.6, "solid_capstyle": "butt", "zorder": 2},
            markersize=size,
            markeredgewidth=1.1,
            markerfacecolor="white" if is_open else None,
            zorder=3,
            legend=False,
            ax=axes,
        )
    axes.set(xlabel="", ylabel="")


def seeds(axes: Axes, data: pd.DataFrame, order: Iterable[str]) -> None:
    """Mark the single seeds, `data` with the columns `value` and `category`, by small grey ticks along x."""
    sns.stripplot(
        data,
        x="value",
        y="category",
        order=list(order),
        jitter=False,
        marker="|",
        size=6,
        linewidth=1,
        color=GREY,
        alpha=0.8,
        legend=False,
        ax=axes,
    )
    axes.set(xlabel="", ylabel="")


def curves(axes: Axes, data: pd.DataFrame, looks: Mapping[str, Look], x: str, y: str, every: int = 1) -> None:
    """Draw a line of means over seeds for each series, with a band from the lowest to the highest seed.

    Set the scale of the axes after this: seaborn takes means in the scale that is set before.

    Args:
        data: columns `series`, `x` and `y`, a row per seed and point.
        looks: the looks of the series.
        x: the column of the horizontal axis.
        y: the column of the vertical axis.
        every: a marker at each point (1), or at each second, third, ...
    """
    sns.lineplot(
        data,
        x=x,
        y=y,
        hue="series",
        hue_order=list(looks),
        style="series",
        style_order=list(looks),
        palette=[look.color for look in looks.values()],
        markers=[look.marker for look in looks.values()],
        dashes=["" if isinstance(look.dashes, str) else look.dashes[1] for look in looks.values()],
        errorbar=("pi", 100),
        err_kws={"alpha": 0.18, "linewidth": 0},
        markeredgewidth=0.5,
        markevery=every,
        legend=False,
        ax=axes,
    )
    axes.set(xlabel="", ylabel="")


def handles(looks: Iterable[Look], line: bool = False) -> list[Line2D]:
    """Return the entries of a legend: markers, with the run's line if `line` is set."""
    marker_only = {"linestyle": "", "markersize": 6, "markeredgewidth": 0}
    return [Line2D([], [], label=look.label, **(look.line() | ({} if line else marker_only))) for look in looks]


def open_marks(entries: Iterable[Line2D]) -> list[Line2D]:
    """Return entries of a legend with open marks."""
    entries = list(entries)
    for entry in entries:
        entry.set(markerfacecolor="white", markeredgecolor=entry.get_color(), markeredgewidth=1.1)
    return entries


_TOP = 1 - 1e-4  # a similarity above this is drawn here, a little before the end of the scale
_END = 1 - 10**-4.15


def similarity_scale(axes: Axes, which: str, values: Iterable[float]) -> None:
    """Scale an axis of mask similarities so that 90 %, 99 % and 99.9 % are equally far apart.

    Good masks differ in the share that changes, 1 % or 0.1 %, which a linear scale would put at its edge.
    """
    values = [min(value, _TOP) for value in values]

    def forward(s: np.ndarray) -> np.ndarray:
        return -np.log10(1 - np.clip(s, 0.0, _END))

    def inverse(t: np.ndarray) -> np.ndarray:
        return 1 - 10.0 ** -np.asarray(t, dtype=float)

    getattr(axes, f"set_{which}scale")("function", functions=(forward, inverse))
    low, high = (forward(np.array(v)) for v in (min(values, default=0.5), max(values, default=0.999)))
    marks = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
    if high - low > 1.2:
        marks = (0.5, 0.9, 0.99, 0.999, 0.9999)
    places = forward(np.array(marks))
    if ((low <= places) & (places <= high)).sum() < 2:  # a single number does not show an axis's scale
        low = max(places[places < low], default=low)
    if ((low <= places) & (places <= high)).sum() < 2:
        high = min(places[places > high], default=high)
    pad = max(0.1 * (high - low), 0.08)
    getattr(axes, f"set_{which}lim")(float(inverse(max(low - pad, 0.0))), float(inverse(min(high + pad, 4.15))))
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(list(marks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda s, _: f"{'≥ ' if s >= _TOP else ''}{100 * s:g}"))


def drawable_similarity(value: float) -> float:
    """Return a similarity that `similarity_scale` can draw: at most 99.99 %."""
    return min(value, _TOP)


def log_scale(axes: Axes, which: str = "y") -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def integer_ticks(axes: Axes, highest: int, which: str = "x") -> None:
    """Put ticks at whole numbers, about ten at most."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10000) if highest / step <= 10)
    getattr(axes, f"set_{which}ticks")(np.arange(0 if step > 1 else 1, highest + 1, step))


_METADATA = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}


def render(draw: Callable[[Any], Figure], evidence: Any, stem: str | Path) -> list[Path]:
    """Draw a figure and write `<stem>.pdf` and `<stem>.png` (300 dpi); equal input gives equal bytes.

    The files hold no dates and no program names.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the bytes
        matplotlib.rcParams.update(RC)
        figure = draw(evidence)
        paths = []
        for ending, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            paths.append(Path(f"{stem}.{ending}"))
            write_bytes(paths[-1], buffer.getvalue())
    return paths
