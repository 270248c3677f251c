"""`python -m nxm.job JOBS TARGET`: a DVC stage on its share of the machine; what xargs starts for `nxm.launch --jobs`.

The environment variable NXM_SLOT says which of the JOBS shares: each has its own cores, and where there are several
GPUs one of them. (Two trainings that share all cores wait for each other's threads and are several times slower.)
"""

from __future__ import annotations

import os
import sys

SLOT = "NXM_SLOT"


def share(slot: int, jobs: int) -> None:
    """Bind this process, and what it starts, to a share of the cores and to one of several GPUs."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot::jobs] or cores)
    if jobs > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        import torch

        if torch.cuda.device_count() > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())


def main() -> None:
    jobs, target = int(sys.argv[1]), sys.argv[2]
    share(int(os.environ[SLOT]), jobs)
    # Upstream stages are done, and another job may be busy with one that reads the same files: this stage alone.
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", target]
    os.execv(sys.executable, dvc)  # noqa: S606 (no shell is what is wanted)


if __name__ == "__main__":
    main()
