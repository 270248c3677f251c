"""Table 2: parameters, counted in the saved models, and scores of NxM and the distilled students."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Table
from nxm.study.results import Result

METHODS = ("dense", "nxm", "distil", "distil_nxm", "distil_nxm_kd")
FIELDS = ("layers", "hidden_size", "parameters", "target_parameters", "nonzero_parameters", "density")


def make(evidence: Evidence) -> Table:
    """Return a row per run, followed by the paper's; counts include embeddings and classifier."""
    runs = statistics.whole_runs(evidence.results)
    columns = statistics.columns_of(runs)
    several = len(columns) > 1
    shown, numbers = [], []
    for method in METHODS:
        own = [run for run in runs if run.name == method]
        if not own:
            continue
        shown.append(
            {
                "Run": labels.run_label(method),
                "": "ours",
                "Blocks × width": _span(f"{run.model.layers} × {run.model.hidden_size}" for run in own),
                "Parameters": _span(statistics.millions(run.sparsity.parameters) for run in own),
                "Target parameters": _span(statistics.millions(run.sparsity.target_parameters) for run in own),
                "Non-zero": _span(statistics.millions(run.sparsity.nonzero_parameters) for run in own),
                "Target density": _span(statistics.percent(100 * run.sparsity.density) for run in own),
            }
            | {
                statistics.COLUMNS.get(c, c): str(statistics.column_score(runs, method, c) or statistics.ABSENT)
                for c in columns
            }
            | (
                {"Geo. mean": str(statistics.average_score(runs, method, columns) or statistics.ABSENT)}
                if several
                else {}
            )
        )
        if (theirs := paper.SCORES.get(method)) is not None:
            nonzero = paper.NONZERO_MILLIONS.get(method)
            shown.append(
                {"Run": "", "": "paper"}
                | dict.fromkeys(("Blocks × width", "Parameters", "Target parameters", "Target density"), "")
                | {"Non-zero": statistics.ABSENT if nonzero is None else f"{nonzero} M"}
                | {statistics.COLUMNS.get(c, c): f"{theirs[c]:.1f}" for c in columns}
                | ({"Geo. mean": f"{paper.average(method, columns):.1f}"} if several else {})
            )
        numbers += [{"run": method, "task": run.task, "seed": run.seed} | _counts(run) for run in own]
    notes = captions.notes(evidence, METHODS)
    if shown:
        notes.append("The heads' sizes differ by task. Paper: BERT-base, whose size it does not print, and DistilBERT.")
    fields = ["run", "task", "seed", *FIELDS]
    title = "Table 2. Parameters and scores with distillation"
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=fields), tuple(notes))


def _counts(run: Result) -> dict[str, float]:
    values = run.model.model_dump() | run.sparsity.model_dump()
    return {field: values[field] for field in FIELDS}


def _span(texts: object) -> str:
    """Return the distinct values, comma-separated."""
    return ", ".join(sorted(set(texts)))
