"""Whole encoders in every form that this machine can run, dense and 2:4, in the same rounds.

A form is a type, a set of matrices with 2:4 kernels, and a way to run: launched by the host one operation at a time
(`eager`), or captured in a CUDA graph, eager or with each layer compiled; a CPU has no graphs. The rival of all,
`reference`, is the dense encoder in bf16, compiled and captured, or else the first of RIVALS that there is. The dense
encoders have full weights: zeros would save them power.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from nxm.errors import UserError, first_line
from nxm.export.cusparselt import SEARCHES
from nxm.measure.bench.encoder import FEED_FORWARD, MATRICES, SIZES, STORED, convert, make_layers, project, run
from nxm.measure.bench.products import ways_to_multiply
from nxm.measure.bench.unit import (
    NO_CARE,
    Care,
    Unit,
    capture_row,
    difference,
    kernel_row,
    kernels_in,
    time_replays,
    timed_row,
)
from nxm.measure.timing import Row
from nxm.replay import Replay, fastest
from nxm.training.energy import EnergyMeter

POINTS = {  # size, batch, length -> worth: large ones, in which 2:4 can gain, and a single request
    "cuda": {
        ("BERT-base", 32, 128): 9.0,
        ("BERT-base", 128, 384): 7.9,
        ("BERT-large", 32, 128): 7.8,
        ("BERT-large", 128, 384): 7.7,
        ("BERT-base", 1, 128): 5.9,
        ("BERT-base", 8, 128): 5.5,
        ("BERT-base", 256, 128): 3.9,
        ("BERT-large", 1, 128): 3.8,
        ("BERT-base", 256, 32): 2.9,
        ("BERT-base", 32, 512): 2.8,
        ("BERT-large", 8, 128): 2.7,
    },
    "cpu": {("BERT-base", 8, 128): 9.0, ("BERT-base", 1, 128): 7.9},
}
METERED = ("BERT-base", 32, 128)  # the energy of a call is measured here
METER_SECONDS = 1.5
REPEATS, BUDGET_SECONDS = 30, 5.0
UNIT_SECONDS = {"cuda": 45.0, "cpu": 60.0}
# relative errors of hidden states: they add up over random layers, in FP8, which has three bits of mantissa, to a third
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 1e-2, "int8": 0.2, "fp8": 0.5}
RIVALS = (  # the first that this machine can run
    *("bf16 dense compiled", "bf16 dense captured", "bf16 dense eager"),
    *("fp32 dense captured", "fp32 dense eager"),
)


@dataclass(frozen=True)
class Form:
    """`kernels`: dense, 2:4, 2:4 FFN, or auto; `way`: eager, captured or compiled (on a GPU captured as well)."""

    dtype: str
    kernels: str
    way: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.kernels} {self.way}"


FORMS = (
    Form("bf16", "dense", "compiled"),
    Form("bf16", "2:4", "compiled"),
    Form("fp8", "dense", "compiled"),
    Form("fp8", "2:4", "compiled"),
    Form("int8", "dense", "compiled"),
    Form("int8", "2:4", "compiled"),
    Form("bf16", "2:4 FFN", "compiled"),
    Form("bf16", "auto", "compiled"),
    Form("fp8", "auto", "compiled"),
    Form("int8", "auto", "compiled"),
    Form("fp16", "dense", "compiled"),
    Form("fp16", "2:4", "compiled"),
    Form("bf16", "dense", "captured"),
    Form("bf16", "2:4", "captured"),
    Form("bf16", "dense", "eager"),
    Form("bf16", "2:4", "eager"),
    Form("fp32", "dense", "captured"),
)


def forms_on(device: torch.device) -> list[Form]:
    """Return FORMS in a device's ways: on a CPU, which has no CUDA graphs, the captured forms are run eagerly."""
    if device.type == "cuda":
        return list(FORMS)
    return list(dict.fromkeys(replace(form, way="eager") if form.way == "captured" else form for form in FORMS))


def units(device: torch.device, backend: str = "inductor") -> list[Unit]:
    """Return the encoders at each batch and length."""
    return [
        Unit(
            "encoders",
            f"encoder {size} {batch}x{length}",
            worth,
            UNIT_SECONDS[device.type],
            ("bf16", "fp16", "fp8", "int8"),
            partial(measure_encoder, size, batch, length, device, backend),
        )
        for (size, batch, length), worth in POINTS[device.type].items()
    ]


