"""Score and size by set: bits a weight with positions and scales, compression, and the share of the dense score."""

from __future__ import annotations

import pandas as pd

from nxm.report import captions, labels, statistics, storage
from nxm.report.evidence import Evidence
from nxm.report.table import Table

FIELDS = [
    *("task", "run", "set", "bits_per_weight", "compression", "model_bytes", "score", "spread", "seeds"),
    *("retention", "retention_low", "retention_high"),
]


def make(evidence: Evidence) -> Table:
    """Return a row per task and per run or variant, the largest first."""
    title = "Scores by bits a weight"
    own = [run for run in evidence.results if run.trial is None and storage.bits_per_weight(run) is not None]
    if not own:
        reason = f"Study {evidence.study} has no run whose size is known."
        return Table(title, pd.DataFrame(), pd.DataFrame(columns=FIELDS), (captions.data_and_model(evidence), reason))
    tasks = statistics.tasks_of(own)
    order = statistics.methods_of(own)
    named = sorted({run.full_name for run in own}, key=lambda name: (order.index(name.partition("/")[0]), name))
    # a variant that is its run, compared once more with another rival, has its run's label
    names = list({labels.run_label(name): name for name in reversed(named)}.values())[::-1]
    shown, numbers = [], []
    for task in tasks:
        rows = []
        for name in names:
            runs = [run for run in statistics.runs_of(own, name) if run.task == task]
            score = statistics.task_score(runs, name, task)
            if not runs or score is None:
                continue
            largest = storage.largest_of(runs)
            bits, size = storage.bits_per_weight(largest), storage.stored_bytes(largest)
            assert bits is not None  # as `own` has been chosen
            assert size is not None
            kept = statistics.retention_interval(evidence, name, "dense", [task]) if name != "dense" else None
            cells = {
                **({"Task": statistics.TASKS.get(task, task)} if len(tasks) > 1 else {}),
                "Run": labels.run_label(name),
                "Set": runs[0].sparsity.pattern or "dense",
                "Bits a weight": f"{bits:.2f}",
                "Compression": f"{storage.NUMBER / bits:.1f}×",
                "Model, MiB": f"{size / 2**20:.1f}",
                "Score": str(score),
                "% of dense": kept.text(".1f") if kept else statistics.ABSENT,
            }
            number = [
                *(task, name, runs[0].sparsity.pattern, bits, storage.NUMBER / bits, size),
                *(score.mean, score.spread, len(score.values)),
                *((kept.value, kept.low, kept.high) if kept else (None, None, None)),
            ]
            rows.append((bits, cells, number))
        for _, cells, number in sorted(rows, key=lambda row: -row[0]):
            shown.append(cells)
            numbers.append(number)
    notes = [
        *captions.notes(evidence),
        "Bits a weight: of the matrices of the Transformer blocks, with the positions of the non-zeros and a scale of "
        "16 bits a row of integers; zeros count as weights. Compression: compared with 32 bits. Model: those matrices "
        "stored so, embeddings and the rest in fp32.",
        "Brackets: 95 % intervals by paired bootstrap." if evidence.bootstrap else "",
    ]
    return Table(title, pd.DataFrame(shown), pd.DataFrame(numbers, columns=FIELDS), tuple(filter(None, notes)))
