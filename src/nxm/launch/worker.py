"""`python -m nxm.launch.worker COMMAND`: run a stage's command on its share of the machine, for `nxm repro`.

NXM_SLOT is the number of the share, of NXM_JOBS; each has its own cores and one of several GPUs. (Two trainings that
share all cores wait for each other's threads and are several times slower.) Without NXM_SLOT the stage has the whole
machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from nxm.environment import JOBS, SHARED_GPU, SLOT


def share(slot: int, jobs: int) -> None:
    """Bind this process and its children to a share of the cores and to one of several GPUs.

    Sets NXM_SHARED_GPU if other jobs may use the same GPU.
    """
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        width = max(1, len(own) // jobs)  # equal for all: the number of threads affects rounding
        first = slot * width % len(own)
        os.sched_setaffinity(0, own[first : first + width])
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # set by `nxm repro` if there are several
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    if len(gpus) < jobs:
        os.environ[SHARED_GPU] = "1"


def main() -> None:
    """Run the command in a shell, as DVC does, and exit with its status."""
    if SLOT in os.environ:
        share(int(os.environ[SLOT]), int(os.environ[JOBS]))
    stage = subprocess.Popen(sys.argv[1], shell=True)  # noqa: S602 (a command of dvc.yaml, as DVC runs it)
    while stage.poll() is None:
        with suppress(KeyboardInterrupt):  # Ctrl-C has reached the stage too; wait for its end
            stage.wait()
    sys.exit(stage.returncode)


if __name__ == "__main__":
    main()
