"""Pages: their numbers are those of the results files, their links work, their snippets run as printed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import smoke_source
from nxm import report
from nxm.errors import UserError
from nxm.report import page, paper, statistics
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.page import blocks
from nxm.report.page.numbers import NUMBERS, number
from nxm.study.results import place_of, result_path, write_result
from synthetic_study import EMPTY, PLUS, ROOT, VARIANTS, make_ablation, make_deployment, make_result, make_study

TEXTS = sorted({ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "studies").glob("*/README.md")})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The embedded study and one in studies/, each with a template."""
    make_study(tmp_path)
    make_ablation(tmp_path / "studies" / "ablation")
    (tmp_path / "docs").mkdir()
    (tmp_path / "studies" / "ablation" / "study.yaml").touch()
    (tmp_path / "docs" / "README.md.j2").write_text(
        '# nxm\n\n{{ headline() }}\n\nNxM is {{ above("nxm", "asp") }}.\n{{ table("table1") }}\n'
    )
    (tmp_path / "studies" / "ablation" / "findings.md.j2").write_text('{{ score("nxm_plus/no-teacher") }}\n')
    return tmp_path


def render(root: Path, text: str) -> str:
    template = root / "docs" / "page.md.j2"
    template.parent.mkdir(exist_ok=True)
    template.write_text(text)
    return page.render(template, root, root).partition("\n\n")[2]


# --- the repository's own pages ------------------------------------------------------------------------------------


def test_no_page_is_stale() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in page.stale_pages(ROOT)] == []


def test_the_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_exist(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_headings_that_a_page_names_exist(path: Path) -> None:
    for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        target = path.parent / file if file else path
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{file}#{anchor}"


def _snippets() -> list[tuple[str, str]]:
    files = [ROOT / "README.md", ROOT / "docs" / "method.md"]
    return [
        (file.name, snippet)
        for file in files
        for snippet in re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    ]


@pytest.mark.parametrize(("name", "snippet"), _snippets(), ids=["callback", "teacher"])
def test_the_snippets_run_as_printed(name, snippet, tmp_path, monkeypatch) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

    from nxm import NM, find_targets

    assert len(snippet.strip().splitlines()) < 10
    smoke_source.write(tmp_path / "source", tasks=())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source" / "weights")
    rows = [tokenizer("cat sits" if i % 2 else "old dog runs") | {"labels": i % 2} for i in range(64)]
    model, dense = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "source" / "weights", num_labels=2)
        for _ in range(2)
    )
    names = {
        "model": model,
        "dense": dense,
        "tokenizer": tokenizer,
        "train_dataset": Dataset.from_list(rows),
        "args": TrainingArguments(
            output_dir=str(tmp_path / "out"), num_train_epochs=4, report_to="none", disable_tqdm=True, use_cpu=True
        ),
    }
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, name, "exec"), names)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse-model")
    assert all(NM(2, 4).contains(W) for W in find_targets(saved).values())


# --- templates -----------------------------------------------------------------------------------------------------


def test_pages_are_written_once_and_then_not_stale(repository: Path) -> None:
    expected = [repository / "README.md", repository / "studies" / "ablation" / "README.md"]
    assert page.stale_pages(repository) == expected
    assert page.write_pages(repository) == expected
    assert page.write_pages(repository) == page.stale_pages(repository) == []
    text = expected[0].read_text()
    assert text.startswith("<!-- Generated from docs/README.md.j2 and the results files.")
    assert "\n# nxm\n\nOn STS-B (1,500" in text
    evidence = read_evidence(repository)
    assert f"NxM is {number('above', evidence, ['nxm', 'asp'])}.\n**Table 1." in text


def test_a_changed_result_makes_its_page_stale(repository: Path) -> None:
    page.write_pages(repository)
    run = make_result(score=11.0)
    write_result(result_path(repository, place_of(run)), run)
    assert page.stale_pages(repository) == [repository / "README.md"]


