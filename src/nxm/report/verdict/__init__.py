"""The verdict on a study: are the results here those that are committed, and do the claims of the pages hold?

`nxm verify` compares what was made on this machine with what git has (`nxm.report.verdict.compare`) and judges every
claim by it (`nxm.report.claims`). `nxm verify --evidence` needs neither git nor training: it computes the
committed numbers again from the stored predictions (`nxm.report.verdict.recomputed`).

Nothing is changed but `.cache/verdict.json` (`evidence.json` of the latter) in the study's folder, which git ignores: a
verdict is about one machine and one moment. It is no output of the pipeline either, which would be stale with every
commit.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from nxm.errors import UserError
from nxm.files import write_json
from nxm.report import labels, page, statistics
from nxm.report.claims import Claim, claims, differences
from nxm.report.effects import Difference
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.verdict.committed import extract
from nxm.report.verdict.compare import Comparison
from nxm.report.verdict.provenance import Finding, Status
from nxm.report.verdict.recomputed import Recomputation
from nxm.study.settings import load_study
from nxm.study.studies import studies, study_folder

FILES = {"results": Path(".cache/verdict.json"), "evidence": Path(".cache/evidence.json")}  # below the study's folder
_PARTS = ("results", "params.yaml", "dvc.lock")  # of a study's folder, that are compared
_NUMBERS = {  # columns of the tables that are printed
    *("Score", "Committed", "Difference", "Noise"),
    *("Effect", "P(better)", "p", "p, adjusted", "Visible from"),
}
_QUIET = {Status.COMMITTED, Status.CHECKED, Status.UNCHECKED, Status.UNPLANNED, Status.TIMES}


@dataclass(frozen=True)
class Verdict:
    """The verdict on some studies.

    Attributes:
        commit: what the results were compared with; None: with nothing, as by `--evidence`.
        findings: the verdict on every file.
        claims: the verdict on every claim of the pages about these studies.
        differences: the differences between runs that the pages show.
        stopped: why claims could not be judged; empty if they were.
    """

    studies: tuple[str, ...]
    commit: str | None
    findings: tuple[Finding, ...]
    claims: tuple[Claim, ...] = ()
    differences: tuple[Difference, ...] = ()
    stopped: str = ""

    @property
    def failed_claims(self) -> list[Claim]:
        return [claim for claim in self.claims if not claim.holds]

    @property
    def good(self) -> bool:
        """True if no result differs beyond noise or cannot be trusted, and every claim holds."""
        return not self.failed_claims and not self.stopped and all(finding.status.good for finding in self.findings)

    @property
    def contradicts(self) -> bool:
        """True if repetitions of the committed runs came out differently: not merely other values, data or code."""
        different = any(finding.status is Status.DIFFERENT for finding in self.findings)
        comparable = all(finding.status.comparable for finding in self.findings)
        return different or (comparable and bool(self.failed_claims))

    @property
    def kind(self) -> str:
        """The object of the verdict: "results" made here, or the committed "evidence"."""
        return "evidence" if self.commit is None else "results"

    @property
    def made(self) -> list[Finding]:
        """The findings on results that are not the committed files themselves."""
        return [finding for finding in self.findings if finding.status is not Status.COMMITTED]


def verify(root: Path, names: Sequence[str] | None = None, against: str = "HEAD") -> Verdict:
    """Compare the results here with the committed ones, and judge the claims of the pages by them.

    Args:
        root: the repository's root.
        names: studies; None: all.
        against: the revision whose results are the committed ones.

    Raises:
        UserError: there is no git repository or no such revision, or a study or its settings are wrong.
    """
    names = _known(root, names)
    with tempfile.TemporaryDirectory(prefix="nxm-verify-") as folder, _working() as say:
        copy = Path(folder)
        say("reading what is committed")
        prefixes = {name: study_folder(root, name).relative_to(root).as_posix() for name in studies(root)}
        paths = [(Path(prefix) / part).as_posix() for prefix in prefixes.values() for part in _PARTS]
        commit = extract(root, against, paths, copy)
        findings: list[Finding] = []
        unchanged = set(prefixes)
        for name in names:
            say(f"comparing the results of {name}")
            prefix = "" if prefixes[name] == "." else f"{prefixes[name]}/"
            own = study_folder(root, name)
            comparison = Comparison(load_study(own / "params.yaml"), root, own, copy / prefixes[name], commit, prefix)
            found = comparison.findings()
            findings += found
            if any(finding.status is not Status.COMMITTED for finding in found):
                unchanged.discard(name)
        say("judging the claims of the pages")
        committed = functools.cache(lambda name: read_evidence(copy / prefixes[name]))
        here = functools.cache(lambda name: read_evidence(study_folder(root, name)))
        return _judged(
            root, names, commit, findings, committed, lambda name: committed(name) if name in unchanged else here(name)
        )


def verify_evidence(root: Path, names: Sequence[str] | None = None, *, download: bool = True) -> Verdict:
    """Compute the committed numbers of studies again from their stored predictions.

    Args:
        download: fetch labels of STS-B from the package index where they are not here.

    Raises:
        UserError: a study or its settings are wrong.
    """
    names = _known(root, names)
    findings: list[Finding] = []
    with _working() as say:
        for name in names:
            own = study_folder(root, name)
            checks = Recomputation(load_study(own / "params.yaml"), root, own, download)
            for finding in checks.findings():
                say(f"{name}: {finding.place}")
                findings.append(finding)
        say("rendering the pages")
        here = functools.cache(lambda name: read_evidence(study_folder(root, name)))
        findings += _pages(root, names, here)
        return _judged(root, names, None, findings, here, here)


def _known(root: Path, names: Sequence[str] | None) -> list[str]:
    if not (root / "dvc.yaml").is_file() or not (root / "params.yaml").is_file():
        raise UserError(f"{root}: no study here (dvc.yaml and params.yaml are missing); start in the repository's root")
    for name in names or ():
        study_folder(root, name)
    return list(names or studies(root))


def _judged(
    root: Path,
    names: Sequence[str],
    commit: str | None,
    findings: list[Finding],
    committed: Callable[[str], Evidence],
    here: Callable[[str], Evidence],
) -> Verdict:
    try:
        judged = [_unless_untrusted(claim, findings) for claim in claims(root, committed, here, names)]
        shown = differences(root, here, names)
    except UserError as error:
        return Verdict(tuple(names), commit, tuple(findings), stopped=str(error))
    return Verdict(tuple(names), commit, tuple(findings), tuple(judged), tuple(shown))


def _unless_untrusted(claim: Claim, findings: list[Finding]) -> Claim:
    """Return a claim as one that does not hold if a result of its study cannot be trusted."""
    results = [one for one in findings if one.study == claim.study and one.place.startswith("results/")]
    untrusted = [one.place for one in results if not one.status.trusted]
    if not claim.holds or not untrusted:
        return claim
    return dataclasses.replace(claim, holds=False, reason=f"it rests on {untrusted[0]}, which is not as it should be")


def _pages(root: Path, names: Sequence[str], read: Callable[[str], Evidence]) -> Iterator[Finding]:
    """Yield the verdict on the pages of studies; README and docs/ are the embedded study's."""
    for template, path in page.pages(root).items():
        study = studies(root)[0] if template.parent == root / "docs" else template.parent.name
        if study not in names:
            continue
        place = path.relative_to(root).as_posix()
        try:
            own = root if template.parent == root / "docs" else template.parent
            text = page.render(template, root, own, read, path)
        except UserError as error:
            yield Finding(study, place, Status.DAMAGED, f"it cannot be rendered: {error}")
            continue
        if not path.is_file():
            yield Finding(study, place, Status.MISSING)
        elif path.read_text(encoding="utf-8") != text:
            yield Finding(study, place, Status.EDITED, "not what its template and the results give")
        else:
            yield Finding(study, place, Status.CHECKED)


