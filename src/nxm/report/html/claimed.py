"""The claims of a study's pages, each with its interval, the evidence for it, and all that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nxm.errors import UserError
from nxm.report import claims, effects, labels, page, statistics
from nxm.report.evidence import Evidence
from nxm.report.forms import FORMS
from nxm.report.html.runs import anchor, name_of, slug
from nxm.report.page.deployed import DEPLOYED
from nxm.report.page.numbers import NUMBERS, number, tasks_of
from nxm.report.page.speeds import SPEEDS
from nxm.study.results import Result, place_of

_WORDS = {
    "points": "{0} minus {1}, in points",
    "above": "{0} minus {1}, in points",
    "retention": "{0} as a share of the score of {1}",
    "retention_interval": "{0} as a share of the score of {1}",
    "score": "{0}, score",
    "heldout": "{0} minus {1}, on held-out rows",
    "best_trial": "{0}, best held-out score of the search",
    "above_constant": "{0}, compared with the best constant answer",
    "examples": "{0}, training examples",
    "steps": "{0}, optimizer steps",
    "similarity": "{0}, least similarity of two consecutive masks",
    "outside": "{0}, weights that were outside the mask for a time",
    "targets": "{0}, weights of the target matrices",
    "left": "{0}, weights of the layers that are left",
}
_SHARES = ("retention", "retention_interval")
_TIMES = {  # numbers that another machine could not repeat, so that nothing judges them
    "time": "{0}, training time as a multiple of the dense model's",
    "deployed_gain": "Speed-up over dense in PyTorch fp32, {0} in {1}",
    "fastest_form": "Fastest form of {0}",
    "fastest_gain": "Speed-up over dense in PyTorch fp32, {0} in its fastest form",
    "fastest_share": "Score of {0} in its fastest form, compared with the dense one's",
    "deployed_point": "Batch and length of these speeds",
    "deployed_machine": "The machine of these speeds",
    "bench_machine": "The machine of the speeds",
    "product_gain": "Speed-up of the fastest 2:4 product, {0}, {1:,} × {2:,}, {3:,} tokens",
    "product_gains": "Speed-up of 2:4 products, {0}: the least and the most",
    "default_gains": "Speed-up of 2:4 products with cuSPARSELt's default algorithm, {0}: the least and the most",
    "way_gains": "Speed-up of products by the kernel {1}, {0}: the least and the most",
    "product_rate": "Highest rate of {1} products, {0}, in TFLOP/s",
    "encoder_gain": "Speed-up over dense BF16, {0}, {1} × {2} tokens, {3}, {4}, {5}",
    "encoder_energy": "Energy compared with dense BF16, {0}, {1} × {2} tokens, {3}, {4}",
    "proven_encoders": "2:4 encoders that launched one sparse kernel per packed matrix",
    "packed_share": "Bytes of a packed BF16 matrix, compared with the dense one's",
    "block_gains": "Speed-up of block-sparse products, blocks of {0}, about {1:.0%} left: the least and the most",
    "block_shares": "Weights left in these products, blocks of {0}, about {1:.0%}: the least and the most",
}


@dataclass(frozen=True)
class Source:
    """A place that a claim was made from: a row of this page, or a file of the repository."""

    words: str
    link: str


@dataclass(frozen=True)
class Row:
    """A claim.

    Attributes:
        value: as the page prints it; empty if it cannot be computed, for which `gap` is the reason.
        interval: the 95 % interval; empty where there is none.
        cells: the evidence for a difference, under the headings of `effects.EXPLAINED`.
        pages: the pages that make the claim.
        runs: the rows of the trainings that it was computed from.
        scripts, values: files of the repository.
        seconds: the time of these trainings together.
    """

    anchor: str
    words: str
    on: str
    value: str
    interval: str
    certain: bool | None
    cells: dict[str, str]
    pages: tuple[Source, ...]
    runs: tuple[Source, ...]
    scripts: tuple[Source, ...]
    values: tuple[Source, ...]
    seconds: float
    machines: tuple[str, ...]
    gap: str = ""


def templates(root: Path, study: str) -> list[Path]:
    """Return the templates whose numbers a report judges: those of README and docs/, and the study's own page."""
    return [path for path in page.pages(root) if path.parent == root / "docs" or path.parent.name == study]


