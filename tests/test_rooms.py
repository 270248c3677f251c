"""The rooms of nxm: each imports those below it alone, so there is no circle and the library needs no study."""

from __future__ import annotations

import pytest

from imports import SRC, imported, modules

# Lowest first; a room may import what stands before it
ORDER = (
    *("errors", "environment", "durations", "config", "files", "machine", "replay", "command"),
    *("sets", "models", "methods", "activations", "distillation"),  # the library
    *("data", "study", "training"),
    *("export", "measure", "compress", "report", "launch"),
    *("check", "cli", "__main__"),
)


def room(module: str) -> str:
    """Return the room of a module: the package or module directly below nxm."""
    return module.split(".")[1]


@pytest.mark.parametrize("name", sorted(name for name in modules() if name != "nxm"))
def test_a_module_imports_lower_rooms_alone(name):
    """Imports inside functions count as well, but for those of the command, which loads a subcommand when it runs."""
    for other in imported(modules()[name], in_functions=room(name) != "cli") - {"nxm"}:
        higher = ORDER.index(room(other)) > ORDER.index(room(name))
        assert not higher, f"{name} imports {other}, whose room stands above its own"


def test_modules_form_no_circle():
    """Within rooms as well; imports inside functions do not count, since they are how a circle would be broken."""
    needs = {name: imported(path, in_functions=False) - {name, "nxm"} for name, path in modules().items()}
    left = dict(needs)
    while free := [name for name in left if not needs[name] & left.keys()]:
        for name in free:
            del left[name]
    assert not left


def test_every_room_has_its_place_in_the_order():
    assert {room(name) for name in modules() if name != "nxm"} == set(ORDER)


def test_the_package_itself_imports_nothing_before_it_is_asked():
    assert not imported(SRC / "nxm/__init__.py", in_functions=False)
