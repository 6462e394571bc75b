"""CUDA graphs of one function of tensors, one a set of input shapes. Needs a GPU; written and not run yet.

A graph freezes shapes and addresses: each has device buffers for its inputs and outputs, and pinned ones on the host,
which the copies from and to the GPU need to run beside the host. Source: CUDA graphs in PyTorch's notes on CUDA.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]

WARM_UP_CALLS = 3  # lazy initialisation, workspaces and autotuning happen before the capture


class GraphCache:
    """Runs `function(**inputs)` as the replay of a CUDA graph, one call at a time; keeps the `most` last shapes."""

    def __init__(self, function: Function, device: torch.device, most: int) -> None:
        self.function, self.device, self.most = function, device, most
        self._graphs: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Host tensors of their own from contiguous host tensors; a new set of shapes is captured first."""
        key = tuple((name, x.shape, x.dtype) for name, x in inputs.items())
        captured = self._graphs.get(key)
        if captured is None:
            while len(self._graphs) >= self.most:
                self._graphs.popitem(last=False)
            captured = self._graphs[key] = self._capture(inputs)
        self._graphs.move_to_end(key)
        return captured.replay(inputs)

    def clear(self) -> None:
        """Give back all graphs and their memory."""
        self._graphs.clear()

    def _capture(self, inputs: Mapping[str, Tensor]) -> _Captured:
        with torch.cuda.device(self.device):
            given = {name: x.to(self.device) for name, x in inputs.items()}
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    self.function(**given)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self.function(**given)
        host_inputs = {name: torch.empty_like(x, pin_memory=True) for name, x in inputs.items()}
        host_outputs = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in outputs)
        return _Captured(graph, given, outputs, host_inputs, host_outputs)


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]
    host_inputs: dict[str, Tensor]
    host_outputs: tuple[Tensor, ...]

    def replay(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        stream = torch.cuda.current_stream(next(iter(self.inputs.values())).device)
        with torch.cuda.stream(stream):
            for name, x in inputs.items():
                self.inputs[name].copy_(self.host_inputs[name].copy_(x), non_blocking=True)
            self.graph.replay()
            for host, out in zip(self.host_outputs, self.outputs, strict=True):
                host.copy_(out, non_blocking=True)
        stream.synchronize()
        return tuple(host.clone() for host in self.host_outputs)
