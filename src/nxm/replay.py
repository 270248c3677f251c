"""Seconds that a call takes on its device, without the time in which the host launches it.

PyTorch's 2:4 products set up descriptors, algorithm and plan at every call (pytorch#177866), which takes a host far
longer than a small product takes the GPU. Events around the call would time the host. A CUDA graph holds the kernels
alone, and a program that is deployed on a GPU is captured in one as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from nxm.errors import first_line

Call = Callable[[], object]


class Replay:
    """Calls that are captured in one CUDA graph and timed by its replays; on a CPU they are called.

    Several calls on operands of their own, which together exceed the GPU's cache, make each of them read from memory.

    Args:
        calls: what is timed, each without arguments and with its output as a tensor, or a structure of tensors.

    Attributes:
        output: of the last call. A replay writes it anew.
        refused: None, or the reason why the calls could not be captured; their launches are then timed with them.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls, self.device = list(calls), device
        self.refused: str | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.output = self.calls[0]()
        if device.type == "cuda":
            self._capture()

    def _capture(self) -> None:
        torch.cuda.synchronize(self.device)
        side = torch.cuda.Stream(self.device)  # capture wants its warm-up on another stream than the default
        side.wait_stream(torch.cuda.current_stream(self.device))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for call in self.calls:
                    call()
            torch.cuda.current_stream(self.device).wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                for call in self.calls:
                    self.output = call()
            graph.replay()  # capturing runs nothing: only now is there an output
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            self.refused = first_line(error)
            self.output = self.calls[-1]()
        else:
            self._graph = graph

    @property
    def captured(self) -> bool:
        """True where the calls are in a CUDA graph, which a CPU has none of."""
        return self._graph is not None

    def seconds(self) -> float:
        """Run all calls once and return the seconds of one."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            self.run()
            return (time.perf_counter() - began) / len(self.calls)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(self.calls)

    def run(self) -> None:
        """Start all calls once; on a GPU this does not wait for them."""
        if self._graph is not None:
            self._graph.replay()
        else:
            for call in self.calls:
                call()


def fastest(calls: Mapping[str, Sequence[Call]], device: torch.device, rounds: int = 7) -> dict[str, float]:
    """Return the median seconds of each set of calls, in rounds that time every set once."""
    replays = {name: Replay(own, device) for name, own in calls.items()}
    for replay in replays.values():
        replay.seconds()
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(rounds):
        for name, replay in replays.items():
            seconds[name].append(replay.seconds())
    return {name: sorted(own)[rounds // 2] for name, own in seconds.items()}
