"""Keep the numbers in README.md equal to the results files.

    python -m nxm.report.readme            # rewrite the blocks
    python -m nxm.report.readme --check    # exit 1 when one is stale

A block stands between `<!-- generated:WHAT STUDY -->` and `<!-- /generated -->`; WHAT is `headline`, `mean`,
`best`, `best_mean`, `ingredients`, `timing`, `speed` or a table's name. What it says is derived from results/<STUDY>,
whichever way the numbers fall. A number within a sentence stands between `<!-- value:WHAT STUDY METHOD ... -->` and
`<!-- /value -->`; `nxm.report.values` says which there are.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Callable
from pathlib import Path

from nxm import report
from nxm.cli import run
from nxm.errors import UserError
from nxm.files import write_text
from nxm.report import Evidence, facts, paper
from nxm.report.figures.deployment import Row, described, is_plain
from nxm.report.values import value
from nxm.study.results import Result
from nxm.study.search import PLUS

RIVALS = [method for method in PLUS if method not in ("nxm_plus", "dense_plus")]
_BLOCK = re.compile(r"(<!-- generated:(?P<name>[^>]*?) -->\n)(?P<body>.*?)(<!-- /generated -->)", re.DOTALL)
_STUDY = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VALUE = re.compile(r"(<!-- value:(?P<name>[^>]*?) -->)(?P<body>[^<]*)(<!-- /value -->)")


def headline(evidence: Evidence) -> str:
    """What NxM and ASP keep of the dense score, then what the paper kept: one sentence a task, and one over all."""
    runs = facts.whole_runs(evidence.results)
    tasks = facts.tasks_of(runs)
    sentences = [_verdict(evidence, runs, group) for group in [[task] for task in tasks] + [tasks] * (len(tasks) > 1)]
    if not sentences:
        return f"Study {evidence.study} has no results yet."
    return "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else sentences[0]


def mean(evidence: Evidence) -> str:
    """The last of `headline`'s sentences alone: what NxM and ASP keep in the geometric mean over the study's tasks."""
    runs = facts.whole_runs(evidence.results)
    return _verdict(evidence, runs, facts.tasks_of(runs)) if runs else _nothing(evidence)


def best(evidence: Evidence) -> str:
    """What NxM+ and the best of its rivals keep of the dense score, and what is kept of the dense model with the same
    extras: one sentence a task, and one over all. Where no rival has run it is set against NxM, which has no extras."""
    runs = facts.whole_runs(evidence.results)
    tasks = facts.tasks_of(run for run in runs if run.method == "nxm_plus")
    groups = [[task] for task in tasks] + [tasks] * (len(tasks) > 1)
    sentences = [_best(evidence, runs, group) for group in groups]
    if not sentences:
        return f"Study {evidence.study} has no run of NxM+ yet."
    return "\n".join(f"- {sentence}" for sentence in sentences) if len(sentences) > 1 else sentences[0]


def best_mean(evidence: Evidence) -> str:
    """The last of `best`'s sentences alone: what NxM+ keeps in the geometric mean over the study's tasks."""
    return best(evidence).splitlines()[-1].removeprefix("- ")


def _best(evidence: Evidence, runs: list[Result], tasks: list[str]) -> str:
    own = [run for run in runs if run.task in tasks]
    columns = facts.columns_of(own)
    scores = {rival: _score(own, rival, tasks, columns) for rival in RIVALS}
    measured = {rival: score.mean for rival, score in scores.items() if score is not None}
    rival = max(measured, key=lambda rival: measured[rival], default="nxm")
    text = _verdict(evidence, runs, tasks, "nxm_plus", rival)
    upper = facts.kept(evidence, "nxm_plus", "dense_plus", tasks)
    score = _score(own, "dense_plus", tasks, columns)
    if upper is not None and score is not None:
        text += (
            f" The dense model with the same extras has {score}; of that NxM+ keeps **{facts.percent(upper.value)}**."
        )
    return text


def ingredients(evidence: Evidence) -> str:
    """The ablation's table without cost and notes, for a page."""
    table = report.load("tables", "table_ablation").make(evidence)
    if table.shown.empty:
        return " ".join(table.notes)
    columns = ["Method", "Variant", "Changed", "Score", "Kept of dense", "Points [95 %]", "Against", "Held out"]
    several = ["Task"] if table.shown["Task"].nunique() > 1 else []
    return table.shown[several + columns].to_markdown(index=False, disable_numparse=True)


def timing(evidence: Evidence) -> str:
    """What the study's runs took, and where."""
    sentences = (facts.cost_phrase(evidence), facts.machine_phrase(evidence.results))
    return f"Study {evidence.study}: {' '.join(sentences)}" if evidence.results else _nothing(evidence)


