"""An engine of TensorRT for RTX: built on any x86-64 Linux machine, with or without a GPU, for several GPUs at once.

sdst::RDSA is its function body there, since TensorRT for RTX takes no plugin. An engine can be loaded on its GPU only,
so the network is checked in its place: what it takes and gives, and its share of half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdst_runtime.errors import ContractError
from sdst_runtime.sessions.base import TensorInfo
from sdst_runtime.sessions.tensorrt.compat import make_network, numpy_dtype, take_errors
from sdst_runtime.sessions.tensorrt.rtx import reads_header, registered_plugins, set_capabilities
from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, PluginRecord, Profile, TensorRecord, same_tensor

from ..errors import EngineError
from .inspect_plan import half_fault
from .network import Built, NetworkBuilder
from .onnx_source import EngineGraph, expanded_half_share, function_ops, model_for_rtx

_NO_LAYERS = ("CAST", "CONSTANT", "DEQUANTIZE", "IDENTITY")  # trt.LayerType of what counts in no share


class RtxBuild:
    """One build: what TensorRT for RTX is given, in its order."""

    plugin: PluginRecord | None = None

    def __init__(self, trt: Any, graph: EngineGraph, compute: Sequence[str]) -> None:
        self.trt, self.graph, self.compute = trt, graph, compute
        self.machine = MachineRecord(trt.__version__, "", "", "", "")
        self._network = NetworkBuilder(trt, "rtx", graph)

    def run(self, profiles: Sequence[Profile], monitor: Any) -> Built:
        """The plan of a network that takes and gives what the graph says."""
        name, logger = self._network.name, self._network.logger
        builder = self._network.builder()
        network = self.parsed(builder)
        self._require_tensors(network)
        fault = half_fault(name, "network", *half_layers(network), expanded_half_share(self.graph.path))
        if fault:
            raise EngineError(f"{fault}; export the bundle again with this version")
        config = self._network.config(builder, monitor)
        config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # all memory is the session's: graphs need it
        if not set_capabilities(self.trt, config, self.compute):
            raise EngineError(f"{name}: TensorRT for RTX refused compute {self.compute}: {take_errors(logger)}")
        self._network.add_profiles(builder, config, profiles)
        plan = self._network.plan(builder, network, config)
        runtime = self.trt.Runtime(logger)
        if not reads_header(self.trt, runtime, plan):
            raise EngineError(f"{name}: TensorRT for RTX does not know the plan that it built: {take_errors(logger)}")
        return Built(plan, network.num_layers)

    def parsed(self, builder: Any) -> Any:
        """The graph as a network. Raises ContractError where the parser would end the process."""
        found = registered_plugins(self.trt, function_ops(self.graph.path))
        if found:
            raise ContractError(
                f"{self._network.name}: a plugin for {', '.join(found)} is registered with TensorRT for RTX in this"
                " process, which takes none; build in a process that registers nothing"
            )
        network = make_network(self.trt, builder)
        self._network.parse(network, model_for_rtx(self.graph.path))
        return network

    def keep(self) -> None:
        """Nothing: TensorRT for RTX times no kernels when it builds."""

    def _require_tensors(self, network: Any) -> None:
        inputs = [network.get_input(index) for index in range(network.num_inputs)]
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        self._require_same("input", self.graph.inputs, inputs)
        self._require_same("output", self.graph.outputs, outputs)

    def _require_same(self, which: str, told: Mapping[str, TensorRecord], tensors: Sequence[Any]) -> None:
        found = {tensor.name: TensorInfo(numpy_dtype(tensor.dtype), tuple(tensor.shape)) for tensor in tensors}
        for name in sorted(told.keys() | found.keys()):
            if name not in told or name not in found or not same_tensor(told[name].info(), found[name]):
                graph = told[name].info() if name in told else None
                raise EngineError(
                    f"{self._network.name}: {which} {name}: the graph has {graph}, the network of TensorRT for RTX"
                    f" {found.get(name)}; export the bundle again with this version"
                )


def half_layers(network: Any) -> tuple[int, int]:
    """Layers of a parsed network that give float16, and those that give float16 or float32."""
    half = floating = 0
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type.name in _NO_LAYERS or not layer.num_outputs:
            continue
        given = layer.get_output(0).dtype.name
        half += given == "HALF"
        floating += given in ("HALF", "FLOAT")
    return half, floating