def rows(root: Path, evidence: Evidence) -> list[Row]:
    """Return the claims about a study, each once, with all places that make it."""
    own = templates(root, evidence.study)
    read = {evidence.study: evidence}.__getitem__
    shown = {(one.run, one.rival, one.tasks): one for one in claims.differences(root, read, [evidence.study], own)}
    found: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Row] = {}
    for call, (name, runs, task) in claims.numbers(root, read, [evidence.study], own):
        shown_on = page.pages(root)[call.template].relative_to(root).as_posix()
        place = Source(shown_on, link(evidence, shown_on))
        try:
            tasks = tuple(tasks_of(name, evidence, runs, task))
            text = number(name, evidence, runs, task)
        except (LookupError, UserError):
            row = _gap(evidence, name, runs, task, place)
            found.setdefault((name, tuple(runs), (row.on,)), row)
            continue
        name = {"above": "points", "retention_interval": "retention"}.get(name, name)
        key = (name, tuple(runs), tasks)
        if key in found:
            before = found[key]
            pages = before.pages if place in before.pages else (*before.pages, place)
            found[key] = replace(before, pages=pages)
        else:
            found[key] = _row(root, evidence, name, runs, list(tasks), text, place, shown)
    return list(found.values())


@dataclass(frozen=True)
class Time:
    """A time or speed that pages state: measured once, and judged by nobody."""

    words: str
    value: str
    pages: tuple[Source, ...]
    sources: tuple[Source, ...]


def times(root: Path, evidence: Evidence) -> list[Time]:
    """Return the times and speeds of a study that its pages state, each once. Those that cannot be computed say so."""
    found: dict[str, Time] = {}
    for template in templates(root, evidence.study):
        for call in page.calls(template, root):
            if call.study != evidence.study or call.function not in _TIMES:
                continue
            shown_on = page.pages(root)[template].relative_to(root).as_posix()
            place = Source(shown_on, link(evidence, shown_on))
            try:
                time = _time(root, evidence, call, place)
            except UserError:
                words = call.function.replace("_", " ").capitalize()
                time = Time(words, f"cannot be computed: {_NOT_THERE}", (place,), ())
            before = found.setdefault(time.words, time)
            if place not in before.pages:
                found[time.words] = replace(before, pages=(*before.pages, place))
    return list(found.values())


def _time(root: Path, evidence: Evidence, call: page.Call, place: Source) -> Time:
    if call.function in NUMBERS:
        runs = [str(run) for run in call.arguments]
        value = number(call.function, evidence, runs, call.task)
        own = tasks_of(call.function, evidence, runs, call.task)
        results = [one for run in (*runs, "dense") for one in _results(evidence, call.function, run, own)]
        words = f"{_TIMES[call.function].format(*map(labels.run_label, runs))} ({_on(own, evidence)})"
        return Time(
            words, value, (place,), tuple(Source(_seed(evidence, one), f"#{anchor(place_of(one))}") for one in results)
        )
    if call.function in DEPLOYED:
        return _deployed(evidence, call, place)
    value = SPEEDS[call.function](evidence, *call.arguments)
    shown = [_FORMS.get(str(each), each) for each in (*call.arguments, "compiled")]
    files = [f"results/bench/{file['device']}.json" for file in evidence.bench if file.get("rows")]
    sources = [*(Source(file, file) for file in files), Source("stages/bench.py", link(evidence, "stages/bench.py"))]
    return Time(_TIMES[call.function].format(*shown), value, (place,), tuple(sources))


def _deployed(evidence: Evidence, call: page.Call, place: Source) -> Time:
    model, *form = call.arguments or ("",)
    way, dtype = (*form, *("eager", "fp32")[len(form) :])
    words = _TIMES[call.function].format(labels.run_label(str(model)), FORMS.get((way, dtype), (f"{way} {dtype}",))[0])
    files = [f"results/deployment/{file['device']}.json" for file in evidence.deployment if file["rows"]]
    stage = Source("stages/deployment.py", link(evidence, "stages/deployment.py"))
    value = DEPLOYED[call.function](evidence, *call.arguments)
    return Time(words, value, (place,), (*(Source(file, file) for file in files), stage))


_FORMS = {"bf16": "BF16", "fp16": "FP16", "fp8": "FP8", "int8": "INT8", "captured": "compiled in a CUDA graph"}


