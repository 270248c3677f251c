"""The description of the machine, and the precision it computes in."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nxm import machine


@pytest.mark.parametrize(("mixed", "precision"), [(None, "fp32"), ("no", "fp32"), ("bf16", "bf16")])
def test_precision_is_that_of_accelerate_launch(monkeypatch, mixed, precision):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if mixed is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)
    assert machine.precision() == precision


def test_modules_that_the_launcher_imports_need_no_torch():
    modules = "nxm.environment, nxm.config, nxm.files, nxm.command, nxm.data.settings, nxm.data.tasks"
    code = f"import sys, {modules}; print(*sorted({{'torch', 'numpy', 'pyarrow', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
