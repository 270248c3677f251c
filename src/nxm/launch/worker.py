"""`python -m nxm.launch.worker COMMAND`: run a stage's command on its share of the machine; `nxm repro` starts it.

The environment variable NXM_SLOT says which of NXM_JOBS shares: each has its own cores, and where there are several
GPUs one of them. (Two trainings that share all cores wait for each other's threads and are several times slower.)
Without NXM_SLOT the stage has the whole machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from nxm.environment import JOBS, SHARED_GPU, SLOT


def share(slot: int, jobs: int) -> None:
    """Bind this process, and what it starts, to a share of the cores and to one of several GPUs.

    Sets NXM_SHARED_GPU where the GPU may be another job's too.
    """
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        width = max(1, len(own) // jobs)  # the same for all: the number of threads decides how sums are rounded
        first = slot * width % len(own)
        os.sched_setaffinity(0, own[first : first + width])
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # `nxm repro` names them where there are several
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if len(gpus) < jobs:
        os.environ[SHARED_GPU] = "1"


def main() -> None:
    """Run the command in a shell, as DVC does, to its end."""
    if SLOT in os.environ:
        share(int(os.environ[SLOT]), int(os.environ[JOBS]))
    stage = subprocess.Popen(sys.argv[1], shell=True)  # noqa: S602 (a command of dvc.yaml, as DVC runs it)
    while stage.poll() is None:
        with suppress(KeyboardInterrupt):  # Ctrl-C has reached the stage as well; let it end first
            stage.wait()
    sys.exit(stage.returncode)


if __name__ == "__main__":
    main()
