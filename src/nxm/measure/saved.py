"""`nxm bench MODEL ...`: saved models in every form that this machine can run, side by side, with proof."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nxm.errors import UserError
from nxm.export.trained import load_trained
from nxm.files import check_place, sha256_file, write_json
from nxm.machine import cores, libraries, machine
from nxm.measure.forms import Form, measure_forms
from nxm.measure.journal import Journal
from nxm.measure.timing import Row, Timer, time_call
from nxm.study.settings import Deployment

FORMS = {
    "cpu": ("fp32", "bf16", "compiled", "onnx", "int8", "openvino", "openvino_int8"),
    "cuda": ("fp32", "bf16", "fp16", "compiled", "int8"),
}
MARK = "nxm_bench_of_models"


def bench_models(
    folders: Sequence[Path],
    out: Path,
    *,
    device_name: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (32, 128),
    budget: float = 600.0,
    timer: Timer = time_call,
) -> list[Row]:
    """Time saved models in every form of a device, print a table, and write `models-<device>.json` into `out`.

    All models of a form are timed in the same rounds as the first model in eager fp32, which speed-ups are over. Inputs
    are random tokens without padding. A unit is on the disk once it is measured: after a kill, and with what the budget
    left out, a call with the same models and values goes on.

    Args:
        folders: `from_pretrained` folders, shrunk or packed or neither; the first is what the others are compared with.
        device_name: "cpu" or "cuda"; None: "cuda" where there is a GPU.
        batch_sizes: numbers of texts.
        lengths: tokens of each text.
        budget: seconds after which no further form begins.

    Returns: the rows, of times or with the reason for which there is none.

    Raises:
        UserError: a folder has no supported model, two have the same name, there is no such device, a length exceeds
            what a model reads, a number is not above 0, or the file in `out` was not written by this function.
    """
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: leave --device out, or say --device cpu")
    if not budget > 0:
        raise UserError(f"--budget is the number of seconds to spend; it must be above 0, not {budget:g}")
    for name, numbers in (("--batches", batch_sizes), ("--lengths", lengths)):
        if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
            raise UserError(f"{name} takes different whole numbers above 0, such as 1,8, not {list(numbers)}")
    names = _names(folders)
    path = out / f"models-{device.type}.json"
    check_place(path, lambda existing: None if _is_own(existing) else "was not written by nxm bench")
    torch.set_num_threads(cores())
    models = {name: load_trained(folder) for name, folder in zip(names, folders, strict=True)}
    readable = {name: trained.max_length for name, trained in models.items()}
    shortest = min(readable, key=readable.__getitem__)
    if max(lengths) > readable[shortest]:
        raise UserError(f"--lengths has {max(lengths)}, but {shortest} reads {readable[shortest]} tokens at most")
    settings = Deployment(
        devices=["cuda" if device.type == "cuda" else "cpu"],
        seeds=[0],
        models=[],
        forms=list(FORMS[device.type]),
        batch_sizes=list(batch_sizes),
        lengths=list(lengths),
        scores=False,
        warmup=2,
        repeats=9,
    )
    files = {name: _weights_of(trained.folder) for name, trained in models.items()}
    deciding: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "models": files}
    journal = Journal(out / f".models-{device.type}", deciding)
    measured = measure_forms(models, names[0], settings, device, journal, timer, deadline=time.monotonic() + budget)
    provenance = {"machine": machine(), "versions": libraries()}
    content = {MARK: 1, "device": device.type, "models": files, "left_out": measured.left_out, "provenance": provenance}
    write_json(path, content | {"rows": measured.rows})
    if measured.left_out:
        print(f"{measured.left_out} units were left out after {budget:g} s: the same command goes on with them")
    else:
        journal.clear()
    print(table(measured.rows, names[0]).to_string(index=False))
    for reason in _absences(measured.rows):
        print(reason)
    print(f"{path}: all rows, with the operators and kernels that multiplied")
    return measured.rows


def table(rows: Sequence[Row], first: str) -> pd.DataFrame:
    """Return a line per model, form, batch and length that was timed, as text."""
    return pd.DataFrame(
        [
            {
                "model": row["model"],
                "form": _form(row),
                "batch x length": f"{row['batch']} x {row['length']}",
                "ms": f"{row['median_ms']:.2f}" + (" ~" if row["noisy"] else ""),
                f"over {first} fp32": f"{row['speedup_over_dense_fp32']:.2f}",
                "texts/s": f"{row['sentences_per_second']:.0f}",
                "MiB": f"{row['size_mib']:.1f}",
                "multiplies": _proof(row),
            }
            for row in rows
            if "median_ms" in row
        ]
    )


def _is_own(path: Path) -> bool:
    return path.is_file() and f'"{MARK}"' in path.read_text(encoding="utf-8", errors="replace")


def _names(folders: Sequence[Path]) -> list[str]:
    """Return short names of folders: their last part, with more parts where two have the same."""
    whole = [folder.resolve() for folder in folders]
    if twice := {folder for folder in whole if whole.count(folder) > 1}:
        raise UserError(f"{min(twice)} is named twice; name each model once")
    for parts in range(1, max(len(folder.parts) for folder in whole) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in whole]
        if len(set(names)) == len(names):
            break
    return names


def _weights_of(folder: Path) -> dict[str, str]:
    """Return the checksums of a folder's files of weights, by name: several if it is sharded."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


def _form(row: Row) -> str:
    kind = Form(row["way"], row["dtype"], row["kernel"])
    way = {"eager": "PyTorch", "onnx": "ONNX Runtime", "openvino": "OpenVINO", "pt2e": "PyTorch PT2E"}
    return f"{way.get(kind.way, f'PyTorch {kind.way}')} {kind.dtype}" + (
        "" if kind.kernel == "dense" else f", {kind.kernel}"
    )


def _proof(row: Row) -> str:
    if "sparse_launches" in row:
        return f"{row['sparse_launches']} sparse launches for {row['packed']} matrices"
    kernels = row.get("kernels", [])
    return ", ".join(kernels[:2]) + (", ..." if len(kernels) > 2 else "")


def _absences(rows: Sequence[Row]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "absent" in row:
            reasons.setdefault(row["absent"], []).append(f"{row['model']} in {_form(row)}")
    return [f"absent: {'; '.join(dict.fromkeys(where))}: {reason}" for reason, where in reasons.items()]
