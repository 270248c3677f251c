"""Differences between runs with paired bootstrap intervals, by task and for the geometric mean."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, effects, labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.table import Part, Table
from nxm.study.bootstrap import DRAWS

PAIRS = (  # a run, and the one it is compared with
    ("nxm", "asp"),
    ("nxm", "admm_unstructured"),
    ("nxm", "dense"),
    ("asp", "dense"),
    ("admm_unstructured", "dense"),
    ("distil", "dense"),
    ("distil_nxm", "distil"),
    ("distil_nxm_kd", "distil"),
    ("nxm_plus", "dense"),
    ("nxm_plus", "nxm"),
    ("nxm_plus", "asp_plus"),
    ("nxm_plus", "gmp_plus"),
    ("nxm_plus", "sr_ste_plus"),
    ("nxm_plus", "dense_plus"),
    ("dense_plus", "dense"),
    ("asp_plus", "dense"),
    ("gmp_plus", "dense"),
    ("sr_ste_plus", "dense"),
    ("distil_nxm_plus", "distil"),
    *((run, rival) for run in ("cut50", "cut30", "cut20", "cut10") for rival in ("dense", "dense_plus")),
    ("cut50", "distil"),
    ("cut20", "fisher20"),
    ("fisher20", "dense"),
    ("cut50_nxm", "cut50"),
    ("cut50_nxm", "dense"),
    ("cut50_nxm_int8", "dense"),
)
FIELDS = ["task", "run", "rival", "difference", "low", "high", "kept", "kept_low", "kept_high", "heldout", "paper"]
FIELDS += effects.FIELDS

SECOND = "How far the data carry each difference"


def make(evidence: Evidence) -> Table:
    """Return a row per pair and task, and one for the geometric mean over several tasks.

    The second table says how far the data carry each difference.
    """
    tasks = statistics.tasks_of(statistics.whole_runs(evidence.results))
    groups = statistics.task_groups(tasks)
    measured = effects.measured(evidence, [(*pair, tuple(group)) for group in groups for pair in PAIRS])
    shown, carried, numbers = [], [], []
    for group in groups:
        where = statistics.TASKS.get(group[0], group[0]) if len(group) == 1 else "Geo. mean"
        for method, rival in PAIRS:
            points = statistics.difference(evidence, method, rival, group)
            share = statistics.retention_interval(evidence, method, rival, group)
            if points is None:
                continue
            heldout = statistics.heldout_difference(evidence, method, rival, group)
            theirs = _paper(evidence, method, rival, group)
            shown.append(
                {
                    "Task": where,
                    "Run": labels.run_label(method),
                    "Compared with": labels.run_label(rival),
                    "Points [95 %]": points.text(),
                    "Excludes 0": {True: "yes", False: "no", None: statistics.ABSENT}[points.certain],
                    "% of it [95 %]": share.text(".1f") if share else statistics.ABSENT,
                    "Held out, points": statistics.ABSENT if heldout is None else f"{heldout:+.1f}",
                    "Paper, points": statistics.ABSENT if theirs is None else f"{theirs:+.1f}",
                }
            )
            found = measured.get((method, rival, tuple(group)))
            if found is not None:
                names = {name: shown[-1][name] for name in ("Task", "Run", "Compared with", "Points [95 %]")}
                carried.append(names | effects.texts(found))
            of_share = (share.value, share.low, share.high) if share else (None, None, None)
            key = group[0] if len(group) == 1 else "geometric_mean"
            own = found.values.values() if found else [None] * len(effects.FIELDS)
            numbers.append(
                [key, method, rival, points.value, points.low, points.high, *of_share, heldout, theirs, *own]
            )
    notes = [captions.data_and_model(evidence), captions.optimism(evidence)]
    several = len({run.seed for run in statistics.whole_runs(evidence.results)}) > 1
    if shown:
        seeds = "few seeds understate their spread" if several else "one seed: they say nothing of other seeds"
        notes.append(f"Intervals: paired bootstrap over dev examples and seeds, {DRAWS:,} draws ({seeds}).")
        if any(row["Held out, points"] != statistics.ABSENT for row in shown):
            notes.append("Held out: on training rows that no run trains on.")
        notes.append(statistics.collapsed_phrase(statistics.whole_runs(evidence.results)))
    title = "Differences between runs"
    second = Part(SECOND, pd.DataFrame(carried), effects.notes(several)) if carried else None
    return Table(
        title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(note for note in notes if note), second
    )


def _paper(evidence: Evidence, method: str, rival: str, tasks: list[str]) -> float | None:
    columns = statistics.columns_of(run for run in statistics.whole_runs(evidence.results) if run.task in tasks)
    ours, theirs = paper.average(method, columns), paper.average(rival, columns)
    return None if ours is None or theirs is None else ours - theirs
