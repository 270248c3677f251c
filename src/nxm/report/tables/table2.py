"""Table 2: parameters, counted in the saved models, beside the scores of NxM and of the distilled students."""

from __future__ import annotations

import pandas as pd

from nxm.report import Evidence, facts, paper
from nxm.report.table import Table
from nxm.results import Result

METHODS = ("dense", "nxm", "distil", "distil_nxm", "distil_nxm_kd")
FIELDS = ("layers", "hidden_size", "parameters", "target_parameters", "nonzero_parameters", "density")


def make(evidence: Evidence) -> Table:
    """One row a method; counts are of all of the model's parameters, embeddings and classifier included."""
    runs = facts.whole_runs(evidence.results)
    columns = facts.columns_of(runs)
    shown, numbers = [], []
    for method in METHODS:
        own = [run for run in runs if run.method == method]
        if not own:
            continue
        theirs = paper.NONZERO_MILLIONS.get(method)
        shown.append(
            {
                "Method": facts.method_label(method),
                "Blocks × width": _span(f"{run.model.layers} × {run.model.hidden_size}" for run in own),
                "Parameters": _span(facts.millions(run.sparsity.parameters) for run in own),
                "in sparse layers": _span(facts.millions(run.sparsity.target_parameters) for run in own),
                "Non-zero": _span(facts.millions(run.sparsity.nonzero_parameters) for run in own),
                "Density there": _span(facts.percent(100 * run.sparsity.density) for run in own),
                "Non-zero, paper": facts.ABSENT if theirs is None else f"{theirs} M",
            }
            | {
                facts.COLUMNS.get(column, column): str(facts.column_score(runs, method, column) or facts.ABSENT)
                for column in columns
            }
        )
        numbers += [{"method": method, "task": run.task, "seed": run.seed} | _counts(run) for run in own]
    notes = facts.notes(evidence, METHODS)
    if shown:
        notes.append(
            "Counted in the saved models; the task heads differ in size by task. Paper: BERT-base, DistilBERT."
        )
    fields = ["method", "task", "seed", *FIELDS]
    title = "Table 2. Parameters and scores with distillation"
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=fields), tuple(notes))


def _counts(run: Result) -> dict[str, float]:
    values = run.model.model_dump() | run.sparsity.model_dump()
    return {field: values[field] for field in FIELDS}


def _span(texts: object) -> str:
    """The one value, or those that there are."""
    return ", ".join(sorted(set(texts)))
