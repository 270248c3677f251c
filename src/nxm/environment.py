"""Environment variables by which `nxm repro` talks to the stages that it starts, and the cores that a process may use.

Imports nothing heavy: a command that has nothing to do must not wait for torch.
"""

from __future__ import annotations

import os

SLOT, JOBS = "NXM_SLOT", "NXM_JOBS"  # which of how many shares of the machine a stage has
SHARED_GPU = "NXM_SHARED_GPU"  # set for a stage where other jobs may use the same GPU
PLAN, STARTED = "NXM_PLAN", "NXM_STARTED"  # the stages that run, and since when (seconds since the epoch)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