def test_a_template_takes_its_own_study_and_any_other_by_name(repository: Path) -> None:
    (repository / "studies" / "ablation" / "findings.md.j2").write_text(
        '{{ score("nxm_plus") }} {{ score("nxm", study="embedded") }}'
    )
    page.write_pages(repository)
    own, other = (read_evidence(folder).results for folder in (repository / "studies" / "ablation", repository))
    scores = [statistics.task_score(own, "nxm_plus", "stsb").mean, statistics.task_score(other, "nxm", "stsb").mean]
    text = (repository / "studies" / "ablation" / "README.md").read_text()
    assert text.endswith(" ".join(f"{score:.1f}" for score in scores))


def test_a_study_without_results_has_none_to_show(tmp_path: Path) -> None:
    (tmp_path / "studies" / "new").mkdir(parents=True)
    (tmp_path / "studies" / "new" / "study.yaml").touch()
    text = '{{ headline(study="new") }} {{ table("table1", study="new") }} {{ timing(study="new") }}'
    assert render(tmp_path, text) == " ".join(["Study new has no results yet."] * 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{{ gain("nxm") }}', "'gain' is undefined; known: above,"),
        ("{{ missing }}", "'missing' is undefined"),
        ('\n{{ score("nxm") ', "docs/page.md.j2:2: "),
        ('\n\n{{ score("nxm", study="none") }}', ":3: there is no study 'none'; known are embedded, ablation"),
        ('{{ score("nxn") }}', "no run of nxn; it has dense, "),
        ('{{ score("nxm_plus/no-such", study="ablation") }}', "it has nxm_plus/no-teacher and nxm_plus/permuted"),
        ('{{ score("nxm", task="rte") }}', "the study has no task rte; it has stsb"),
        ('{{ points("nxm") }}', "missing a required argument: 'rival'"),
        ('{{ score("nxm", "asp") }}', "too many positional arguments"),
        ('{{ heldout("nxm", "asp") }}', "heldout(\"nxm\", \"asp\") of study embedded: it was not measured"),
        ('{{ retention_interval("nxm") }}', "it was not measured"),
        ('{{ best_trial("dense") }}', "no trial of dense on stsb has a held-out score"),
        ('{{ above_constant("nxm") }}', "was not measured on stsb"),
        ('{{ similarity("asp") }}', "asp has no ADMM iterations"),
        ('{{ paper_points("nxm", "distil_nxm_kd") }}', "the paper has no distil_nxm_kd; it has dense,"),
        ('{{ score("nxm", task="all") }}', "the study has no task all"),
        ('{{ table("table9") }}', "table9"),
        ('{{ headline("nxm") }}', "headline: too many positional arguments"),
        ('{{ verdict_table(["dense", "nxm_plus"]) }}', "no run of nxm_plus on stsb"),
    ],
)  # fmt: skip
def test_an_error_names_the_line_and_what_would_be_right(repository: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        render(repository, text)
    assert str(caught.value).startswith("docs/page.md.j2:")


def test_a_missing_template_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"docs/no.md.j2: there is no such template"):
        page.render(tmp_path / "docs" / "no.md.j2", tmp_path, tmp_path)


def test_links_are_relative_to_the_page() -> None:
    text = "[a](../README.md) ![b](t.md#x) [c](https://example.org/x) [d](#here)"
    moved = page.relink(text, Path("studies/glue/paper_tables"), Path("docs"))
    expected = "[a](../studies/glue/README.md) ![b](../studies/glue/paper_tables/t.md#x)"
    assert moved == f"{expected} [c](https://example.org/x) [d](#here)"


# --- numbers -------------------------------------------------------------------------------------------------------


