"""Figures as SVG that stands inside a page, with text as text, so that it can be searched, copied and read aloud.

The plot that reacts to the pointer is drawn by a script of our own (page.js, about 200 lines): plotly.js alone has more
than three times the bytes that a report may have.
"""

from __future__ import annotations

import inspect
import io
import re
from collections import Counter

import matplotlib
from markupsafe import Markup, escape

from nxm import report
from nxm.report import style
from nxm.report.evidence import Evidence

_ABSENT = {"Date": None, "Creator": None, "Format": None, "Type": None}
_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_GEOMETRY = re.compile(r' (?:d|x|y|transform|points|width|height)="[^"]*"')
_SIZE = re.compile(r' width="([\d.]+)pt" height="[\d.]+pt"')
_SCALE = 1.5  # pixels of the page per point of print: letters of 8 points have 12 pixels


def figure(evidence: Evidence, name: str) -> Markup:
    """Return a figure of the report as an <svg> element; equal input gives equal bytes on one machine."""
    module = report.load("figures", name)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the bytes
        # the salt makes identifiers the same at every drawing, and different in two figures of one page
        matplotlib.rcParams.update(style.RC | {"svg.fonttype": "none", "svg.hashsalt": name})
        drawn = module.draw(evidence)
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", metadata=_ABSENT)
    return inline(buffer.getvalue(), name, subject(name))


def subject(name: str) -> str:
    """Return the sentence with which a figure's module says what it draws."""
    lines = (inspect.getdoc(report.load("figures", name)) or name).partition("\n\n")[0]
    return " ".join(lines.split())


def inline(svg: str, name: str, label: str) -> Markup:
    """Return matplotlib's SVG document as an element of a page.

    Args:
        svg: the document.
        name: the prefix of the classes, which are the page's.
        label: the words for those who do not see it.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", body).replace(' version="1.1"', "")  # HTML knows them
    used = set(re.findall(r"#([\w-]+)", body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", body)
    body = _GEOMETRY.sub(lambda found: _NUMBER.sub(r"\1", " ".join(found[0].split())).join((" ", "")), body)
    body = body.replace("font-family: 'DejaVu Sans'", "font-family: 'DejaVu Sans', Verdana, sans-serif")
    body = re.sub(r">\s*\n\s*<", ">\n<", body)
    rules, body = _classes(body, name)
    body = _SIZE.sub(lambda found: f' width="{float(found[1]) * _SCALE:.0f}"', body, count=1)
    opening = f'<svg class="drawn" role="img" aria-label="{escape(label)}"'
    body = body.replace("<svg", opening, 1).replace(">", f">{rules}", 1)
    return Markup(body.strip())  # noqa: S704  matplotlib has escaped the texts


def _classes(svg: str, prefix: str) -> tuple[str, str]:
    """Return rules for the styles that several elements have, and the drawing with classes in their place.

    Each marker of a line repeats its style, which would be half of a report.
    """
    styles = Counter(re.findall(r' style="([^"]*)"', svg))
    names = {own: f"{prefix}-{at}" for at, own in enumerate(own for own, times in styles.items() if times > 1)}
    body = re.sub(
        r' style="([^"]*)"', lambda found: f' class="{names[found[1]]}"' if found[1] in names else found[0], svg
    )
    rules = "".join(f".{name}{{{own.replace(': ', ':').replace('; ', ';')}}}" for own, name in names.items())
    return (f"<style>{rules}</style>" if rules else ""), body