def speed(evidence: Evidence) -> str:
    """For each device, against the dense model in PyTorch fp32: its other forms, and the other models in fp32."""
    lines = []
    for file in evidence.deployment:
        device = file["device"].upper()
        timed = [row for row in file["rows"] if "median_ms" in row]
        if not timed:
            lines += [f"- {device}: not measured ({file['absent']})."] if "absent" in file else []
            continue
        batch, length = point = max((row["batch"], row["length"]) for row in timed)
        rows = [row for row in timed if (row["batch"], row["length"]) == point]
        forms = [row for row in rows if row["model"] == "dense" and not is_plain(row)]
        forms += [row for row in rows if row["kernel"] != "dense"]
        models = [row for row in rows if row["model"] != "dense" and is_plain(row)]
        machine = facts.machine_text(file["provenance"]["machine"])
        lines += [
            f"- {device} ({machine}), {batch} × {length} tokens, how many times as fast as "
            "the dense model in PyTorch fp32 of the same rounds:",
            f"  - in other forms: {facts.listed(_form(row, file['scores']) for row in forms)};",
            f"  - other models in PyTorch fp32: {facts.listed(_model(row) for row in models)}.",
        ]
    return "\n".join(lines) if lines else f"Study {evidence.study} has no form measured yet."


def _gain(row: Row) -> str:
    return f"{row['speedup_over_dense_fp32']:.2f}" + (" ~" if row["noisy"] else "")


def _model(row: Row) -> str:
    return f"{facts.method_label(row['model'])} {_gain(row)}"


def _form(row: Row, scores: list[Row]) -> str:
    """A form with its speed-up and, where scores were taken, what it costs the models measured in it."""
    name = described(row) if row["model"] == "dense" else f"{facts.method_label(row['model'])}, {described(row)}"
    plain = {score["model"]: score["score"] for score in scores if is_plain(score)}
    own = [score for score in scores if all(score[key] == row[key] for key in ("way", "dtype", "kernel"))]
    lost = [round(plain[score["model"]] - score["score"], 1) + 0.0 for score in own if score["model"] in plain]
    costs = f" (score {-max(lost):+.1f} to {-min(lost):+.1f})" if lost and (min(lost) or max(lost)) else ""
    return f"{name} {_gain(row)}{costs}"


def _nothing(evidence: Evidence) -> str:
    return f"Study {evidence.study} has no results yet."


def _verdict(evidence: Evidence, runs: list[Result], tasks: list[str], method: str = "nxm", rival: str = "asp") -> str:
    """A method, its rival and the dense model on one task, or in the geometric mean over several."""
    ours, theirs = facts.method_label(method), facts.method_label(rival)
    own = [run for run in runs if run.task in tasks and run.method in ("dense", method, rival)]
    columns = facts.columns_of(own)
    scores = {name: _score(own, name, tasks, columns) for name in ("dense", method, rival)}
    lacking = [facts.method_label(method) for method, score in scores.items() if score is None]
    where = f"On {facts.size_phrase(own or runs, tasks)}" if len(tasks) == 1 else _over(tasks)
    if lacking:
        return f"{where}: no result of {facts.listed(lacking)} yet, so nothing can be said of {ours} against {theirs}."
    dense, mine, other = scores["dense"], scores[method], scores[rival]
    kept = {name: facts.percent(facts.retention(scores[name].mean, dense.mean)) for name in (method, rival)}
    metric = facts.METRICS.get(own[0].metric.name, own[0].metric.name) if len(tasks) == 1 else "score"
    text = (
        f"{where}, {facts.seeds_phrase(own)}: {ours} keeps **{kept[method]}** of the dense score ({mine} of {dense}, "
        f"{metric} × 100), {theirs} **{kept[rival]}** ({other}); "
        f"{_comparison(evidence, own, tasks, columns, method, rival)}."
    )
    paper_scores = {name: _paper_score(name, tasks, columns) for name in scores}
    if None not in paper_scores.values():
        shares = [facts.percent(facts.retention(paper_scores[name], paper_scores["dense"])) for name in (method, rival)]
        what = "the whole task" if len(tasks) == 1 else "the same tasks, whole"
        text += f" (The paper, BERT-base on {what}: {shares[0]} and {shares[1]}.)"
    return text


def _over(tasks: list[str]) -> str:
    return f"Geometric mean over {facts.listed(facts.TASKS.get(task, task) for task in tasks)}"


def _score(runs: list[Result], method: str, tasks: list[str], columns: list[str]) -> facts.Score | None:
    if len(tasks) == 1:
        return facts.task_score(runs, method, tasks[0])
    return facts.average_score(runs, method, columns)