def test_a_number_is_what_the_table_of_the_ablation_shows(ablation: Evidence) -> None:
    shown = report.load("tables", "table_ablation").make(ablation).numbers
    row = shown[(shown["task"] == "stsb") & (shown["run"] == "nxm_plus") & (shown["variant"] == "no-teacher")].iloc[0]
    pair, own = ["nxm_plus/no-teacher", "nxm_plus"], ["nxm_plus/no-teacher"]
    assert number("points", ablation, pair, "stsb") == f"{row['difference']:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    assert number("score", ablation, own, "stsb") == f"{row['mean']:.1f}"
    assert number("retention", ablation, own, "stsb") == f"{row['kept']:.1f} %"
    dense = [run.train_seconds for run in statistics.runs_of(ablation.results, "dense") if run.task == "stsb"]
    assert number("time", ablation, own, "stsb") == f"{row['seconds'] * len(dense) / sum(dense):.2f}"
    low, high = number("retention_interval", ablation, ["nxm_plus"], "stsb").removesuffix(" %").split(" to ")
    value = number("retention", ablation, ["nxm_plus"], "stsb").removesuffix(" %")
    assert float(low) <= float(value) <= float(high)


def test_a_number_without_a_task_is_the_geometric_mean(ablation: Evidence) -> None:
    mean = statistics.average_score(ablation.results, "nxm_plus", ["cola", "stsb"]).mean
    assert number("score", ablation, ["nxm_plus"]) == number("score", ablation, ["nxm_plus"], ["stsb", "cola"])
    assert number("score", ablation, ["nxm_plus"]) == f"{mean:.1f}"
    variants = ["nxm_plus/no-teacher", "nxm_plus/permuted"]
    points = statistics.difference(ablation, *variants, ["cola", "stsb"])
    assert number("points", ablation, variants) == points.text(".1f")


def test_a_number_over_some_tasks_leaves_the_others_out(many: Evidence) -> None:
    some = statistics.average_score(
        [run for run in many.results if run.task != "cola"], "nxm", ["mnli_m", "mnli_mm", "stsb"]
    )
    assert number("score", many, ["nxm"], ["mnli", "stsb"]) == f"{some.mean:.1f}"


def test_a_number_in_words_holds_whichever_is_ahead(ablation: Evidence) -> None:
    ahead = number("above", ablation, ["nxm_plus", "asp_plus"], "stsb")
    assert ahead.endswith(" above")
    assert number("above", ablation, ["asp_plus", "nxm_plus"], "stsb") == ahead.replace("above", "below")
    assert number("heldout", ablation, ["asp_plus", "nxm_plus"], "stsb").endswith(" below")
    assert number("above", ablation, ["nxm_plus", "nxm_plus"], "stsb") == "level [0.0, 0.0]"
    without = replace(ablation, bootstrap={})
    assert number("above", without, ["nxm_plus", "asp_plus"], "stsb") == re.sub(r" \[.*\]", "", ahead)


def test_the_numbers_of_admm_come_from_its_iterations(many: Evidence) -> None:
    own = [run for run in statistics.runs_of(many.results, "nxm") if run.task == "cola"]
    least = min(iteration.similarity for run in own for iteration in run.admm.iterations if iteration.similarity)
    assert 0 <= 100 * least - float(number("similarity", many, ["nxm"], "cola").removesuffix(" %")) < 0.01
    counts = [sum(swap.count for swap in run.admm.swaps[1:-1]) for run in own]
    assert number("outside", many, ["nxm"], "cola") == f"{round(sum(counts) / len(counts), -2):,.0f}"
    assert number("targets", many, ["nxm"]) == "10.6 M"
    assert number("steps", many, ["nxm"], "cola") == "470"
    assert number("examples", many, ["nxm"], "cola") == "1,500"


def test_the_papers_numbers_are_over_the_studys_tasks_or_all(many: Evidence) -> None:
    assert number("paper_points", many, ["nxm", "asp"], "all") == "1.7 points above"
    assert number("paper_retention", many, ["nxm"], "all") == "98.4 %"
    columns = ["mnli_m", "mnli_mm", "cola", "stsb"]
    share = 100 * paper.average("nxm", columns) / paper.average("dense", columns)
    assert number("paper_retention", many, ["nxm"]) == f"{share:.1f} %"


