"""Table 2: parameters, counted in the saved models, beside the scores of NxM and of the distilled students."""

from __future__ import annotations

import pandas as pd

from nxm.report import Evidence, facts, paper
from nxm.report.table import Table
from nxm.study.results import Result

METHODS = ("dense", "nxm", "distil", "distil_nxm", "distil_nxm_kd")
FIELDS = ("layers", "hidden_size", "parameters", "target_parameters", "nonzero_parameters", "density")


def make(evidence: Evidence) -> Table:
    """One row a method, the paper's below it; counts are of all parameters, embeddings and classifier included."""
    runs = facts.whole_runs(evidence.results)
    columns = facts.columns_of(runs)
    several = len(columns) > 1
    shown, numbers = [], []
    for method in METHODS:
        own = [run for run in runs if run.method == method]
        if not own:
            continue
        shown.append(
            {
                "Method": facts.method_label(method),
                "": "ours",
                "Blocks × width": _span(f"{run.model.layers} × {run.model.hidden_size}" for run in own),
                "Parameters": _span(facts.millions(run.sparsity.parameters) for run in own),
                "in sparse layers": _span(facts.millions(run.sparsity.target_parameters) for run in own),
                "Non-zero": _span(facts.millions(run.sparsity.nonzero_parameters) for run in own),
                "Density there": _span(facts.percent(100 * run.sparsity.density) for run in own),
            }
            | {facts.COLUMNS.get(c, c): str(facts.column_score(runs, method, c) or facts.ABSENT) for c in columns}
            | ({"Geo. mean": str(facts.average_score(runs, method, columns) or facts.ABSENT)} if several else {})
        )
        if (theirs := paper.SCORES.get(method)) is not None:
            nonzero = paper.NONZERO_MILLIONS.get(method)
            shown.append(
                {"Method": "", "": "paper"}
                | dict.fromkeys(("Blocks × width", "Parameters", "in sparse layers", "Density there"), "")
                | {"Non-zero": facts.ABSENT if nonzero is None else f"{nonzero} M"}
                | {facts.COLUMNS.get(c, c): f"{theirs[c]:.1f}" for c in columns}
                | ({"Geo. mean": f"{paper.average(method, columns):.1f}"} if several else {})
            )
        numbers += [{"method": method, "task": run.task, "seed": run.seed} | _counts(run) for run in own]
    notes = facts.notes(evidence, METHODS)
    if shown:
        notes.append(
            "Counted in the saved models; the task heads differ in size by task. Paper: BERT-base, DistilBERT; it "
            "does not print BERT-base's size."
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
