"""Reading rows between clips, as sdst_train.model.rdsa does: sdst::RDSA's body, and what the other heads sample.

An index is fractional: index 2.25 reads a quarter of row 3 and three of row 2. Shapes: B batch, T clips, M moments, F
width, H heads, P points, D = F / H, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .builder import FLOAT, INT64, GraphBuilder, Tensor


@dataclass(frozen=True)
class Sizes:
    """Of one sdst::RDSA."""

    width: int  # F
    heads: int  # H
    points: int  # P

    @property
    def depth(self) -> int:
        """D, of a head."""
        return self.width // self.heads


ENDS = (-0.5, 0.0, 0.5)  # left end, centre and right end of a moment, in widths from its centre


def blend_rows(
    b: GraphBuilder,
    rows: Tensor,
    index: Tensor,
    last: Tensor,
    first: np.ndarray,
    stride: int,
    weight: Tensor | None = None,
    inside: bool = False,
) -> Tensor:
    """Sums over P of rows read at fractional clips: B M G 1 C in the type of rows, computed in float32.

    rows B R C, of which clip t of group g and point p is row t * stride + first[g, p]. index B M G 1 2P float32 and
    weight of the same shape hold each point twice (`twice`), for the clip before and the clip behind. last B 1 1 1 1,
    the last valid clip: a row outside the video counts as zeros and is not read. `inside`: the caller promises that the
    index lies inside, 0 to last.
    """
    groups, points = first.shape
    clip = b.add(b.op("Floor", index), b.constant(_five(np.repeat([0.0, 1.0], points))))
    near = b.op("Sub", b.constant(_five(1.0)), b.op("Abs", b.op("Sub", index, clip)))
    if inside:
        valid = b.op("Min", clip, last)
    else:
        valid = b.clip(clip, b.constant(_five(0.0)), last)
        near = b.op("Where", b.op("Equal", clip, valid), near, b.constant(_five(0.0)), dtype=FLOAT)
    if weight is not None:
        near = b.op("Mul", near, weight)
    if stride != 1:
        valid = b.op("Mul", valid, b.constant(_five(stride)))
    if first.any():
        valid = b.add(valid, b.constant(np.tile(first, 2).reshape(1, 1, groups, 1, 2 * points)))
    row = b.op(
        "Max", b.cast(valid, INT64), b.constant(np.zeros((1,) * 5), INT64)
    )  # of NaN too, which must not end a run
    place = b.reshape(row, 0, 0, groups, 2 * points, 1)
    found = b.op("GatherND", rows, place, batch_dims=1)  # B M G 2P C
    return b.cast_like(b.op("MatMul", near, b.float(found)), rows)


def twice(b: GraphBuilder, x: Tensor) -> Tensor:
    """B M G 1 2P of B M G 1 P."""
    return b.concat(x, x, axis=4)


def clips_of(b: GraphBuilder, length: Tensor) -> tuple[Tensor, Tensor]:
    """The number of valid clips and the last of them, B 1 1 1 1 float32, from length B."""
    n = b.reshape(b.float(length), -1, 1, 1, 1, 1, shape=("B", 1, 1, 1, 1))
    return n, b.op("Sub", n, b.constant(_five(1.0)))


def in_clips(b: GraphBuilder, reference: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Centre, as a fractional clip index, and width in clips of moments B M 2: both B M 1 1 1."""
    scaled = b.op("Mul", b.reshape(reference, 0, 0, 1, 1, 2), n)
    return b.op("Sub", b.pick(scaled, [0], 4), b.constant(_five(0.5))), b.pick(scaled, [1], 4)


def deform(
    b: GraphBuilder,
    value: Tensor,
    offset: Tensor,
    logit: Tensor,
    moment: tuple[Tensor, Tensor],
    last: Tensor,
    sizes: Sizes,
) -> Tensor:
    """`sdst_train.model.rdsa.deform`: B M F in the type of value.

    value B T F; offset and logit B M H 1 P float32; moment of `in_clips`, last of `clips_of`.
    """
    (centre, width), heads, points = moment, sizes.heads, sizes.points
    index = b.add(b.op("Mul", offset, b.op("Mul", width, b.constant(_five(0.5)))), centre)
    weight = b.op("Softmax", logit, axis=-1)
    rows = b.reshape(value, 0, -1, sizes.depth, shape=("B", f"{heads}*T", sizes.depth))
    first = np.broadcast_to(np.arange(heads)[:, None], (heads, points))
    found = blend_rows(b, rows, twice(b, index), last, first, heads, twice(b, weight))
    return b.reshape(found, 0, 0, sizes.width)


def rdsa_body(
    b: GraphBuilder, value: Tensor, endpoints: Tensor, reference: Tensor, length: Tensor, sizes: Sizes
) -> Tensor:
    """`sdst_train.model.rdsa.rdsa`: value B T F, endpoints B T 3*2*H*P, reference B M 2, length B int32 -> B M F."""
    heads, points = sizes.heads, sizes.points
    n, last = clips_of(b, length)
    centre, width = moment = in_clips(b, reference, n)
    ends = b.add(b.op("Mul", width, b.constant(_five(np.tile(ENDS, 2)))), centre)
    ends = b.clip(ends, b.constant(_five(0.0)), last)
    rows = b.reshape(endpoints, 0, -1, 2 * heads * points)
    predicted = blend_rows(b, rows, ends, last, np.arange(3)[None], 3, inside=True)
    predicted = b.reshape(predicted, 0, 0, 2, heads, 1, points)
    return deform(b, value, b.pick(predicted, 0, 2), b.pick(predicted, 1, 2), moment, last, sizes)


def _five(values: float | np.ndarray) -> np.ndarray:
    """A constant with all five axes, so that no parser has to add them."""
    return np.reshape(values, (1, 1, 1, 1, -1))