def test_the_constant_answer_and_the_best_trial(many: Evidence) -> None:
    floors = replace(many, floors={"cola": 3.0})
    assert (
        number("above_constant", floors, ["nxm"], "cola")
        == f"{float(number('score', many, ['nxm'], 'cola')) - 3:.1f} points above"
    )
    trials = [run for run in statistics.trials_of(many.results) if (run.name, run.task) == ("nxm", "cola")]
    assert number("best_trial", many, ["nxm"], "cola") == f"{max(run.heldout.value for run in trials):.1f}"
    with pytest.raises(UserError, match="needs one task"):
        number("best_trial", many, ["nxm"])


def test_every_number_is_documented() -> None:
    from nxm.report.page import numbers

    assert all(f"{name}(" in (numbers.__doc__ or "") for name in NUMBERS)
    assert all(f"{name}(" in (blocks.__doc__ or "") for name in blocks.BLOCKS)


# --- blocks --------------------------------------------------------------------------------------------------------


def evidence(**scores: list[float]) -> Evidence:
    """Runs on STS-B with these scores by seed."""
    runs = [
        make_result(run=run, seed=seed, score=value)
        for run, by_seed in scores.items()
        for seed, value in enumerate(by_seed, start=1)
    ]
    return Evidence("embedded", runs, None)


@pytest.mark.parametrize(
    ("nxm", "expected"),
    [
        ([80.0], "NxM is 4.0 points above ASP"),
        ([70.0], "NxM does not beat ASP: it is 6.0 points below"),
        ([76.01], "NxM does not beat ASP: they are level"),
    ],
)
def test_the_headline_holds_whichever_is_ahead(nxm: list[float], expected: str) -> None:
    text = blocks.headline(evidence(dense=[84.0], asp=[76.0], nxm=nxm))
    assert expected in text
    assert f"NxM retains **{100 * nxm[0] / 84:.1f} %** of the dense score" in text
    assert f"ASP **{100 * 76 / 84:.1f} %**" in text


def test_the_headline_counts_seeds() -> None:
    text = blocks.headline(evidence(dense=[84.0, 84.0], asp=[76.0, 80.0], nxm=[80.0, 79.0]))
    assert "NxM is 1.5 points above ASP, ahead in 1 of 2 seeds" in text


def test_the_headline_claims_nothing_without_all_three() -> None:
    assert "no result of ASP yet" in blocks.headline(evidence(dense=[84.0], nxm=[80.0]))
    assert blocks.headline(EMPTY) == blocks.mean(EMPTY) == "Study empty has no results yet."


def test_the_headline_ends_with_the_geometric_mean_of_several_tasks(many: Evidence) -> None:
    lines = blocks.headline(many).splitlines()
    assert len(lines) == len(statistics.tasks_of(many.results)) + 1
    columns = statistics.columns_of(statistics.whole_runs(many.results))
    means = {run: statistics.average_score(many.results, run, columns) for run in ("dense", "nxm", "asp")}
    tasks = statistics.listed(statistics.TASKS[task] for task in statistics.tasks_of(many.results))
    assert lines[-1].startswith(f"- Geometric mean over {tasks}, seed")
    assert blocks.mean(many) == lines[-1].removeprefix("- ")
    assert f"NxM retains **{100 * means['nxm'].mean / means['dense'].mean:.1f} %** of the dense score" in lines[-1]
    theirs = {run: paper.average(run, columns) for run in ("dense", "nxm", "asp")}
    assert f"same tasks, whole: {100 * theirs['nxm'] / theirs['dense']:.1f} %" in lines[-1]
    assert "points above ASP" in lines[-1] or "does not beat ASP" in lines[-1]


