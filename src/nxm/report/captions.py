"""Captions of figures and notes of tables: data and model in one line, and the page that says more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nxm.data import tasks as glue
from nxm.report import labels, statistics
from nxm.report.evidence import Evidence
from nxm.study.results import Result
from nxm.study.studies import MAIN


def caption(
    evidence: Evidence,
    shows: str,
    tasks: list[str] | None = None,
    more: Iterable[str] = (),
    seeds: Iterable[int] | None = None,
) -> list[str]:
    """Return the caption of a figure: what it shows, data and model; then the study's page.

    Args:
        evidence: the study.
        shows: sentences on the figure's marks.
        tasks: the tasks drawn; by default all.
        more: what a reader must not miss, such as runs that are missing.
        seeds: the seeds drawn; by default those of the study.
    """
    text = " ".join(sentence for sentence in (shows, data_and_model(evidence, tasks, seeds), *more) if sentence)
    return [text, f"Details: {page(evidence)}"]


def measured(evidence: Evidence, shows: str, more: Iterable[str] = ()) -> list[str]:
    """Return the caption of a figure of times: what it shows, the machines; then the study's page."""
    files = [*evidence.bench, *evidence.deployment, *([evidence.benchmark] if evidence.benchmark else [])]
    machines = dict.fromkeys(machine for file in files if (machine := machine_of(file)))
    where = f"Study {evidence.study}; {statistics.listed(machines)}." if machines else f"Study {evidence.study}."
    text = " ".join(sentence for sentence in (shows, where, *more) if sentence)
    return [text, f"Details: {page(evidence)}"]


def machine_of(file: dict[str, Any]) -> str:
    """Return the machine of a file of measurements: `AMD EPYC (2 cores)`, or a GPU's name; empty if it has none."""
    machine = file.get("provenance", {}).get("machine")
    if machine is None:
        return ""
    if machine["device"] != "cpu":
        return machine["device"]
    return f"{machine['cpu']} ({machine['cores']} core{'s' * (machine['cores'] > 1)})"


def page(evidence: Evidence) -> str:
    """Return the path of the study's page from the repository's root."""
    return "docs/embedded.md" if evidence.study == MAIN else f"studies/{evidence.study}/README.md"


def data_and_model(evidence: Evidence, tasks: list[str] | None = None, seeds: Iterable[int] | None = None) -> str:
    """Return `Study glue: CoLA, STS-B (sample) and RTE; MiniLM-L6; seeds 0, 1 and 2.`"""
    results = statistics.whole_runs(evidence.results) or evidence.results
    if not results:
        return f"Study {evidence.study}: no results yet."
    names = statistics.listed(_task(results, task) for task in tasks or statistics.tasks_of(results))
    seeds = None if seeds is None else set(seeds)
    main = next((result for result in results if result.name == "dense"), results[0])
    model = labels.weights_label(main.provenance.weights)
    own = [result for result in results if seeds is None or result.seed in seeds]
    return f"Study {evidence.study}: {names}; {model}; {statistics.seeds_phrase(own)}."


def _task(results: list[Result], task: str) -> str:
    """Return a task's name, with `(sample)` where rows were left out that are not held out either."""
    used = min(r.provenance.train_examples + r.provenance.heldout_examples for r in results if r.task == task)
    sample = task in glue.TASKS and used < glue.TASKS[task].rows["train"]
    return statistics.TASKS.get(task, task) + (" (sample)" if sample else "")


def notes(evidence: Evidence, runs: Iterable[str] = ()) -> list[str]:
    """Return the notes under a table of scores: data and model, spread, collapsed runs, and those of `runs` missing."""
    own = statistics.whole_runs(evidence.results)
    lines = [data_and_model(evidence)]
    if own:
        lines += [spread(own), optimism(evidence)]
        lines += [statistics.collapsed_phrase(own), statistics.missing_phrase(evidence, runs)]
    return [line for line in lines if line]


def optimism(evidence: Evidence) -> str:
    """Return a warning where the hyper-parameters were selected on the rows that the scores are of; else nothing."""
    on_dev = evidence.selection == "dev" and statistics.trials_of(evidence.results)
    return "Hyper-parameters were selected on these dev rows, as in the paper (optimistic)." if on_dev else ""


def spread(runs: Iterable[Result]) -> str:
    """Return one sentence on what `±` is."""
    several = len({run.seed for run in runs}) > 1
    return "±: standard deviation over seeds." if several else "One seed: no spread."


def search(evidence: Evidence) -> list[str]:
    """Return the sentences on the selection of hyper-parameters and of the epoch."""
    return [statistics.selection_phrase(evidence)] if statistics.whole_runs(evidence.results) else []
