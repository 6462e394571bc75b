"""The model's blocks as nodes: linear maps, norms, attention. Types are those of the modules (half.py).

Shapes: B batch, N queries, S keys, F width, H heads, D = F / H.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor as Weights
from torch import nn

from sdst_train.model.layers import MultiHeadAttention, Residual

from .builder import FLOAT, HALF, GraphBuilder, Tensor


def numpy(weights: Weights | None) -> np.ndarray:
    """float64, in which weights are folded."""
    assert weights is not None  # torch's stubs let a bias be absent
    return weights.detach().double().cpu().numpy()


class Blocks:
    """Writes modules of one model into a graph."""

    def __init__(self, builder: GraphBuilder, model: nn.Module, half: bool, kept: frozenset[str]) -> None:
        """`half`: a norm gives float16, unless `kept` names it or what holds it."""
        self.b = builder
        self._half, self._kept = half, kept
        self._paths = {module: path for path, module in model.named_modules()}

    def path(self, module: nn.Module) -> str:
        """Of a module within the model."""
        return self._paths[module]

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """The map in the type of its weight."""
        with self.b.at(self.path(module)):
            product = self.product(x, numpy(module.weight).T, module)
            return product if module.bias is None else self.b.add(product, self.like(module, numpy(module.bias)))

    def product(self, x: Tensor, weight: np.ndarray, module: nn.Linear) -> Tensor:
        """x weight, a matrix of in by out, in the type of the module's weight."""
        constant = self.like(module, weight)
        return self.b.op("MatMul", self.b.cast(x, constant.dtype), constant)

    def like(self, module: nn.Module, values: np.ndarray) -> Tensor:
        """A constant in the type of the module's weight."""
        return self.b.constant(values, dtype_of(module))

    def sequence(self, modules: nn.Sequential, x: Tensor) -> Tensor:
        """Linear, LayerNorm, ReLU and, without effect here, Dropout."""
        for module in modules:
            if isinstance(module, nn.Linear):
                x = self.linear(module, x)
            elif isinstance(module, nn.LayerNorm):
                x = self.norm(module, x)
            elif isinstance(module, nn.ReLU):
                with self.b.at(self.path(module)):
                    x = self.b.op("Relu", x)
        return x

    def norm(self, module: nn.LayerNorm, x: Tensor) -> Tensor:
        """In float32."""
        with self.b.at(self.path(module)):
            scale, bias = (self.b.constant(numpy(w)) for w in (module.weight, module.bias))
            y = self.b.op("LayerNormalization", self.b.float(x), scale, bias, axis=-1, epsilon=module.eps)
            return self.b.cast(y, HALF if self._half and not self._keeps(module) else FLOAT)

    def residual(self, module: Residual, x: Tensor, branch: Tensor) -> Tensor:
        """LayerNorm(x + branch)."""
        with self.b.at(self.path(module)):
            total = self.b.add(x, branch)
        return self.norm(module.norm, total)

    def _keeps(self, module: nn.Module) -> bool:
        path = self.path(module)
        return any(f"{path}.".startswith(f"{name}.") for name in self._kept)


