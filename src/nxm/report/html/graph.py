"""The pipeline of a study as a drawing: the stages of its dvc.yaml, and which of them reads what which one makes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxm.config import read_yaml
from nxm.report import labels
from nxm.study.plan import PLAN, STAGES

_WORDS = {
    "fetch": "Weights and data",
    "prepare": "Prepared data",
    "compress": "Further runs",
    "variant": "Variants",
    "trial": "Trials and sweeps",
    "select": "Selection of values",
    "benchmark": "Overhead of a step",
    "bench": "Speed of 2:4",
    "deployment": "Deployed forms",
    "compare": "Paired bootstrap",
    "figure": "Figures",
    "table": "Tables",
    "scores": "Scores for DVC",
    "report": "This report",
}
_RUN_OF = {stage: run for run, stage in STAGES.items()}
_LEFT_OUT = ("plan", "code")  # nearly every stage needs them, which would hide the other lines
# A trial may start from a run whose values the search has chosen before: of these stages the first come first
_FIRST = ("fetch", "prepare", "trial", "select")
_WIDTH, _HEIGHT, _GAP, _ROW = 146, 40, 34, 56


@dataclass(frozen=True)
class Box:
    """A stage with its place in the drawing, and the number of its instances."""

    name: str
    label: str
    count: int
    description: str
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """Boxes and the curves between them, in pixels."""

    boxes: tuple[Box, ...]
    curves: tuple[tuple[str, str, str], ...]  # from, to, path
    left_out: tuple[tuple[str, str], ...]  # lines that would lead back
    width: float
    height: float
    box: tuple[int, int] = (_WIDTH, _HEIGHT)


def pipeline(folder: Path) -> Drawing:
    """Return the drawing of the stages that a study runs, from left to right."""
    stages = read_yaml(folder / "dvc.yaml")["stages"]
    context = read_yaml(folder / "params.yaml") | read_yaml(folder / PLAN)
    instances = {name: list(_instances(stage, context)) for name, stage in stages.items() if name not in _LEFT_OUT}
    instances = {name: own for name, own in instances.items() if own}
    order = sorted(instances, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    every = _edges(instances)
    forward = {(ours, theirs) for ours, theirs in every if order.index(ours) < order.index(theirs)}
    back = tuple(sorted((label(ours), label(theirs)) for ours, theirs in every - forward))
    edges = _reduced(forward)
    column = _columns(instances, edges)
    boxes, rows = [], dict.fromkeys(column.values(), 0)
    tallest = max((list(column.values()).count(at) for at in rows), default=1)
    for name, at in column.items():
        free = (tallest - list(column.values()).count(at)) * _ROW / 2  # columns are centred
        body = stages[name].get("do", stages[name])
        y = 8 + free + rows[at] * _ROW
        boxes.append(Box(name, label(name), len(instances[name]), body["desc"], 8 + at * (_WIDTH + _GAP), y))
        rows[at] += 1
    place = {box.name: box for box in boxes}
    curves = tuple((ours, theirs, _curve(place[ours], place[theirs])) for ours, theirs in sorted(edges))
    width = 16 + (max(rows, default=0) + 1) * (_WIDTH + _GAP) - _GAP
    return Drawing(tuple(boxes), curves, back, width, 16 + tallest * _ROW - (_ROW - _HEIGHT))


def label(stage: str) -> str:
    """Return the words for a stage: a run's label, or what the stage makes."""
    return labels.run_label(_RUN_OF[stage]) if stage in _RUN_OF else _WORDS.get(stage, stage.capitalize())


def _instances(stage: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the paths that each instance of a stage reads and makes, without the code."""
    body = stage.get("do", stage)
    keys: list[dict[str, Any]]
    if "foreach" in stage:
        items = _filled(stage["foreach"], context)
        keys = [{"key": key, "item": item} for key, item in items.items()]
    else:
        lists = {name: _filled(values, context) for name, values in stage.get("matrix", {}).items()}
        keys = [{"item": dict(zip(lists, values, strict=True))} for values in itertools.product(*lists.values())]
    for own in keys:
        makes = [
            next(iter(each)) if isinstance(each, dict) else each
            for part in ("outs", "metrics", "plots")
            for each in body.get(part, [])
        ]
        makes += [name for each in body.get("outs", []) if isinstance(each, dict) for name in list(each)[1:]]
        reads = [dep for dep in body.get("deps", []) if not dep.startswith("${root}")]
        yield (
            [_filled(path, {**context, **own}) for path in reads],
            [_filled(path, {**context, **own}) for path in makes],
        )


def _filled(text: Any, context: Mapping[str, Any]) -> Any:
    """Return a text of dvc.yaml with its ${...} replaced; a value itself where the text is nothing else."""

    def value(path: str) -> Any:
        found: Any = context
        for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
            found = found[int(index)] if index else found[name]
        return found

    if not isinstance(text, str):
        return text
    whole = re.fullmatch(r"\$\{([^}]+)\}", text)
    return value(whole[1]) if whole else re.sub(r"\$\{([^}]+)\}", lambda found: str(value(found[1])), text)


def _edges(instances: Mapping[str, list[tuple[list[str], list[str]]]]) -> set[tuple[str, str]]:
    makers: dict[str, set[str]] = {}  # a path that a stage makes, and the folders around it
    made: dict[str, str] = {}
    for name, own in instances.items():
        for path in (path for _, outs in own for path in outs):
            made[path] = name
            for folder in (Path(path), *Path(path).parents):
                makers.setdefault(folder.as_posix(), set()).add(name)
    edges = set()
    for name, own in instances.items():
        for path in {path for deps, _ in own for path in deps}:
            for around in (Path(path), *Path(path).parents):
                if around.as_posix() in made:
                    edges.add((made[around.as_posix()], name))
            edges |= {(maker, name) for maker in makers.get(path, ())}
    return {(ours, theirs) for ours, theirs in edges if ours != theirs}


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges without those that a longer way replaces."""
    after: dict[str, set[str]] = {}
    for ours, theirs in edges:
        after.setdefault(ours, set()).add(theirs)

    def reached(start: str, without: str) -> set[str]:
        found, todo = set[str](), [each for each in after.get(start, ()) if each != without]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += after.get(name, ())
        return found

    return {(ours, theirs) for ours, theirs in edges if theirs not in reached(ours, theirs)}


def _columns(names: Mapping[str, Any], edges: set[tuple[str, str]]) -> dict[str, int]:
    """Return the length of the longest way to each stage, in the order of dvc.yaml."""
    column = dict.fromkeys(names, 0)
    for _ in names:  # as many rounds as the longest way can have steps
        for ours, theirs in edges:
            column[theirs] = max(column[theirs], min(column[ours] + 1, len(column)))
    return column


def _curve(ours: Box, theirs: Box) -> str:
    x, y, to_x, to_y = ours.x + _WIDTH, ours.y + _HEIGHT / 2, theirs.x, theirs.y + _HEIGHT / 2
    bend = (to_x - x) / 2
    return f"M{x:g} {y:g}C{x + bend:g} {y:g} {to_x - bend:g} {to_y:g} {to_x:g} {to_y:g}"