def _paper_score(method: str, tasks: list[str], columns: list[str]) -> float | None:
    return facts.paper_task_score(method, tasks[0]) if len(tasks) == 1 else paper.average(method, columns)


def _comparison(
    evidence: Evidence, runs: list[Result], tasks: list[str], columns: list[str], method: str, rival: str
) -> str:
    """A method against its rival in words that are true whichever is ahead, with seeds and interval where there
    are any."""
    by_seed = {
        name: {run.seed: run.metric.value for run in runs if run.method == name}
        if len(tasks) == 1
        else facts.seed_averages(runs, name, columns)
        for name in (method, rival)
    }
    ours, theirs = facts.method_label(method), facts.method_label(rival)
    mine, other = (_score(runs, name, tasks, columns).mean for name in (method, rival))
    common = sorted(by_seed[method].keys() & by_seed[rival].keys())
    ahead = sum(by_seed[method][seed] > by_seed[rival][seed] for seed in common)
    count = f", ahead in {ahead} of {len(common)} seeds" if len(common) > 1 else ""
    points = facts.difference(evidence, method, rival, tasks)
    if points is not None and points.certain is not None:
        count += f" (paired bootstrap, 95 %: {points.low:+.1f} to {points.high:+.1f})"
    if f"{abs(mine - other):.1f}" == "0.0":
        return f"{ours} does not beat {theirs}: they are level{count}"
    if mine < other:
        return f"{ours} does not beat {theirs}: it is {other - mine:.1f} points below{count}"
    return f"{ours} is {mine - other:.1f} points above {theirs}{count}"


BLOCKS: dict[str, Callable[[Evidence], str]] = {
    "headline": headline,
    "mean": mean,
    "best": best,
    "best_mean": best_mean,
    "ingredients": ingredients,
    "timing": timing,
    "speed": speed,
}


def block(name: str, evidence_of: Callable[[str], Evidence]) -> str:
    """The text of a block `WHAT STUDY`. Raises UserError for a name that says nothing known."""
    known = [*BLOCKS, *report.known("tables")]
    what, _, study = name.strip().partition(" ")
    if what not in known or not _STUDY.fullmatch(study):
        raise UserError(f"README block '{name}': expected 'WHAT STUDY' with WHAT one of {', '.join(known)}")
    evidence = evidence_of(study)
    if what in BLOCKS:
        return BLOCKS[what](evidence) + "\n"
    return report.load("tables", what).make(evidence).markdown() if evidence.results else _nothing(evidence) + "\n"


def number(name: str, evidence_of: Callable[[str], Evidence]) -> str:
    """The text of a value `WHAT STUDY METHOD ...`. Raises UserError for one that says nothing known or has not run."""
    match name.split():
        case [what, study, *names] if _STUDY.fullmatch(study):
            return value(what, evidence_of(study), names)
    raise UserError(f"README value '{name}': expected 'WHAT STUDY METHOD ...'")


def rewrite(text: str, root: Path) -> tuple[str, list[str]]:
    """The README with all blocks and values made anew, and the names of those that were stale."""
    evidence_of = functools.cache(lambda study: report.read_evidence(root, study))
    if first := re.search(r"^\s*<!-- value:[^>]*", text, re.MULTILINE):
        raise UserError(
            f"README: '{first[0].strip()}' begins a line, which Markdown takes for the end of the paragraph"
        )
    stale = []
    for kind, pattern, make in (("generated", _BLOCK, block), ("value", _VALUE, number)):
        if text.count(f"<!-- {kind}:") != len(pattern.findall(text)):
            raise UserError(f"README: a '<!-- {kind}:… -->' has no '<!-- /{kind} -->' after it")

        def renew(match: re.Match[str], make: Callable[..., str] = make) -> str:
            fresh = make(match["name"], evidence_of)
            if match["body"] != fresh:
                stale.append(match["name"])
            return f"{match[1]}{fresh}{match[4]}"

        text = pattern.sub(renew, text)
    return text, stale


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrite README.md's generated blocks from results files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a block is stale")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="its folder is the repository's root")
    arguments = parser.parse_args()

    try:
        before = arguments.readme.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{arguments.readme}: there is no such file") from None
    after, stale = rewrite(before, arguments.readme.parent)
    if arguments.check and stale:
        names = ", ".join(f"'{name}'" for name in stale)
        raise UserError(f"{arguments.readme}: stale: {names}; run python -m nxm.report.readme")
    if not arguments.check and after != before:
        write_text(arguments.readme, after)


if __name__ == "__main__":
    run(main)
