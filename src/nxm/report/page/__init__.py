"""Pages: README.md and the studies' findings, rendered from Jinja templates whose numbers come from results files.

| template                        | page                      |
|---------------------------------|---------------------------|
| docs/README.md.j2               | README.md                 |
| docs/<name>.md.j2               | docs/<name>.md            |
| studies/<name>/findings.md.j2   | studies/<name>/README.md  |

A template is Markdown with calls such as `{{ above("nxm_plus", "gmp_plus", task="stsb") }}`. `nxm.report.page.numbers`
lists the functions that return a number for a sentence, `nxm.report.page.speeds` and `nxm.report.page.deployed` those
that return speeds, and `nxm.report.page.blocks` those that return sentences and tables. Each takes `study=`; without it
the evidence is that of the template's own study, which in docs/ is the embedded study.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateSyntaxError, UndefinedError, nodes

from nxm import report
from nxm.errors import UserError
from nxm.files import write_text
from nxm.report.evidence import Evidence, read_evidence
from nxm.report.page.blocks import BLOCKS, NO_RESULTS
from nxm.report.page.deployed import DEPLOYED
from nxm.report.page.numbers import NUMBERS, number
from nxm.report.page.speeds import SPEEDS
from nxm.study.studies import MAIN, study_folder

_LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)\s]+)(?=\))")


def pages(root: Path) -> dict[Path, Path]:
    """Every template below the repository's root, with the page that is rendered from it."""
    found = {template: template.with_suffix("") for template in sorted((root / "docs").glob("*.md.j2"))}
    if (readme := root / "docs" / "README.md.j2") in found:
        found[readme] = root / "README.md"
    findings = sorted((root / "studies").glob("*/findings.md.j2"))
    return found | {template: template.parent / "README.md" for template in findings}


@dataclass(frozen=True)
class Call:
    """A call of a function in a template: its line, and the study whose evidence it takes."""

    template: Path
    line: int
    function: str
    arguments: tuple[Any, ...]
    task: str | list[str] | None
    study: str


def calls(template: Path, root: Path) -> Iterator[Call]:
    """Yield the calls of a template, in its order.

    Raises:
        UserError: the template is not valid, or an argument is not written out in it.
    """
    own = MAIN if template.parent == Path(root) / "docs" else template.parent.name
    name = os.path.relpath(template, root)
    try:
        parsed = Environment(autoescape=False).parse(template.read_text(encoding="utf-8"))  # noqa: S701  as `render`
    except TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: {error.message}") from None
    for call in parsed.find_all(nodes.Call):
        try:
            arguments = tuple(argument.as_const() for argument in call.args)
            named = {keyword.key: keyword.value.as_const() for keyword in call.kwargs}
        except nodes.Impossible:
            raise UserError(f"{name}:{call.lineno}: its arguments must be written out") from None
        function = call.node.name if isinstance(call.node, nodes.Name) else ""
        yield Call(template, call.lineno, function, arguments, named.get("task"), named.get("study", own))


def evidence_of(root: Path, study: str) -> Evidence:
    """Return the evidence of a study. Raises UserError for an unknown one, and as `read_evidence` does."""
    return read_evidence(study_folder(root, study))


def render(
    template: Path, root: Path, folder: Path, read: Callable[[str], Evidence] | None = None, page: Path | None = None
) -> str:
    """Render a template as Markdown.

    Args:
        template: a file that ends in .md.j2.
        root: the repository's root.
        folder: the folder of the study whose evidence is the default: `root` or studies/<name>.
        read: the evidence of a study by its name; by default `evidence_of`.
        page: where the text will be written, for the links in it; by default what `pages` says.

    Raises:
        UserError: the template is missing or not valid, or it names a function, study, run or task that does not
            exist or a number that was not measured. The message gives the template and the line.
    """
    root, template = Path(root), Path(template)
    read = read or functools.cache(functools.partial(evidence_of, root))
    page = page or pages(root).get(template, template.with_suffix(""))
    name = os.path.relpath(template, root)
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  the output is Markdown
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    study = MAIN if folder.resolve() == root.resolve() else folder.name
    environment.globals = {**_functions(root, study, page.parent, read)}
    if not template.is_file():
        raise UserError(f"{name}: there is no such template")
    try:
        text = environment.get_template(template.name).render()
    except TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: {error.message}") from None
    except UndefinedError as error:
        known = ", ".join(sorted(environment.globals))
        raise UserError(f"{name}:{_line(error, template)}: {error.message}; known: {known}") from None
    except UserError as error:
        raise UserError(f"{name}:{_line(error, template)}: {error}") from None
    return f"<!-- Generated from {name} and the results files. Edit the template, not this page. -->\n\n{text}"


def write_pages(root: Path) -> list[Path]:
    """Render every template and write the pages that differ; returns these. Raises UserError as `render` does."""
    changed = _changed(Path(root))
    for page, text in changed.items():
        write_text(page, text)
    return list(changed)


def stale_pages(root: Path) -> list[Path]:
    """The pages that are missing or differ from what their templates and the results files now give.

    Raises UserError as `render` does.
    """
    return list(_changed(Path(root)))


def _changed(root: Path) -> dict[Path, str]:
    read = functools.cache(functools.partial(evidence_of, root))
    texts = {
        page: render(template, root, root if template.parent == root / "docs" else template.parent, read, page)
        for template, page in pages(root).items()
    }
    return {page: text for page, text in texts.items() if not page.is_file() or page.read_text("utf-8") != text}


def _functions(root: Path, study: str, place: Path, read: Callable[[str], Evidence]) -> dict[str, Callable[..., str]]:
    """Return the functions of templates by name; `study` is the default, `place` the folder of the page."""
    default = study

    def numbers(name: str) -> Callable[..., str]:
        def call(*runs: str, task: str | list[str] | None = None, study: str | None = None) -> str:
            return number(name, read(study or default), list(runs), task)

        return call

    def blocks(make: Callable[..., str]) -> Callable[..., str]:
        def call(*arguments: Any, study: str | None = None) -> str:
            evidence = read(study or default)
            _bind(make, evidence, *arguments)
            return make(evidence, *arguments)

        return call

    def table(name: str, study: str | None = None) -> str:
        make = report.load("tables", name).make
        evidence = read(study or default)
        if not evidence.results and not evidence.bench:
            return NO_RESULTS.format(evidence.study)
        own = study_folder(root, study or default) / "paper_tables"
        return relink(make(evidence).markdown().rstrip("\n"), own, place)

    return {
        **{name: numbers(name) for name in NUMBERS},
        **{name: blocks(make) for name, make in (BLOCKS | DEPLOYED | SPEEDS).items()},
        "table": table,
    }


def relink(text: str, source: Path, place: Path) -> str:
    """Markdown whose relative links, written for the folder `source`, are changed to work in the folder `place`."""
    return _LINK.sub(lambda link: Path(os.path.relpath(source / link[1], place)).as_posix(), text)


def _bind(function: Callable[..., str], *arguments: Any) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise UserError(f"{function.__name__}: {error}") from None


def _line(error: Exception, template: Path) -> int:
    """The template's line that raised an error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(template)]
    return lines[-1] if lines and lines[-1] else 1
