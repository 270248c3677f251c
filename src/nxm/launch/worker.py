"""`python -m nxm.launch.worker TARGET`: a DVC stage on its share of the machine; `nxm.launch.schedule` starts it.

The environment variable NXM_SLOT says which of NXM_JOBS shares: each has its own cores, and where there are several
GPUs one of them. (Two trainings that share all cores wait for each other's threads and are several times slower.)
Without NXM_SLOT the stage has the whole machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from nxm.machine import JOBS, SHARED_GPU, SLOT


def share(slot: int, jobs: int) -> None:
    """Bind this process, and what it starts, to a share of the cores and to one of several GPUs.

    Sets NXM_SHARED_GPU where the GPU may be another job's too.
    """
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        width = max(1, len(own) // jobs)  # all alike: the number of threads decides how sums are rounded
        first = slot * width % len(own)
        os.sched_setaffinity(0, own[first : first + width])
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(
        ","
    )  # nxm.launch.schedule names them where there are several
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if len(gpus) < jobs:
        os.environ[SHARED_GPU] = "1"


def main() -> None:
    if SLOT in os.environ:
        share(int(os.environ[SLOT]), int(os.environ[JOBS]))
    # This stage alone: what it needs is done, and another job may be busy with a stage that reads the same files.
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", sys.argv[1]]
    stage = subprocess.Popen(dvc)
    while stage.poll() is None:
        with suppress(KeyboardInterrupt):  # Ctrl-C has reached DVC and its stage as well; let them end first
            stage.wait()
    sys.exit(stage.returncode)


if __name__ == "__main__":
    main()