class Attention:
    """One MultiHeadAttention. Queries and keys may have a place, added before their maps: it is mapped once a call.

    The scale of the scores is in the query map. The bias of the keys adds the same to all scores of a query, which a
    softmax does not see, and weights that sum to one carry the bias of the values to the output: the first is left out,
    the second is in the bias of `out`. A place is added behind the reshape to heads: right behind a product TensorRT
    for RTX 1.7 takes a constant of N rows for a bias of one and builds nothing where B is 1.
    """

    def __init__(self, blocks: Blocks, module: MultiHeadAttention) -> None:
        self.blocks, self.b, self.module = blocks, blocks.b, module
        self.width = module.query.in_features
        self.heads, self.depth = module.heads, self.width // module.heads
        scale = self.depth**-0.5
        self._query = numpy(module.query.weight).T * scale, numpy(module.query.bias) * scale
        self._key, self._value = (numpy(m.weight).T for m in (module.key, module.value))
        self._out_bias = numpy(module.out.bias) + numpy(module.out.weight) @ numpy(module.value.bias)

    # ------------------------------------------------------------ cross attention

    def place_queries(self, place: Tensor) -> Tensor:
        """What a place B N F adds to the queries, with their bias: B N H D."""
        placed = self._biased(self.module.query, place, *self._query)
        with self.b.at(self.blocks.path(self.module.query)):
            return self.b.reshape(placed, 0, 0, self.heads, self.depth)

    def constant_place(self, place: np.ndarray) -> Tensor:
        """The same of a place N F that is a parameter: 1 N H D."""
        weight, bias = self._query
        rows = (place @ weight + bias).reshape(1, len(place), self.heads, self.depth)
        return self.blocks.like(self.module.query, rows)

    def queries(self, x: Tensor, place: Tensor) -> Tensor:
        """B H N D of B N F; `place` of `place_queries` or `constant_place`."""
        with self.b.at(self.blocks.path(self.module.query)):
            rows = self.b.reshape(
                self.blocks.product(x, self._query[0], self.module.query), 0, 0, self.heads, self.depth
            )
            return self.b.transpose(self.b.add(rows, place), 0, 2, 1, 3)

    def constant_queries(self, x: np.ndarray) -> Tensor:
        """1 H N D of x N F, place included, that is a parameter."""
        weight, bias = self._query
        queries = (x @ weight + bias).reshape(len(x), self.heads, self.depth).swapaxes(0, 1)
        return self.blocks.like(self.module.query, queries[None])

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys A B H D S and values A B H S D of x B A S F: of all steps at once."""
        with self.b.at(self.blocks.path(self.module)):
            packed = self.blocks.product(x, np.concatenate((self._key, self._value), -1), self.module.query)
            packed = self.b.reshape(packed, 0, 0, 0, 2, self.heads, self.depth)
            key, value = (self.b.pick(packed, number, 3) for number in range(2))
            return self.b.transpose(key, 1, 0, 3, 4, 2), self.b.transpose(value, 1, 0, 3, 2, 4)

    # ------------------------------------------------------------ self-attention

    def place_all(self, place: Tensor) -> Tensor:
        """What a place B N F adds to queries, with their bias, and to keys, and nothing to values: B N 3 H D."""
        weight, bias = self._packed()
        with self.b.at(self.blocks.path(self.module)):
            mapped = self.blocks.product(place, weight, self.module.query)
            placed = np.repeat([1.0, 1.0, 0.0], self.width)
            mapped = self.b.op("Mul", mapped, self.blocks.like(self.module.query, placed))
            mapped = self.b.add(mapped, self.blocks.like(self.module.query, bias))
            return self.b.reshape(mapped, 0, 0, 3, self.heads, self.depth)

    def constant_place_all(self, place: np.ndarray) -> Tensor:
        """The same of a place N F that is a parameter: 1 N 3 H D."""
        weight, bias = self._packed()
        placed = np.repeat([1.0, 1.0, 0.0], self.width)
        rows = (place @ weight * placed + bias).reshape(1, len(place), 3, self.heads, self.depth)
        return self.blocks.like(self.module.query, rows)

    def attend_self(self, x: Tensor, place: Tensor, mask: Tensor | None) -> Tensor:
        """B N F of B N F; `place` of `place_all` or `constant_place_all`, mask as of `attend`."""
        with self.b.at(self.blocks.path(self.module)):
            packed = self.blocks.product(x, self._packed()[0], self.module.query)
            packed = self.b.add(self.b.reshape(packed, 0, 0, 3, self.heads, self.depth), place)
            query, key, value = split_packed(self.b, packed)
        return self.attend(query, key, value, mask)

    # ------------------------------------------------------------ any

    def attend_rows(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """B N F of queries B N F, keys and values B S F that change at every step, places included."""
        rows = self._split(self._biased(self.module.query, query, *self._query))
        keys, values = (self._split(self._mapped(*of)) for of in ((self.module.key, key), (self.module.value, value)))
        return self.attend(rows, self.b.transpose(keys, 0, 1, 3, 2), values, mask)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """B N F of queries, keys, values and mask of `attend`."""
        with self.b.at(self.blocks.path(self.module)):
            rows = attend(self.b, query, key, value, mask, self.width)
        return self._biased(self.module.out, rows, numpy(self.module.out.weight).T, self._out_bias)

    def _packed(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight F 3F and bias of queries, keys and values."""
        weight, bias = self._query
        return np.concatenate((weight, self._key, self._value), -1), np.pad(bias, (0, 2 * self.width))

    def _mapped(self, module: nn.Linear, x: Tensor) -> Tensor:
        with self.b.at(self.blocks.path(module)):
            return self.blocks.product(x, numpy(module.weight).T, module)

    def _biased(self, module: nn.Module, x: Tensor, weight: np.ndarray, bias: np.ndarray) -> Tensor:
        with self.b.at(self.blocks.path(module)):
            product = self.blocks.product(x, weight, self.module.query)
            return self.b.add(product, self.blocks.like(self.module.query, bias))

    def _split(self, x: Tensor) -> Tensor:
        return self.b.transpose(self.b.reshape(x, 0, 0, self.heads, self.depth), 0, 2, 1, 3)


def attend(b: GraphBuilder, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, width: int) -> Tensor:
    """softmax(query key + mask) value, B N F of queries B H N D, keys B H D S, values B H S D; mask B 1 1 S float32.

    The softmax is in float32, as torch's kernels keep its sums for half queries too.
    """
    scores = b.float(b.op("MatMul", query, key))
    if mask is not None:
        scores = b.add(scores, mask)
    weights = b.cast(b.op("Softmax", scores, axis=-1), value.dtype)
    return b.reshape(b.transpose(b.op("MatMul", weights, value), 0, 2, 1, 3), 0, 0, width)


def split_packed(b: GraphBuilder, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries B H N D, keys B H D N and values B H N D of B N 3 H D."""
    packed = b.transpose(packed, 2, 0, 3, 1, 4)
    query, key, value = (b.pick(packed, number, 0) for number in range(3))
    return query, b.transpose(key, 0, 1, 3, 2), value


def dtype_of(weights: nn.Module | Weights) -> int:
    """Of weights, or of a module's first ones."""
    first = weights if isinstance(weights, Weights) else next(weights.parameters())
    return HALF if first.element_size() == 2 else FLOAT


def minus_infinity(b: GraphBuilder, mask: Tensor, axes: Sequence[int]) -> Tensor:
    """0 where the mask is true and the least float32 elsewhere, to add to scores; `axes` are put in."""
    least = float(np.finfo(np.float32).min)
    return b.unsqueeze(b.op("Where", mask, b.constant(0.0), b.constant(least), dtype=FLOAT), *axes)