# forms share their layers' code, and PyTorch compiles at most eight programs of one code unless it is told otherwise
@torch._dynamo.config.patch(recompile_limit=4 * len(FORMS))
def measure_encoder(
    size: str, batch: int, length: int, device: torch.device, backend: str = "inductor", care: Care = NO_CARE
) -> list[Row]:
    """Time an encoder in all FORMS at one batch and length and return a row per form.

    Args:
        backend: of `torch.compile`.
    """
    layers_count, hidden, _, intermediate = SIZES[size]
    where: Row = {"part": "encoders", "model": size, "layers": layers_count, "batch": batch, "length": length}
    draw = torch.Generator(device).manual_seed(1)
    with torch.inference_mode():  # else the first layer's input has other dispatch keys, and needs a program of its own
        h = torch.randn(batch, length, hidden, device=device, generator=draw)
    torch.compiler.reset()
    full = make_layers(size, device)
    exact: dict[tuple[str, ...], Tensor] = {}
    replays: dict[str, Replay] = {}
    forms: dict[str, Form] = {}
    chosen: dict[str, dict[str, str]] = {}
    rows: list[Row] = []
    choice = Kernels(size, batch * length, device, care)
    for form in forms_on(device):
        try:
            kernels = choice.of(form)
            twin = next((own for own in forms.values() if _same(own, form) and chosen[str(own)] == kernels), None)
            if twin is not None:
                rows.append(where | _described(form) | {"kernels_of": kernels, "same_as": str(twin)})
                continue
            sparse = tuple(name for name in MATRICES if kernels[name] != "dense")
            if sparse not in exact:
                exact[sparse] = _exact(project(full, sparse), h)
            search = SEARCHES[care.get(form.dtype, 0)]
            layers = convert(project(full, sparse), form.dtype, kernels, batch * length, search)
            if form.way == "compiled":
                for layer in layers:
                    layer.compile(backend=backend, dynamic=False, fullgraph=True)
            with torch.inference_mode():
                states = h.to(STORED.get(form.dtype, torch.bfloat16))
            call = partial(run, layers, states)
            replay = Replay([call], device) if form.way != "eager" else _Launched([call], device)
            replay.run()
            error = difference(_sample(replay.output), exact[sparse])
            if not error <= TOLERANCE[form.dtype]:
                raise RuntimeError(f"its output is wrong: relative error {error:.1e}")
        except Exception as reason:  # a compiler may raise anything, and the other forms are worth having
            rows.append(where | _described(form) | {"absent": first_line(reason)})
            continue
        forms[str(form)], chosen[str(form)], replays[str(form)] = form, kernels, replay
        rows.append(where | _described(form) | {"kernels_of": kernels, "relative_error": error})
    rival = next((name for name in RIVALS if name in replays), None)
    if rival is None:
        return rows
    seconds = time_replays(replays, REPEATS, BUDGET_SECONDS)
    operations = 2.0 * batch * length * layers_count * (4 * hidden**2 + 2 * hidden * intermediate)
    operations += 4.0 * batch * length**2 * hidden * layers_count  # attention's two products
    for row in rows:
        name = str(Form(row["dtype"], row["form"], row["way"]))
        if name not in replays:
            continue
        replay = replays[name]
        row |= timed_row(seconds[name], seconds[rival], operations) | {"reference": rival}
        row |= capture_row(replay) | kernel_row(kernels_in(replay))
        if (size, batch, length) == METERED and row["way"] == "compiled":
            row["joules"] = joules(replay)
    return rows


class _Launched(Replay):
    """Calls that are launched by the host, one operation after the other."""

    def _capture(self) -> None:
        pass


class Kernels:
    """The fastest kernels of an encoder's matrices at one number of tokens, each measured as a product of its own."""

    def __init__(self, size: str, tokens: int, device: torch.device, care: Care = NO_CARE) -> None:
        _, hidden, _, intermediate = SIZES[size]
        shapes = ((3 * hidden, hidden), (hidden, hidden), (intermediate, hidden), (hidden, intermediate))
        self._shapes = dict(zip(MATRICES, shapes, strict=True))
        self._tokens, self._device, self._care = tokens, device, care
        self._seconds: dict[tuple[str, str], dict[str, float]] = {}

    def of(self, form: Form) -> dict[str, str]:
        """Return the kernel of each matrix: "dense", "cusparselt" or "cutlass".

        "auto" takes for each matrix the fastest of the type's kernels, "2:4" the fastest of its 2:4 kernels.

        Raises:
            UserError: a matrix must be multiplied by a 2:4 kernel and this device has none.
        """
        kernels = {}
        for name in MATRICES:
            left_dense = form.kernels == "dense" or (form.kernels == "2:4 FFN" and name not in FEED_FORWARD)
            seconds = {"dense": 0.0} if left_dense else dict(self.seconds(form.dtype, name))
            if not left_dense and form.kernels != "auto":
                del seconds["dense"]
            if not seconds:
                raise UserError(f"no 2:4 kernel for {form.dtype} on {self._device.type}")
            kernels[name] = min(seconds, key=lambda kernel: seconds[kernel])
        return kernels

    def seconds(self, dtype: str, name: str) -> dict[str, float]:
        """Return the seconds of a matrix's product by kernel; a kernel that this device cannot run is not in it."""
        if (dtype, name) not in self._seconds:
            ways = {"dense": "dense", "cusparselt": "2:4"}
            if dtype == "fp8":
                ways = {"dense": "dense by row", "cusparselt": "2:4", "cutlass": "2:4 by row"}
            search = SEARCHES[self._care.get(dtype, 0)]
            made = ways_to_multiply(dtype, self._shapes[name], self._tokens, self._device, search)
            calls = {}
            for kernel, way in ways.items():
                try:
                    calls[kernel] = made.calls[way]()
                    calls[kernel][0]()
                except (RuntimeError, AttributeError, UserError):
                    calls.pop(kernel, None)
            self._seconds[dtype, name] = fastest(calls, self._device)
        return self._seconds[dtype, name]


def _same(one: Form, other: Form) -> bool:
    return (one.dtype, one.way) == (other.dtype, other.way)


def _described(form: Form) -> Row:
    return {"dtype": form.dtype, "form": form.kernels, "way": form.way}


def _sample(h: Tensor) -> Tensor:
    """Return the hidden states of the first and last sentence: enough to tell a wrong kernel."""
    return torch.cat([h[:1], h[-1:]]).float()


def _exact(layers: nn.ModuleList, h: Tensor) -> Tensor:
    return run(layers, torch.cat([h[:1], h[-1:]]))


def joules(replay: Replay) -> float | None:
    """Return the energy of one call, from the GPU's counter over METER_SECONDS; None without a counter."""
    meter = EnergyMeter()
    calls, spent = 0, 0.0
    while spent < METER_SECONDS:
        spent += replay.seconds()
        calls += 1
    found = meter.joules()
    return None if found is None else float(f"{found / calls:.4g}")
