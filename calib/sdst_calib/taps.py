"""Makes every floating-point tensor of an ONNX file an output, a *tap*, and runs the file on ONNX Runtime's CPU.

sdst::RDSA stays whole: its result is tapped, what its function computes inside is float32 in every bundle. Graph
optimisations are off, so that nothing is fused away between two taps.

On a CPU ONNX Runtime has few kernels for half. It computes the others in float32 and drops a pair of casts where two
of them meet, so that a value of 1e5 passes through a half tensor unharmed, which it does on no GPU. So here two views
stand behind every half tensor, for which there are kernels: what follows then reads what half can hold. And there are
zeros for NaN and infinity where sdst::RDSA looks: as an index they would end the run that is to find them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdst_runtime.errors import InputError, require_package
from sdst_runtime.machine import usable_cores
from sdst_runtime.sessions.ort import import_onnxruntime

Inputs = Mapping[str, np.ndarray]
Feeds = Callable[[], Iterable[Inputs]]  # the inputs of a model, from the start at each call
GROUP = 200  # tensors that one pass over the data taps: the memory of a pass is theirs for one query
GROUP_VALUES = 2**29  # of them together, free axes counted as 1: two gigabytes of float32
PIECE = 2**22  # values of a tensor that are looked at together


@dataclass(frozen=True)
class Tap:
    """A tensor and the node that makes it."""

    tensor: str
    key: str  # the node by its place and count, casts left out: the same in every precision of a graph
    node: str  # its name in the file
    place: str  # path of the module; "" outside all modules
    operator: str
    half: bool  # float16, or cast to it as soon as it is made
    sources: tuple[str, ...]  # keys of the floating-point tensors that the node reads, weights left out
    read_as: str  # the tensor whose values count: behind the cast to half, where there is one
    values: int  # how many it holds, free axes counted as 1


@dataclass(frozen=True)
class Graph:
    """A model file with what a tap needs to know of it."""

    path: Path
    model: Any  # onnx.ModelProto; weights beside the file are not read
    taps: tuple[Tap, ...]  # in the order of the nodes
    input_types: Mapping[str, Any]  # numpy types
    metadata: Mapping[str, str]


def open_graph(path: Path) -> Graph:
    """Read an ONNX file. Raises InputError when it is none, is missing or does not parse."""
    require_onnx(path)
    onnx: Any = require_package("onnx", "export")
    try:
        model = onnx.load(str(path), load_external_data=False)
        model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf's and onnx's errors share no base
        raise InputError(f"{path}: cannot read it as ONNX ({error}); export the bundle again") from error
    types = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in model.graph.input}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Graph(Path(path), model, tuple(_taps(model)), types, metadata)


def require_onnx(*paths: Path) -> None:
    """Raise InputError unless all are ONNX files; engines hold no graphs that could be tapped."""
    for path in paths:
        if path.suffix != ".onnx":
            raise InputError(f"{path}: expected a file of ONNX graphs; give the bundle that the engines were built of")


def run_tapped(graph: Graph, tensors: Sequence[str], feeds: Iterable[Inputs]) -> Iterator[dict]:
    """The values of `tensors` for each of `feeds`, float inputs cast to the graph's types.

    Raises InputError when ONNX Runtime cannot load the graph or fails.
    """
    session = _open(_tapped(graph, tensors), graph.path)
    names = list(graph.input_types)
    for inputs in feeds:
        typed = {name: np.asarray(inputs[name]).astype(graph.input_types[name], copy=False) for name in names}
        try:
            values = session.run(list(tensors), typed)
        except Exception as error:  # the binding raises many types that share no base
            raise InputError(f"{graph.path.name}: ONNX Runtime failed: {str(error).splitlines()[0]}") from error
        yield dict(zip(tensors, values, strict=True))


def groups(taps: Sequence[Tap], most: int = GROUP, most_values: int = GROUP_VALUES) -> Iterator[Sequence[Tap]]:
    """Consecutive parts that one pass may tap; a tensor that is too large for any is a part of its own."""
    start = values = 0
    for place, tap in enumerate(taps):
        values += tap.values
        if place - start == most or (values > most_values and place > start):
            yield taps[start:place]
            start, values = place, tap.values
    if start < len(taps):
        yield taps[start:]


def pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Arrays of one size, flat, a part at a time: what is computed of them needs memory for a part."""
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, PIECE):
        yield tuple(array[start : start + PIECE] for array in flat)


