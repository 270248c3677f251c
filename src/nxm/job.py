"""`python -m nxm.job JOBS FAILURES TARGET`: a DVC stage on its share of the machine; xargs starts it for `nxm.launch`.

The environment variable NXM_SLOT says which of the JOBS shares: each has its own cores, and where there are several
GPUs one of them. (Two trainings that share all cores wait for each other's threads and are several times slower.)
A target that fails is added to the file FAILURES.
"""

from __future__ import annotations

import os
import subprocess
import sys

SLOT = "NXM_SLOT"


def share(slot: int, jobs: int) -> None:
    """Bind this process, and what it starts, to a share of the cores and to one of several GPUs."""
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, own[slot::jobs] or own)
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # nxm.launch names them
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]


def main() -> None:
    jobs, failures, target = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    if jobs > 1:
        share(int(os.environ[SLOT]), jobs)
    # This stage alone: what it needs is done, and another job may be busy with a stage that reads the same files.
    dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", target]
    if subprocess.run(dvc, check=False).returncode:
        with open(failures, "a", encoding="utf-8") as file:
            file.write(target + "\n")
        sys.exit(1)  # DVC's own 255 would make xargs stop


if __name__ == "__main__":
    main()
