"""The imports of nxm's modules, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"


@cache
def modules(src: Path = SRC) -> dict[str, Path]:
    """Return the file of every module by the module's name; a package's is its __init__.py."""
    found = {}
    for path in sorted(src.rglob("*.py")):
        name = ".".join(path.relative_to(src).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@cache
def imported(path: Path, in_functions: bool = True) -> frozenset[str]:
    """Return the modules of nxm that a file imports while it runs (not for type checkers alone).

    Args:
        in_functions: count imports inside functions too.
    """
    names = set()
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")), in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in modules() else str(node.module))
    return frozenset(names & modules().keys())


def closure(paths: Iterable[Path], ignored: frozenset[str]) -> set[Path]:
    """Return files and all files of nxm that they import, directly or not; `ignored` modules are not followed."""
    found, todo = set(), list(paths)
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += [modules()[name] for name in imported(path) - ignored]
    return found


def _statements(node: ast.AST, in_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            children: list[ast.AST] = list(child.orelse)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        else:
            children = [child]
        for each in children:
            yield each
            yield from _statements(each, in_functions)