# ---------------------------------------------------------------- reading a graph


_FLOAT, _HALF = 1, 10  # of onnx.TensorProto


def _taps(model: Any) -> Iterator[Tap]:
    known = (*model.graph.value_info, *model.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in known}
    values = {v.name: math.prod(d.dim_value or 1 for d in v.type.tensor_type.shape.dim) for v in known}
    halved = {
        node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Cast" and _target(node) == _HALF
    }
    keys = {v.name: v.name for v in model.graph.input if v.type.tensor_type.elem_type in (_FLOAT, _HALF)}
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in keys:  # a change of type makes no new tensor
            keys[node.output[0]] = keys[node.input[0]]
            continue
        place = "sparse.sample" if node.op_type == "RDSA" else node.name.rpartition("/")[0]
        stem = f"{place}/{node.op_type}"
        counts[stem] += 1
        sources = tuple(dict.fromkeys(keys[name] for name in node.input if name in keys))
        for number, name in enumerate(node.output):
            if types.get(name) in (_FLOAT, _HALF):
                keys[name] = f"{stem}.{counts[stem]}" + (f":{number}" if number else "")
                half = types[name] == _HALF or name in halved
                read_as = halved.get(name, name)
                yield Tap(name, keys[name], node.name, place, node.op_type, half, sources, read_as, values[name])


def _target(node: Any) -> int:
    return next(attribute.i for attribute in node.attribute if attribute.name == "to")


# ---------------------------------------------------------------- a graph with its taps as outputs


def _tapped(graph: Graph, tensors: Sequence[str]) -> Any:
    onnx: Any = require_package("onnx", "export")
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    _bar_halves(model, onnx)
    there = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in there)
    return model


def _bar_halves(model: Any, onnx: Any) -> None:
    """Behind every half tensor that a node makes, Unsqueeze and Squeeze, before anyone reads it."""
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    axis = "sdst.barrier.axis"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.int64), axis))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), _ZERO))
    nodes = []
    for node in model.graph.node:
        if node.op_type == "RDSA":
            nodes += _guarded_places(node, onnx)
        nodes.append(node)
        for number, name in enumerate(node.output):
            if types.get(name) == _HALF:
                made, viewed = f"{name}.made", f"{name}.viewed"
                node.output[number] = made
                nodes.append(onnx.helper.make_node("Unsqueeze", [made, axis], [viewed], f"{name}/unsqueeze"))
                nodes.append(onnx.helper.make_node("Squeeze", [viewed, axis], [name], f"{name}/squeeze"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


_ZERO = "sdst.barrier.zero"


def _guarded_places(rdsa: Any, onnx: Any) -> list[Any]:
    """Nodes that replace NaN and infinity by zero in the endpoints and references of an sdst::RDSA node."""
    nodes = []
    for number in (1, 2):
        name = rdsa.input[number]
        rest, finite, guarded = (f"{rdsa.name}.{number}.{part}" for part in ("rest", "finite", "guarded"))
        nodes += [
            onnx.helper.make_node("Sub", [name, name], [rest], rest),  # 0, or NaN for what is not finite
            onnx.helper.make_node("Equal", [rest, rest], [finite], finite),
            onnx.helper.make_node("Where", [finite, name, _ZERO], [guarded], guarded),
        ]
        rdsa.input[number] = guarded
    return nodes


def _open(model: Any, path: Path) -> Any:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # another model runs between two runs
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises many types that share no base
        raise InputError(f"{path}: ONNX Runtime cannot run it tapped ({str(error).splitlines()[0]})") from error
