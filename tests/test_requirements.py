"""The lock files pin what pyproject.toml asks for, and each file has a hash."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from synthetic_study import ROOT

LOCKS = ("requirements.lock", "requirements-cuda.lock")


def locked(name: str) -> dict[str, str]:
    """Return each pinned package's text by its canonical name: version, marker, hashes."""
    text = (ROOT / name).read_text(encoding="utf-8")
    packages = re.split(r"\n(?=[^\s#])", text)[1:]
    return {canonicalize_name(re.split(r"[=\[ ;]", package)[0]): package for package in packages}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_and_has_hashes(name):
    packages = locked(name)
    assert len(packages) > 10
    for package in packages.values():
        assert re.match(r"\S+==\S+", package)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", package)


def test_what_the_project_asks_for_is_pinned_in_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = locked("requirements.lock")
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        version = re.match(r"\S+==(\S+)", packages[canonicalize_name(requirement.name)])[1]
        assert requirement.specifier.contains(version), requirement


def test_what_only_torch_for_cuda_needs_is_apart():
    assert not any(name.startswith(("nvidia-c", "cuda-", "triton")) for name in locked("requirements.lock"))
    assert locked("requirements.lock").keys().isdisjoint(locked("requirements-cuda.lock"))
