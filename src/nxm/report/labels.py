"""Names and looks: what a reader sees in place of the names in params.yaml.

A run is one line of `RUNS`: its label, colour, marker and dashes, wherever it appears. Colours are Okabe and Ito's and
Paul Tol's, which people with any colour vision tell apart; every run also has a marker and a line style of its own, so
that a grey print says the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GREY = "#666666"


@dataclass(frozen=True)
class Look:
    """The label of a run, and how it is drawn wherever it appears."""

    label: str
    color: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]

    def line(self) -> dict[str, Any]:
        """Return the keyword arguments of `Axes.plot`."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.dashes,
            "markeredgecolor": "white",
            "markeredgewidth": 0.5,
        }


RUNS = {  # in the order they are shown
    "dense": Look("Dense", "#000000", "s", (0, (5, 2))),
    "dense_plus": Look("Dense+", "#444444", "H", (0, (1, 1))),
    "admm_unstructured": Look("ADMM, unstructured", "#009E73", "^", (0, (1, 1.2))),
    "asp": Look("ASP", "#D55E00", "D", (0, (3.5, 1.5))),
    "nxm": Look("NxM", "#0072B2", "o", "-"),
    "nxm_paper": Look("NxM, paper's recipe", "#CC79A7", "X", (0, (4, 1.2, 1, 1.2))),
    "distil": Look("Student, dense", "#7f7f7f", "v", (0, (5, 2))),
    "distil_nxm": Look("Student, NxM", "#E69F00", "P", (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    "distil_nxm_kd": Look("Student, NxM + KD", "#56B4E9", "p", (0, (2, 1))),
    "nxm_plus": Look("NxM+", "#332288", "h", (0, (8, 1.5))),
    "asp_plus": Look("ASP+", "#994F00", "d", (0, (6, 1.2, 2, 1.2))),
    "gmp_plus": Look("GMP+", "#7a7a00", "<", (0, (2, 2))),
    "sr_ste_plus": Look("SR-STE+", "#882255", ">", (0, (3, 1, 1, 1, 1, 1))),
    "distil_nxm_plus": Look("Student, NxM+", "#117733", "8", (0, (1, 2.5))),
}
# Runs of every study; NxM+ and its rivals are in studies of their own.
EVERYWHERE = ("dense", "admm_unstructured", "asp", "nxm", "distil", "distil_nxm", "distil_nxm_kd")
# NxM+, and its rivals with the same extras: start, teacher, epochs.
PLUS = ("nxm_plus", "asp_plus", "gmp_plus", "sr_ste_plus", "dense_plus")


def look(run: str) -> Look:
    """Return a run's look; a new one is grey with a star and has its own name until it gets a line in `RUNS`."""
    return RUNS.get(run, Look(run, GREY, "*", (0, (1, 2))))


def run_label(run: str) -> str:
    """Return a run's label, with the variant's name if it is one: `NxM+, no teacher`."""
    run, _, variant = run.partition("/")
    return look(run).label + (f", {variant.replace('-', ' ')}" if variant else "")