# --- words -----------------------------------------------------------------------------------------------------------


@contextmanager
def _working() -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        yield lambda words: progress.update(bar, description=words)


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict as tables: what was made or is wrong in a row each, what is as committed in a number."""
    terminal = Console()
    width = max(terminal.width, 100) if terminal.is_terminal else 160
    console = Console(highlight=False, markup=False, width=width)  # intervals are no markup
    for study in verdict.studies:
        _print_results(console, [finding for finding in verdict.findings if finding.study == study], study)
    _print_claims(console, verdict)
    if verdict.differences and (verdict.commit is None or verdict.made):
        _print_differences(console, verdict.differences)
    console.print(conclusion(verdict), style="" if verdict.good else "red")


def _print_results(console: Console, findings: list[Finding], study: str) -> None:
    if not findings:
        return
    counts = Counter(finding.status.value for finding in findings)
    console.print(f"study {study}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    rows = [finding for finding in findings if finding.status not in _QUIET]
    if rows:
        table = _table("Result", "Verdict", "Score", "Committed", "Difference", "Noise", "")
        for one in rows:
            gap = None if one.score is None or one.committed is None else one.score - one.committed
            cells = [one.place, one.status.value, _shown(one.score), _shown(one.committed), _shown(gap, "+.3f")]
            table.add_row(*cells, _shown(one.limit), one.words, style="" if one.status.good else "red")
        console.print(table)
    reasons = Counter(finding.words for finding in findings if finding.status is Status.UNCHECKED)
    for words, number in reasons.items():
        console.print(f"  not checked, {number} files: {words}")


def _print_claims(console: Console, verdict: Verdict) -> None:
    if verdict.stopped:
        console.print(f"claims: not judged: {verdict.stopped}", style="red")
        return
    changed = [claim for claim in verdict.claims if claim.committed != claim.made or not claim.holds]
    made = {finding.study for finding in verdict.made} if verdict.commit is not None else set()
    shown = [claim for claim in verdict.claims if claim in changed or claim.study in made]
    failed = len(verdict.failed_claims)
    console.print(
        f"claims of the pages: {len(verdict.claims)}, of which {len(verdict.claims) - len(changed)} are printed with "
        f"the same digits, {len(changed) - failed} hold with others, {failed} do not hold"
    )
    if shown:
        table = _table("Page", "Claim", "Committed", "Here", "May lie in", "")
        for claim in shown:
            state = "holds" if claim.holds else claim.reason
            allowed = "" if claim.low is None or claim.high is None else f"{claim.low:.1f} to {claim.high:.1f}"
            cells = [claim.place, claim.words, claim.committed, claim.made, allowed, state]
            table.add_row(*cells, style="" if claim.holds else "red")
        console.print(table)


def _print_differences(console: Console, shown: Sequence[Difference]) -> None:
    console.print("\ndifferences that the pages show, with the evidence for them:")
    table = _table("Study", "Runs", "On", "Points", "Effect", "P(better)", "p", "p, adjusted", "Visible from", "")
    for one in shown:
        table.add_row(
            one.study,
            f"{labels.run_label(one.run)} - {labels.run_label(one.rival)}",
            ", ".join(statistics.TASKS.get(task, task) for task in one.tasks),
            one.interval.text(),
            _shown(one.effect, "+.1f"),
            _shown(one.better),
            f"{one.p:.3f}",
            f"{one.adjusted:.3f}",
            f"{one.visible:.1f}",
            "" if one.interval.certain else "not shown",
        )
    console.print(table)
    console.print(
        "Effect: Hedges' g over seeds. P(better): with one more seed, the run is ahead. p: paired bootstrap; adjusted: "
        "for all differences of the study here, by the largest statistic. Visible from: the smallest true difference "
        "that these data show with a probability of 80 %."
    )


def conclusion(verdict: Verdict) -> str:
    """Return the last sentence of a verdict."""
    bad = [finding for finding in verdict.findings if not finding.status.good]
    faults = []
    if bad:
        counts = Counter(finding.status.value for finding in bad)
        kinds = ", ".join(f"{n} {status}" for status, n in counts.items())
        faults.append(
            f"{'1 file is not as it' if len(bad) == 1 else f'{len(bad)} files are not as they'} should be: {kinds}"
        )
    if failed := len(verdict.failed_claims):
        faults.append(f"{failed} {'claim does' if failed == 1 else 'claims do'} not hold")
    if verdict.stopped:
        faults.append("the claims could not be judged")
    if faults:
        return f"verdict: {'; '.join(faults)}"
    if verdict.commit is None:
        left = sum(finding.status is Status.UNCHECKED for finding in verdict.findings)
        rest = f"; {left} could not be checked here" if left else ""
        checked = sum(finding.status is Status.CHECKED for finding in verdict.findings)
        holding = f"{len(verdict.claims)} claims hold"
        return f"verdict: {checked} files are what the predictions and the code give{rest}; {holding}"
    advice = "(`make repro` makes them, `nxm verify --evidence` checks the committed ones)"
    if not verdict.made:
        return f"verdict: all results are the committed files: nothing was made here {advice}"
    repeated = sum(finding.repeats for finding in verdict.findings)
    if not repeated:
        return f"verdict: no training that is committed was made here {advice}"
    others = sum(finding.status is Status.COMMITTED for finding in verdict.findings)
    rest = f"; {others} files are the committed ones" if others else ""
    runs = "1 training made here agrees" if repeated == 1 else f"{repeated} trainings made here agree"
    return f"verdict: reproduced: {runs} with those of {verdict.commit[:7]} within noise{rest}; all claims hold"


def save_verdict(root: Path, verdict: Verdict) -> str | None:
    """Write the verdict into the folder of each study (FILES); return why that failed, None if it did not."""
    for study in verdict.studies:
        own = dataclasses.replace(
            verdict,
            studies=(study,),
            findings=tuple(finding for finding in verdict.findings if finding.study == study),
            claims=tuple(claim for claim in verdict.claims if claim.study == study),
            differences=tuple(one for one in verdict.differences if one.study == study),
        )
        if not own.findings and not own.claims:
            continue
        try:
            write_json(study_folder(root, study) / FILES[own.kind], described(own))
        except (UserError, OSError) as error:
            return f"the verdict is not saved: {error}"
    return None


def described(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain values for a file: every finding, claim and difference, and when it was made."""
    findings = [vars(finding) | {"status": finding.status.value} for finding in verdict.findings]
    return {
        "study": verdict.studies[0],
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": verdict.kind,
        "commit": verdict.commit,
        "good": verdict.good,
        "conclusion": conclusion(verdict),
        "findings": findings,
        "claims": [vars(claim) for claim in verdict.claims],
        "differences": [dataclasses.asdict(one) for one in verdict.differences],
        "stopped": verdict.stopped,
    }


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        number = column in _NUMBERS and columns[0] != "Page"  # there the numbers are words
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def _shown(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)
