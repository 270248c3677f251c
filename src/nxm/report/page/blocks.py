"""Blocks of a page: functions that a template calls for sentences and tables, made from results files alone.

    headline()          retention of NxM and ASP and the paper's, a sentence per task and one for the mean
    mean()              the last sentence of headline()
    best()              the same for NxM+ and the best of its rivals
    best_mean()         the last sentence of best()
    verdict_table(RUNS) a small table: score, share of the dense score, 95 % interval
    ingredients()       the ablation's table without its cost
    conditions()        data, model and seeds of the study, in one line
    timing()            time and memory of the study's runs, and the machine
    speed()             speed of the trained models in other forms
    table(NAME)         any table of `nxm.report.tables`, with its notes

Each takes `study=`. Sentences hold whichever run is ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nxm import report
from nxm.report import labels, paper, statistics
from nxm.report.evidence import Evidence
from nxm.report.forms import Row, described, is_plain, largest
from nxm.report.page.numbers import number
from nxm.study.results import Result

NO_RESULTS = "Study {} has no results yet."
RIVALS = [run for run in labels.PLUS if run not in ("nxm_plus", "dense_plus")]


def headline(evidence: Evidence) -> str:
    """Retention of NxM and ASP, then the paper's: one sentence per task, and one for the geometric mean."""
    runs = statistics.whole_runs(evidence.results)
    tasks = statistics.tasks_of(runs)
    sentences = [_verdict(evidence, runs, group) for group in statistics.task_groups(tasks)]
    return _list(sentences) if sentences else NO_RESULTS.format(evidence.study)


def mean(evidence: Evidence) -> str:
    """The last sentence of `headline`: the geometric mean over the study's tasks."""
    return headline(evidence).splitlines()[-1].removeprefix("- ")


def best(evidence: Evidence) -> str:
    """Retention of NxM+ and of the best of its rivals, and of the dense model with the same extras.

    One sentence per task, and one for the geometric mean. Without a rival's run the comparison is with NxM, which has
    no extras.
    """
    runs = statistics.whole_runs(evidence.results)
    tasks = statistics.tasks_of(statistics.runs_of(runs, "nxm_plus"))
    sentences = [_best(evidence, runs, group) for group in statistics.task_groups(tasks)]
    return _list(sentences) if sentences else f"Study {evidence.study} has no run of NxM+ yet."


def best_mean(evidence: Evidence) -> str:
    """The last sentence of `best`: the geometric mean over the tasks of NxM+."""
    return best(evidence).splitlines()[-1].removeprefix("- ")


def verdict_table(evidence: Evidence, runs: Sequence[str]) -> str:
    """A row per run, on the study's task or in the geometric mean over its tasks.

    Raises:
        UserError: a run was not measured on all of the study's tasks.
    """
    tasks = statistics.tasks_of(statistics.whole_runs(evidence.results))
    lines = ["| Run | Score | % of dense | 95 % interval |", "|:--|--:|--:|--:|"]
    for run in runs:
        number("score", evidence, [run], tasks)
        score = statistics.method_score(evidence.results, run, tasks)
        share = number("retention", evidence, [run], tasks).removesuffix(" %")
        measured = statistics.retention_interval(evidence, run, "dense", tasks)
        interval = statistics.ABSENT
        if run != "dense" and measured is not None and measured.low is not None:
            interval = number("retention_interval", evidence, [run], tasks).removesuffix(" %")
        lines.append(f"| {labels.run_label(run)} | {score} | {share} | {interval} |")
    return "\n".join(lines)


def ingredients(evidence: Evidence) -> str:
    """The ablation's table without cost and notes."""
    table = report.load("tables", "table_ablation").make(evidence)
    if table.shown.empty:
        return " ".join(table.notes)
    several = table.shown["Task"].nunique() > 1
    shown = table.shown.drop(columns=["Excludes 0", "Time", "Memory", *([] if several else ["Task"])])
    return shown.to_markdown(index=False, disable_numparse=True)


def conditions(evidence: Evidence) -> str:
    """Data, model and seeds of the study's runs."""
    return statistics.study_phrase(evidence)


def timing(evidence: Evidence) -> str:
    """Time and memory of the study's runs, and the machine."""
    if not evidence.results:
        return NO_RESULTS.format(evidence.study)
    return f"Study {evidence.study}: {statistics.cost_phrase(evidence)} {statistics.machine_phrase(evidence.results)}"


def speed(evidence: Evidence) -> str:
    """The dense model's other forms and the other models in fp32, compared with the dense model in PyTorch fp32.

    One item per device.
    """
    lines = []
    for file in evidence.deployment:
        device = file["device"].upper()
        timed = [row for row in file["rows"] if "median_ms" in row]
        if not timed:
            lines += [f"- {device}: not measured ({file['absent']})."] if "absent" in file else []
            continue
        rows = largest(timed)
        batch, length = rows[0]["batch"], rows[0]["length"]
        forms = [row for row in rows if row["model"] == "dense" and not is_plain(row)]
        forms += [row for row in rows if row["kernel"] != "dense"]
        models = [row for row in rows if row["model"] != "dense" and is_plain(row)]
        machine = statistics.machine_text(file["provenance"]["machine"])
        lines += [
            f"- {device} ({machine}), {batch} × {length} tokens, speed-up over the dense model in PyTorch fp32 "
            "of the same rounds:",
            f"  - in other forms: {statistics.listed(_form(row, file['scores']) for row in forms)};",
            f"  - other models in PyTorch fp32: {statistics.listed(_model(row) for row in models)}.",
        ]
    return "\n".join(lines) if lines else f"Study {evidence.study} has no form measured yet."


