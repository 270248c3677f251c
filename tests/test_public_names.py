"""The library's public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nxm


@pytest.mark.parametrize("name", nxm.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(nxm, name) is not None


def test_an_unknown_name_is_no_attribute():
    assert set(nxm.__all__) == set(nxm._HOMES)
    with pytest.raises(AttributeError, match="module 'nxm' has no attribute 'nonesuch'"):
        nxm.nonesuch  # noqa: B018


def test_the_package_and_its_settings_load_without_torch():
    code = (
        "import sys; from nxm import BEST_ADMM, DISTILLATION, Admm, Distillation, Gmp, UserError, parse_set\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
