"""One look for all figures: sizes, type, colours, markers, and how a figure becomes two files.

Colours are Okabe and Ito's, which people with any colour vision tell apart; every method also has a marker and a line
style of its own, so that a grey print says the same. Type is 8 points or more at print size.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from nxm.files import write_bytes

ONE_COLUMN = 3.4  # inches
TWO_COLUMNS = 7.0
INK = "#1a1a1a"
GREY = "#666666"
PALE = "#d9d9d9"

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text in the PDF can be searched and edited
    "axes.unicode_minus": True,
}


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its axes as an array (rows, columns).

    No pyplot: a figure that is not registered anywhere needs no closing.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def mosaic(width: float, height: float, panels: list[list[str]], **options: Any) -> tuple[Figure, dict[str, Axes]]:
    """A figure of `width` x `height` inches and its axes by name; a name that stands in several cells spans them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplot_mosaic(panels, **options)


def footnote(figure: Figure, sentences: Iterable[str]) -> None:
    """Sentences in small grey letters under the figure; room is made for them."""
    text = " ".join(sentence for sentence in sentences if sentence)
    columns = int(figure.get_size_inches()[0] * 16.5)  # letters of 8 points in a line
    figure.supxlabel(textwrap.fill(text, columns), x=0.01, ha="left", fontsize=8, color=GREY, linespacing=1.25)


def missing(axes: Axes, text: str) -> None:
    """An empty panel that says what is missing and why."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    width = int(axes.get_window_extent().width / axes.get_figure(root=True).dpi * 13)  # letters of 8.5 points
    axes.text(
        0.5, 0.5, textwrap.fill(text, max(width, 18)), ha="center", va="center", color=GREY, transform=axes.transAxes
    )


def reference(axes: Axes, y: float, label: str, color: str = INK, above: bool = True) -> None:
    """A horizontal dashed line with its name right of the panel, above or below the line's height."""
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


_TOP = 1 - 1e-4  # a similarity above this is drawn here, a little before the end of the scale
_END = 1 - 10**-4.15


def similarity_scale(axes: Axes, which: str, values: Iterable[float]) -> None:
    """Make an axis of mask similarities one on which 90 %, 99 % and 99.9 % are equally far apart.

    What differs between two good masks is the share that changes: 1 % or 0.1 %; on a linear scale both are at the edge.
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
    if ((low <= places) & (places <= high)).sum() < 2:  # one number on an axis says nothing of its scale
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
    """A similarity as `similarity_scale` can draw it."""
    return min(value, _TOP)


def log_scale(axes: Axes, which: str = "y") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def integer_ticks(axes: Axes, highest: int, which: str = "x") -> None:
    """Ticks at whole numbers, at most about ten of them."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000, 10000) if highest / step <= 10)
    getattr(axes, f"set_{which}ticks")(np.arange(0 if step > 1 else 1, highest + 1, step))


_METADATA = {"pdf": {"CreationDate": None, "Producer": None, "Creator": None}, "png": {"Software": None}}


def render(draw: Callable[[Any], Figure], evidence: Any, stem: str | Path) -> list[Path]:
    """Draw a figure and write `<stem>.pdf` and `<stem>.png` (300 dpi); equal input gives equal bytes.

    Dates and program names, which matplotlib would put into the files, are left out.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own matplotlibrc must not change the bytes
        matplotlib.rcParams.update(RC)
        figure = draw(evidence)
        paths = []
        for ending, metadata in _METADATA.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            paths.append(Path(f"{stem}.{ending}"))
            write_bytes(paths[-1], buffer.getvalue())
    return paths