def _row(
    root: Path,
    evidence: Evidence,
    name: str,
    runs: list[str],
    tasks: list[str],
    text: str,
    place: Source,
    shown: dict[effects.Comparison, effects.Difference],
) -> Row:
    involved = [*runs, "dense"] if name in _SHARES and len(runs) == 1 else list(runs)
    results = [one for run in involved for one in _results(evidence, name, run, tasks)]
    interval, certain, difference = "", None, None
    if name in claims.DIFFERENCES:
        measured = claims.measure(name, evidence, runs, tasks)
        difference = shown.get((runs[0], runs[1], tuple(tasks)))
        text, interval, certain = (
            f"{measured.value:+.1f}",
            _interval(measured.low, measured.high, "+.1f"),
            measured.certain,
        )
    elif name in _SHARES:
        measured = claims.measure(name, evidence, runs, tasks)
        text, interval = statistics.percent(measured.value), _interval(measured.low, measured.high, ".1f")
    elif name == "score" and (drawn := statistics.score_interval(evidence, runs[0], tasks)):
        interval = _interval(*drawn, ".1f")
    return Row(
        anchor="claim-" + slug(" ".join([name, *runs, *tasks])),
        words=_words(name, runs),
        on=_on(tasks, evidence),
        value=text,
        interval=interval,
        certain=certain,
        cells=effects.texts(difference),
        pages=(place,),
        runs=tuple(Source(_seed(evidence, one), f"#{anchor(place_of(one))}") for one in results),
        scripts=tuple(_scripts(root, evidence, results, bool(interval))),
        values=(Source("values of the study", "params.yaml"), Source("values of each training", "values.json")),
        seconds=sum(one.wall_seconds for one in results),
        machines=tuple(sorted({statistics.machine_text(one.provenance.machine.model_dump()) for one in results})),
    )


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"


_NOT_THERE = "the results do not have it"


def _gap(evidence: Evidence, name: str, runs: Sequence[str], task: object, place: Source) -> Row:
    """Return a claim that the results cannot confirm, with the reason in words."""
    lacking = [labels.run_label(run) for run in runs if not _results(evidence, name, run, list(statistics.TASKS))]
    reason = f"no result of {statistics.listed(lacking)} yet" if lacking else _NOT_THERE
    on = _on([task] if isinstance(task, str) else list(task) if isinstance(task, list) else [], evidence)
    anchor_ = "claim-" + slug(" ".join([name, *runs, on]))
    empty = effects.texts(None)
    words = _words(name, runs)
    return Row(anchor_, words, on, "", "", None, empty, (place,), (), (), (), 0.0, (), gap=reason)


def _words(name: str, runs: Sequence[str]) -> str:
    shown = [labels.run_label(run) for run in runs]
    return _WORDS[name].format(*shown, *(["the dense model"] if name in _SHARES and len(runs) == 1 else []))


def _on(tasks: Sequence[str], evidence: Evidence) -> str:
    names = [statistics.TASKS.get(task, task) for task in tasks]
    if len(names) < 2:
        return "".join(names)
    whole = set(tasks) == {run.task for run in statistics.whole_runs(evidence.results)}
    return f"all {len(names)} tasks (geometric mean)" if whole else f"geometric mean over {statistics.listed(names)}"


def _results(evidence: Evidence, name: str, run: str, tasks: list[str]) -> list[Result]:
    if name == "best_trial":
        own = [one for one in statistics.trials_of(evidence.results) if one.name == run]
    else:
        own = statistics.runs_of(evidence.results, run)
    return [one for one in own if one.task in tasks]


def _seed(evidence: Evidence, result: Result) -> str:
    return f"{name_of(evidence, result)}, {statistics.TASKS.get(result.task, result.task)}, seed {result.seed}"


def _scripts(root: Path, evidence: Evidence, results: list[Result], drawn: bool) -> list[Source]:
    """Return the scripts that trained, and the one that drew the intervals."""
    study = evidence.settings
    methods = [study.run(one.name, one.task).method for one in results] if study is not None else []
    files = [
        "stages/train.py",
        *(f"src/nxm/methods/{method}/algorithm.py" for method in dict.fromkeys(methods) if method),
    ]
    files += ["src/nxm/study/bootstrap.py"] * drawn
    return [Source(file, link(evidence, file)) for file in files if (root / file).is_file()]


def link(evidence: Evidence, file: str) -> str:
    """Return the link from a study's report to a file of the repository."""
    up = evidence.settings.root if evidence.settings is not None else "."
    return file if up == "." else f"{up}/{file}"
