"""Builds an ONNX graph a node at a time, keeping the type of every tensor.

Nodes are named by the module that they compute, `dense.cross.query/MatMul_94`, and tensors by their node. A constant
that is used twice is one: an initialiser of a graph, a Constant node of a function, which has no initialisers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

FLOAT, HALF, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
INT32, INT64, UINT8 = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8
UNKNOWN = TensorProto.UNDEFINED  # of a function's input, which has the type that the node gives it


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph."""

    name: str
    dtype: int  # of onnx.TensorProto


class GraphBuilder:
    """The nodes and constants so far."""

    def __init__(self, *, function: bool = False) -> None:
        """`function`: constants become nodes."""
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights: list[ir.LazyTensor] = []  # initialisers that are made when the file is written
        self.shapes: dict[str, tuple[int, Sequence[int | str]]] = {}  # types and shapes that inference would not find
        self._function, self._place = function, ""
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Nodes of the block belong to the module `place`."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def op(
        self,
        kind: str,
        *inputs: Tensor,
        dtype: int | None = None,
        shape: Sequence[int | str] | None = None,
        **attributes: Any,
    ) -> Tensor:
        """The output of one more node, of the type of its first input unless `dtype` says another.

        `shape`: where ONNX's inference would lose the names of free axes.
        """
        number = len(self.nodes)
        name = f"{kind.lower()}_{number}"
        node_name = "" if self._function else f"{self._place}/{kind}_{number}"
        self.nodes.append(helper.make_node(kind, [x.name for x in inputs], [name], node_name, **attributes))
        found = Tensor(name, dtype or (BOOL if kind == "Equal" else inputs[0].dtype))
        if shape is not None:
            self.shapes[name] = found.dtype, shape
        return found

    def constant(self, values: Any, dtype: int = FLOAT) -> Tensor:
        """A tensor of these values."""
        array = np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(dtype))
        array = array.reshape(np.shape(values))  # of a scalar it makes a row
        key = (str(dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._new_constant(numpy_helper.from_array(array), dtype)
        return self._constants[key]

    def weight(
        self, name: str, *values: torch.Tensor, change: Callable[..., torch.Tensor] = lambda w: w
    ) -> Tensor:  # fmt: skip
        """`change(*values)`, which is computed when the file is written: a large model is not held twice."""
        form = change(*(w.detach().to("meta") for w in values))
        dtype = ir.DataType.FLOAT16 if form.dtype == torch.float16 else ir.DataType.FLOAT

        def make() -> ir.TensorProtocol:
            return ir.tensor(change(*(w.detach() for w in values)).cpu().contiguous().numpy(), dtype, name)

        self.weights.append(ir.LazyTensor(make, dtype, ir.Shape(form.shape), cache=False, name=name))
        return Tensor(name, int(dtype))

    def cast(self, x: Tensor, dtype: int) -> Tensor:
        """`x` in another type; itself when it has it."""
        return x if x.dtype == dtype else self.op("Cast", x, dtype=dtype, to=dtype)

    def cast_like(self, x: Tensor, like: Tensor) -> Tensor:
        """`x` in the type of `like`, which a function does not know beforehand."""
        return self.op("CastLike", x, like, dtype=like.dtype) if like.dtype == UNKNOWN else self.cast(x, like.dtype)

    def float(self, x: Tensor) -> Tensor:
        """`x` in float32."""
        return self.cast(x, FLOAT)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum; of a float32 and a half tensor in float32, as in torch."""
        return self.op("Add", *self._same(x, y))

    def reshape(self, x: Tensor, *sizes: int, shape: Sequence[int | str] | None = None) -> Tensor:
        """0 keeps an axis, -1 takes what is left; `shape` as of `op`."""
        return self.op("Reshape", x, self.constant(sizes, INT64), shape=shape)

    def unsqueeze(self, x: Tensor, *axes: int) -> Tensor:
        return self.op("Unsqueeze", x, self.constant(axes, INT64))

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        return self.op("Transpose", x, perm=perm)

    def pick(self, x: Tensor, index: int | Sequence[int], axis: int) -> Tensor:
        """Entries of one axis: a list of them keeps the axis, a number drops it."""
        return self.op("Gather", x, self.constant(index, INT32), axis=axis)  # int32: TensorRT's own

    def split(self, x: Tensor, count: int) -> list[Tensor]:
        """Equal parts of the last axis."""
        first = self.op("Split", x, axis=-1, num_outputs=count)
        names = [first.name, *(f"{first.name}_{part}" for part in range(1, count))]
        self.nodes[-1].output[:] = names
        return [Tensor(name, x.dtype) for name in names]

    def clip(self, x: Tensor, least: Tensor, most: Tensor) -> Tensor:
        """Between two tensors, which broadcast."""
        return self.op("Min", self.op("Max", x, least), most)

    def concat(self, *parts: Tensor, axis: int) -> Tensor:
        return self.op("Concat", *parts, axis=axis)

    def name(self, x: Tensor, name: str) -> Tensor:
        """Another name for what a node gave: that of an output of the graph."""
        for node in self.nodes:
            node.input[:] = [name if old == x.name else old for old in node.input]
            node.output[:] = [name if old == x.name else old for old in node.output]
        return Tensor(name, x.dtype)

    def _same(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, y) if x.dtype == y.dtype else (self.float(x), self.float(y))

    def _new_constant(self, tensor: onnx.TensorProto, dtype: int) -> Tensor:
        name = tensor.name = f"constant_{len(self._constants)}"
        if self._function:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.initializers.append(tensor)
        return Tensor(name, dtype)