def test_nxm_plus_is_compared_with_its_best_rival_and_the_dense_model_with_the_same_extras(ablation: Evidence) -> None:
    """In the synthetic study that rival is ASP+."""
    names = ("dense", "nxm_plus", "asp_plus", "dense_plus")
    scores = {name: statistics.task_score(ablation.results, name, "stsb") for name in names}
    share = {name: 100 * scores[name].mean / scores["dense"].mean for name in names}
    _, stsb, both = blocks.best(ablation).splitlines()
    assert f"NxM+ retains **{share['nxm_plus']:.1f} %** of the dense score" in stsb
    assert f"ASP+ **{share['asp_plus']:.1f} %** ({scores['asp_plus']})" in stsb
    assert f"NxM+ is {scores['nxm_plus'].mean - scores['asp_plus'].mean:.1f} points above ASP+, ahead in 2 of 2" in stsb
    of_plus = 100 * scores["nxm_plus"].mean / scores["dense_plus"].mean
    assert stsb.endswith(f"has {scores['dense_plus']}; of that NxM+ retains **{of_plus:.1f} %**.")
    assert both.startswith("- Geometric mean over CoLA and STS-B")
    assert blocks.best_mean(ablation) == both.removeprefix("- ")


def test_without_a_rival_nxm_plus_is_compared_with_nxm() -> None:
    plus = evidence(dense=[84.0, 84.0], nxm_plus=[83.0, 83.0])
    assert "no result of NxM yet" in blocks.best(plus)
    assert "points above NxM, ahead in 2 of 2" in blocks.best(
        evidence(dense=[84.0, 84.0], nxm_plus=[83.0, 83.0], nxm=[80.0, 80.0])
    )
    assert "no run of NxM+ yet" in blocks.best(EMPTY)


def test_the_verdict_table_has_a_row_per_run(ablation: Evidence) -> None:
    head, _, dense, plus = blocks.verdict_table(ablation, ["dense", "nxm_plus"]).splitlines()
    assert head == "| Run | Score | % of dense | 95 % interval |"
    assert dense.startswith("| Dense | ")
    assert dense.endswith(" | 100.0 | – |")
    score = statistics.method_score(ablation.results, "nxm_plus", ["cola", "stsb"])
    share, interval = (number(name, ablation, ["nxm_plus"]) for name in ("retention", "retention_interval"))
    assert plus == f"| NxM+ | {score} | {share} | {interval} |".replace(" %", "")


def test_the_ablation_is_shown_without_its_cost(ablation: Evidence) -> None:
    lines = blocks.ingredients(ablation).splitlines()
    assert len(lines) == 2 + 3 * (len(PLUS) + len(VARIANTS))
    assert lines[0].startswith("| Task ")
    assert "Memory" not in lines[0]
    assert "has no ablation" in blocks.ingredients(EMPTY)


def test_the_speed_block_reports_what_was_measured_its_cost_and_what_is_absent() -> None:
    files = make_deployment()
    for score in files[0]["scores"]:
        score["score"] -= 0.4 * (score["dtype"] == "int8") * (1 if score["model"] == "nxm" else 2)
    absent = {"device": "cuda", "absent": "no CUDA device", "rows": [], "scores": []}
    text = blocks.speed(Evidence("embedded", [], None, deployment=[files[0], absent]))
    assert "32 × 128 tokens" in text
    assert "in other forms: PyTorch bf16 1.50 and ONNX INT8 2.50 (score -0.8 to -0.4);" in text
    assert "PyTorch fp32: NxM 1.00, Student, dense 2.00 and Student, NxM 2.00." in text
    assert "- CUDA: not measured (no CUDA device)." in text
    assert "NxM, PyTorch bf16, 2:4 25.00" in blocks.speed(Evidence("embedded", [], None, deployment=files))
    assert blocks.speed(EMPTY) == "Study empty has no form measured yet."


def test_a_mean_of_draws_makes_an_interval() -> None:
    """The interval of the retention is that of the draws' ratio."""
    runs = evidence(dense=[80.0], nxm=[76.0])
    draws = np.linspace(-1.0, 1.0, 101, dtype=np.float32)[:, None]
    bootstrap = {"stsb": {"dense": np.full_like(draws, 80.0), "nxm": 76.0 + draws}}
    text = number("retention_interval", replace(runs, bootstrap=bootstrap), ["nxm"])
    low, high = (float(value) for value in text.removesuffix(" %").split(" to "))
    assert low == pytest.approx(100 * 75.05 / 80, abs=0.1)
    assert high == pytest.approx(100 * 76.95 / 80, abs=0.1)