BLOCKS: dict[str, Callable[..., str]] = {
    make.__name__: make
    for make in (headline, mean, best, best_mean, verdict_table, ingredients, conditions, timing, speed)
}


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else sentences[0]


def best_rival(runs: list[Result], tasks: list[str]) -> str:
    """The rival of NxM+ with the highest score on the tasks; NxM where none has run."""
    scores = {rival: statistics.method_score(runs, rival, tasks) for rival in RIVALS}
    measured = {rival: score.mean for rival, score in scores.items() if score is not None}
    return max(measured, key=lambda rival: measured[rival], default="nxm")


def _best(evidence: Evidence, runs: list[Result], tasks: list[str]) -> str:
    own = [run for run in runs if run.task in tasks]
    rival = best_rival(own, tasks)
    text = _verdict(evidence, runs, tasks, "nxm_plus", rival)
    upper = statistics.retention_interval(evidence, "nxm_plus", "dense_plus", tasks)
    score = statistics.method_score(own, "dense_plus", tasks)
    if upper is not None and score is not None:
        share = statistics.percent(upper.value)
        text += f" The dense model with the same extras has {score}; of that NxM+ retains **{share}**."
    return text


def _verdict(evidence: Evidence, runs: list[Result], tasks: list[str], name: str = "nxm", rival: str = "asp") -> str:
    """A run, its rival and the dense model on one task, or in the geometric mean over several."""
    names = ("dense", name, rival)
    ours, theirs = labels.run_label(name), labels.run_label(rival)
    in_tasks = [run for run in runs if run.task in tasks]
    own = [run for each in names for run in statistics.runs_of(in_tasks, each)]
    scores = {each: statistics.method_score(own, each, tasks) for each in names}
    lacking = [labels.run_label(each) for each, score in scores.items() if score is None]
    where = f"On {statistics.size_phrase(own or runs, tasks)}" if len(tasks) == 1 else _over(tasks)
    if lacking:
        return f"{where}: no result of {statistics.listed(lacking)} yet, so {ours} cannot be compared with {theirs}."
    dense, mine, other = (scores[each] for each in names)
    shares = [statistics.percent(statistics.retention(scores[each].mean, dense.mean)) for each in (name, rival)]
    metric = statistics.METRICS.get(own[0].metric.name, own[0].metric.name) if len(tasks) == 1 else "score"
    text = (
        f"{where}, {statistics.seeds_phrase(own)}: {ours} retains **{shares[0]}** of the dense score "
        f"({mine} of {dense}, {metric} × 100), {theirs} **{shares[1]}** ({other}); "
        f"{_comparison(evidence, own, tasks, name, rival)}."
    )
    if {name, rival} <= paper.SCORES.keys():
        theirs_too = [number("paper_retention", evidence, [each], tasks) for each in (name, rival)]
        what = "the whole task" if len(tasks) == 1 else "the same tasks, whole"
        text += f" (The paper, BERT-base on {what}: {theirs_too[0]} and {theirs_too[1]}.)"
    return text


def _over(tasks: list[str]) -> str:
    return f"Geometric mean over {statistics.listed(statistics.TASKS.get(task, task) for task in tasks)}"


def _comparison(evidence: Evidence, runs: list[Result], tasks: list[str], name: str, rival: str) -> str:
    """A run compared with its rival, with seeds and interval where there are any."""
    by_seed = {each: statistics.seed_scores(runs, each, tasks) for each in (name, rival)}
    ours, theirs = labels.run_label(name), labels.run_label(rival)
    mine, other = (statistics.method_score(runs, each, tasks).mean for each in (name, rival))
    common = sorted(by_seed[name].keys() & by_seed[rival].keys())
    ahead = sum(by_seed[name][seed] > by_seed[rival][seed] for seed in common)
    count = f", ahead in {ahead} of {len(common)} seeds" if len(common) > 1 else ""
    points = statistics.difference(evidence, name, rival, tasks)
    if points is not None and points.certain is not None:
        count += f" (paired bootstrap, 95 %: {points.low:+.1f} to {points.high:+.1f})"
    if f"{abs(mine - other):.1f}" == "0.0":
        return f"{ours} does not beat {theirs}: they are level{count}"
    if mine < other:
        return f"{ours} does not beat {theirs}: it is {other - mine:.1f} points below{count}"
    return f"{ours} is {mine - other:.1f} points above {theirs}{count}"


def _gain(row: Row) -> str:
    return f"{row['speedup_over_dense_fp32']:.2f}" + (" ~" if row["noisy"] else "")


def _model(row: Row) -> str:
    return f"{labels.run_label(row['model'])} {_gain(row)}"


def _form(row: Row, scores: list[Row]) -> str:
    """A form with its speed-up and, where scores were measured, the change in score of the models in that form."""
    name = described(row) if row["model"] == "dense" else f"{labels.run_label(row['model'])}, {described(row)}"
    plain = {score["model"]: score["score"] for score in scores if is_plain(score)}
    own = [score for score in scores if all(score[key] == row[key] for key in ("way", "dtype", "kernel"))]
    lost = [round(plain[score["model"]] - score["score"], 1) + 0.0 for score in own if score["model"] in plain]
    costs = f" (score {-max(lost):+.1f} to {-min(lost):+.1f})" if lost and (min(lost) or max(lost)) else ""
    return f"{name} {_gain(row)}{costs}"
