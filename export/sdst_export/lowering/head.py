"""`SDST.project`, `SDST.ground_projected` and the pooled text as graphs (sdst_train/model/sdst.py), once it is lowered.

What no input changes is computed here: gates, queries and places of the moments, scales of scores. What no step changes
is computed once a call: masks, positions, what they add to queries and keys, and the text's keys and values of all
steps. Shapes: B batch, T clips, K steps, L tokens, M moments, F width, V video width, X text width.
"""

from __future__ import annotations

import math

import numpy as np
from torch import nn

from sdst_train.config import ModelConfig
from sdst_train.model.heads import Presence, TextPool
from sdst_train.model.layers import MultiHeadAttention
from sdst_train.model.rdsa import DeformableCrossAttention, LoweredRDSA
from sdst_train.model.sdst import SDST

from ..rdsa_op import rdsa_node
from .blocks import Attention, Blocks, dtype_of, minus_infinity, numpy
from .builder import BOOL, FLOAT, INT32, INT64, GraphBuilder, Tensor
from .sampling import Sizes, blend_rows, clips_of, deform, in_clips, twice


def project(b: GraphBuilder, blocks: Blocks, model: SDST, layers: int) -> Tensor:
    """The node `projected` B T K F of video B T layers V and video_mask B T."""
    config = model.config
    video, mask = Tensor("video", FLOAT), Tensor("video_mask", BOOL)
    wanted = _read_layers(config, layers)
    if len(wanted) < layers:
        video = b.pick(video, wanted, 2)
    video = b.op("Where", b.unsqueeze(mask, 2, 3), video, b.constant(0.0), dtype=FLOAT)
    start = b.unsqueeze(_clips(b, mask), 0, 2)  # 1 T 1
    length = b.float(b.op("ReduceSum", b.cast(mask, INT32), b.constant([1], INT64), keepdims=1))
    extent = b.op("Div", b.add(start, b.constant([0.0, 1.0])), b.unsqueeze(length, 2))  # B T 2
    extents = b.concat(*[b.unsqueeze(extent, 2)] * len(wanted), axis=2)
    projected = blocks.sequence(model.project_video, b.concat(video, extents, axis=3))
    return _in_order(b, projected, config, 2)


def ground(b: GraphBuilder, blocks: Blocks, model: SDST, layers: int) -> tuple[Tensor, ...]:
    """Moments B M 2, scores B M, saliency B T and, of a model that predicts it, presence B, float32, of projected
    B T K F, video_mask B T, text B layers L X and text_mask B L.
    """
    return _Head(b, blocks, model, layers).outputs()


def pool_sentence(b: GraphBuilder, blocks: Blocks, model: SDST, layers: int) -> Tensor:
    """B K F float32 of text B layers L X and text_mask B L: the projected text of each step, pooled, at length one."""
    config, mask = model.config, Tensor("text_mask", BOOL)
    text = _project_text(b, blocks, model, layers, mask)
    with b.at(blocks.path(model.text_pool)):
        unmasked = minus_infinity(b, mask, (1, 3))  # B 1 L 1
    pooled = _pooled(b, blocks, model.text_pool, text, unmasked, 2)  # B K F 1
    return _in_order(b, b.op("Squeeze", _normalised(b, pooled, 2), b.constant([3], INT64)), config, 1)


def _pooled(b: GraphBuilder, blocks: Blocks, pool: TextPool, text: Tensor, unmasked: Tensor, axis: int) -> Tensor:
    """The tokens of `axis`, weighed and added: .. L F -> .. F 1; `unmasked` .. L 1 is added to their logits."""
    logit = b.float(blocks.linear(pool.weight, text))
    with b.at(blocks.path(pool)):
        weights = b.cast(b.op("Softmax", b.add(logit, unmasked), axis=axis), text.dtype)
        return b.op("MatMul", b.transpose(text, *range(axis), axis + 1, axis), weights)


def projected_type(model: SDST) -> int:
    """Of `projected`: what the last product of the projection gives."""
    return dtype_of(model.project_video[-1])


class _Head:
    def __init__(self, b: GraphBuilder, blocks: Blocks, model: SDST, layers: int) -> None:
        self.b, self.blocks, self.model, self.config = b, blocks, model, model.config
        self.type = projected_type(model)
        self.projected = Tensor("projected", self.type)
        self.mask = Tensor("video_mask", BOOL)
        self.text_mask = Tensor("text_mask", BOOL)
        self.mask_BT1 = b.unsqueeze(self.mask, 2)
        self.unmasked = minus_infinity(b, self.mask, (1, 2))
        self.text_unmasked = minus_infinity(b, self.text_mask, (1, 2))
        self.length = b.op("ReduceSum", b.cast(self.mask, INT32), b.constant([1], INT64), keepdims=0)
        self.clips = clips_of(b, self.length)
        text = _project_text(b, blocks, model, layers, self.text_mask)  # B K L F, one layer when steps share the last
        self.text = b.name(text, "projected_text")
        self.position = self._position()

    def outputs(self) -> tuple[Tensor, ...]:
        dense = hidden = logit = None
        streams = _Dense(self), _Sparse(self)
        for step in range(self.config.layers):
            dense = streams[0].step(step, dense)
            hidden, logit = streams[1].step(step, hidden, logit, dense)
        assert dense is not None
        assert hidden is not None
        assert logit is not None
        return self._results(dense, hidden, logit)

    def text_layer(self, step: int) -> int:
        """Which of the projected layers a step reads."""
        if self.config.feature_mode == "last_repeat":
            return 0
        return self.config.layers - 1 - step if self.config.layer_order == "reversed" else step

    # ------------------------------------------------------------ once a call

    def _position(self) -> Tensor:
        """Sine features of the clips' centres, B T F in the type of `projected`."""
        b = self.b
        clip = b.add(b.unsqueeze(_clips(b, self.mask), 0), b.constant(0.5))  # 1 T
        n = b.reshape(self.clips[0], 0, 1, shape=("B", 1))
        return b.cast(_sine(b, b.op("Div", clip, n), self.config.width), self.type)

    # ------------------------------------------------------------ after the last step

    def _results(self, dense: Tensor, hidden: Tensor, logit: Tensor) -> tuple[Tensor, ...]:
        b, model = self.b, self.model
        span = b.op("Sigmoid", logit)
        centre, width = b.pick(span, [0], 2), b.pick(span, [1], 2)
        edges = b.add(b.op("Mul", width, b.constant([-0.5, 0.5])), centre)
        spans = b.op("Clip", edges, b.constant(0.0), b.constant(1.0))
        logits = b.float(self.blocks.linear(model.classify, hidden)), self._actionness(dense, span)
        scores = b.op("Squeeze", self._both(*logits), b.constant([2], INT64))
        found = spans, scores, self._saliency(dense)
        return found if model.presence is None else (*found, self._presence(model.presence, hidden))

    def _presence(self, module: Presence, hidden: Tensor) -> Tensor:
        """B."""
        b = self.b
        with b.at(self.blocks.path(module)):
            largest = b.op("ReduceMax", hidden, b.constant([1], INT64), keepdims=1)  # B 1 F
        logit = self.blocks.sequence(module.mlp, largest)
        with b.at(self.blocks.path(module)):
            return b.op("Squeeze", b.op("Sigmoid", b.float(logit)), b.constant([1, 2], INT64))

    def _both(self, one: Tensor, other: Tensor) -> Tensor:
        """sigmoid(one) sigmoid(other) of logits, in their order down to the least float: below -18 the sigmoid of ONNX
        Runtime on a CPU is flat, and the moments of a model whose scores are small would all be equal.
        """
        b = self.b
        unlikely = b.add(*(b.op("Softplus", b.op("Neg", logit)) for logit in (one, other)))
        return b.op("Exp", b.op("Neg", unlikely))

    def _actionness(self, dense: Tensor, span: Tensor) -> Tensor:
        """The logit, B M 1."""
        b, module = self.b, self.model.actionness
        with b.at(self.blocks.path(module)):
            n, last = self.clips
            centre, width = in_clips(b, span, n)
            place = np.repeat(numpy(module.place)[:, None], 2, 1).reshape(1, 1, -1, 1, 2)
            index = b.add(b.op("Mul", width, b.constant(place)), centre)  # B M bins 1 2
            rows = blend_rows(b, dense, index, last, np.zeros((module.bins, 1)), 1)
            rows = b.reshape(rows, 0, 0, module.bins * self.config.width)
        return b.float(self.blocks.sequence(module.mlp, rows))

    def _saliency(self, dense: Tensor) -> Tensor:
        b, pool = self.b, self.model.text_pool
        text = b.pick(self.text, self.text_layer(self.config.layers - 1), 1)
        with b.at(self.blocks.path(pool)):
            unmasked = b.reshape(self.text_unmasked, 0, -1, 1, shape=("B", "L", 1))
        pooled = _pooled(b, self.blocks, pool, text, unmasked, 1)  # B F 1
        cosine = b.op("MatMul", _normalised(b, dense, 2), _normalised(b, pooled, 1))
        curve = b.op("Where", self.mask_BT1, cosine, b.constant(-1.0), dtype=FLOAT)
        return b.op("Squeeze", curve, b.constant([2], INT64))


class _Dense:
    """DenseStream: the dense embeddings B T F of each step."""

    def __init__(self, head: _Head) -> None:
        self.head, self.b, self.blocks, self.module = head, head.b, head.blocks, head.model.dense
        gate = self.module.gate.detach().double()
        self.gates = gate if self.module.raw_gate else gate.sigmoid()
        self.cross = Attention(self.blocks, self.module.cross)
        self.own = Attention(self.blocks, self.module.self_attention)
        self.cross_place = self.cross.place_queries(head.position)
        self.own_place = self.own.place_all(head.position)
        self.keys, self.values = self.cross.keys_and_values(head.text)
        with self.b.at("dense"):
            fresh = (1 - self.gates).numpy()[:, None]
            self.fresh = self.b.op("Mul", head.projected, self.b.constant(fresh, head.type))

    def step(self, step: int, before: Tensor | None) -> Tensor:
        b, blocks, module, head = self.b, self.blocks, self.module, self.head
        with b.at("dense"):
            dense = b.pick(self.fresh, step, 2)
            if before is not None:
                dense = b.add(b.op("Mul", before, b.constant(float(self.gates[step]), before.dtype)), dense)
            layer = head.text_layer(step)
            key, value = b.pick(self.keys, layer, 0), b.pick(self.values, layer, 0)
        crossed = self.cross.attend(self.cross.queries(dense, self.cross_place), key, value, head.text_unmasked)
        dense = blocks.residual(module.after_cross, dense, crossed)
        dense = blocks.residual(module.after_self, dense, self.own.attend_self(dense, self.own_place, head.unmasked))
        return blocks.residual(module.after_ffn, dense, blocks.sequence(module.ffn, dense))


class _Sparse:
    """SparseStream: moment embeddings B M F and reference logits B M 2 of each step.

    Before the first step both are parameters, unless the queries are read off the clips: what the first step does
    with them alone is computed here, and the rest of it broadcasts over B.
    """

    def __init__(self, head: _Head) -> None:
        self.head, self.b, self.blocks, self.module = head, head.b, head.blocks, head.model.sparse
        self.place = numpy(self.module.position)
        self.cross = Attention(self.blocks, self.module.cross)
        self.own = Attention(self.blocks, self.module.self_attention)
        self.own_place = self.own.constant_place_all(self.place)
        self.keys, self.values = self.cross.keys_and_values(head.text)
        self._valid: dict[int, Tensor] = {}

    def step(self, step: int, hidden: Tensor | None, logit: Tensor | None, dense: Tensor) -> tuple[Tensor, Tensor]:
        b, blocks, module, head = self.b, self.blocks, self.module, self.head
        if hidden is None:
            hidden, queries = self._start(dense)
        else:
            queries = self._queries(hidden)
        if logit is None:
            logit = b.constant(numpy(module.reference_logit)[None])
            reference = self._first_reference()
        else:
            with b.at("sparse"):
                reference = b.op("Sigmoid", logit)
        layer = head.text_layer(step)
        with b.at("sparse"):
            key, value = b.pick(self.keys, layer, 0), b.pick(self.values, layer, 0)
        crossed = self.cross.attend(queries, key, value, head.text_unmasked)
        hidden = blocks.residual(module.after_cross, hidden, crossed)
        hidden = blocks.residual(module.after_self, hidden, self.own.attend_self(hidden, self.own_place, None))
        hidden = blocks.residual(module.after_sample, hidden, self._look(step, hidden, reference, dense))
        hidden = blocks.residual(module.after_ffn, hidden, blocks.sequence(module.ffn, hidden))
        moved = b.float(blocks.sequence(module.span, hidden))
        with b.at("sparse"):
            return hidden, b.add(moved, logit)

    def _start(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Moment embeddings, and the queries that they ask the text with."""
        if self.module.query is not None:
            query = numpy(self.module.query)
            return self.b.constant(query[None], dtype_of(self.module.query)), self.cross.constant_queries(
                query + self.place
            )
        with self.b.at("sparse"):
            n, last = self.head.clips
            centre, _ = in_clips(self.b, self._first_reference(), n)
            index = twice(self.b, self.b.clip(centre, self.b.constant(0.0), last))
            rows = blend_rows(self.b, dense, index, last, np.zeros((1, 1)), 1, inside=True)
            hidden = self.b.reshape(rows, 0, 0, self.head.config.width)
        return hidden, self._queries(hidden)

    def _queries(self, hidden: Tensor) -> Tensor:
        return self.cross.queries(hidden, self.cross.constant_place(self.place))  # which a model of one step has not

    def _first_reference(self) -> Tensor:
        """B M 2: the parameter plus zeros, as sdst::RDSA does not broadcast."""
        with self.b.at("sparse"):
            n = self.b.reshape(self.head.clips[0], 0, 1, 1, shape=("B", 1, 1))
            reference = self.b.constant(1 / (1 + np.exp(-numpy(self.module.reference_logit)))[None])
            return self.b.add(self.b.op("Sub", n, n), reference)

    # ------------------------------------------------------------ looking at the clips

    def _look(self, step: int, hidden: Tensor, reference: Tensor, dense: Tensor) -> Tensor:
        sample = self.module.sample
        if isinstance(sample, LoweredRDSA):
            return self._rdsa(step, sample, reference, dense)
        query = self._placed(hidden)
        if isinstance(sample, DeformableCrossAttention):
            return self._deformable(sample, query, reference, dense)
        assert isinstance(sample, MultiHeadAttention)
        b, half = self.b, self.head.config.width // 2
        with b.at("sparse"):
            sides = [b.pick(reference, side, 2) for side in range(2)]
            place = b.cast(b.concat(*(_sine(b, side, half) for side in sides), axis=2), query.dtype)
            query, key = b.add(query, place), b.add(dense, self.head.position)
        return Attention(self.blocks, sample).attend_rows(query, key, dense, self.head.unmasked)

    def _placed(self, hidden: Tensor) -> Tensor:
        with self.b.at("sparse"):
            return self.b.add(hidden, self.b.constant(self.place[None], dtype_of(self.module.position)))

    def _rdsa(self, step: int, sample: LoweredRDSA, reference: Tensor, dense: Tensor) -> Tensor:
        value = self.blocks.linear(sample.value, dense)
        with self.b.at("sparse"):
            seen = self.b.add(dense, self.head.position) if self.module.rdsa_position else dense
        endpoints = self.blocks.linear(sample.endpoints, self._context(sample.context, seen))
        with self.b.at("sparse.sample"):
            config = self.head.config
            sizes = Sizes(config.width, sample.heads, sample.points)
            found = rdsa_node(self.b, step, (value, endpoints, reference, self.head.length), config.queries, sizes)
        return self.blocks.linear(sample.out, found)

    def _context(self, conv: nn.Conv1d, seen: Tensor) -> Tensor:
        """`masked_context`."""
        b = self.b
        with b.at(self.blocks.path(conv)):
            width = self.head.config.width
            weight, bias = (self.blocks.like(conv, numpy(w)) for w in (conv.weight[..., None], conv.bias))
            masked = b.op("Mul", seen, self._one_where_valid(seen.dtype))  # in a third of the time of a Where
            columns = b.transpose(b.reshape(b.cast(masked, weight.dtype), 0, 0, width, 1), 0, 2, 1, 3)
            shape = ("B", width, "T", 1)  # of two axes, as TensorRT has no convolution of one
            found = b.op("Conv", columns, weight, bias, group=conv.groups, pads=[1, 0, 1, 0], shape=shape)
            return b.reshape(b.transpose(found, 0, 2, 1, 3), 0, 0, width)

    def _one_where_valid(self, dtype: int) -> Tensor:
        """B T 1, made once for all steps."""
        if dtype not in self._valid:
            self._valid[dtype] = self.b.cast(self.head.mask_BT1, dtype)
        return self._valid[dtype]

    def _deformable(
        self, sample: DeformableCrossAttention, query: Tensor, reference: Tensor, dense: Tensor
    ) -> Tensor:  # fmt: skip
        b, blocks = self.b, self.blocks
        sizes = Sizes(self.head.config.width, sample.heads, sample.points)
        offset, logit, value = (
            blocks.linear(m, x) for m, x in ((sample.offset, query), (sample.logit, query), (sample.value, dense))
        )
        with b.at(blocks.path(sample)):
            each = b.constant(1 / sample.points, offset.dtype)
            offset = b.reshape(b.float(b.op("Mul", offset, each)), 0, 0, sizes.heads, 1, sizes.points)
            logit = b.reshape(b.float(logit), 0, 0, sizes.heads, 1, sizes.points)
            n, last = self.head.clips
            found = deform(b, value, offset, logit, in_clips(b, reference, n), last, sizes)
        return blocks.linear(sample.out, found)


def _read_layers(config: ModelConfig, layers: int) -> list[int]:
    """Which of the stored layers a model reads: the last one, or one a step, shallow to deep."""
    return [layers - 1] if config.feature_mode == "last_repeat" else list(range(layers - config.layers, layers))


def _in_order(b: GraphBuilder, x: Tensor, config: ModelConfig, axis: int) -> Tensor:
    """`SDST._in_order`: one entry of the axis a step, of what `_read_layers` names."""
    if config.feature_mode == "last_repeat":
        return b.concat(*[x] * config.layers, axis=axis)
    return b.pick(x, list(reversed(range(config.layers))), axis) if config.layer_order == "reversed" else x


def _project_text(b: GraphBuilder, blocks: Blocks, model: SDST, layers: int, mask: Tensor) -> Tensor:
    """B K L F of text B layers L X, shallow to deep; one layer when all steps read the last."""
    text, wanted = Tensor("text", FLOAT), _read_layers(model.config, layers)
    if len(wanted) < layers:
        text = b.pick(text, wanted, 1)
    text = b.op("Where", b.unsqueeze(mask, 1, 3), text, b.constant(0.0), dtype=FLOAT)
    return blocks.sequence(model.project_text, text)


def _normalised(b: GraphBuilder, x: Tensor, axis: int) -> Tensor:
    """`x` in float32, of length one along an axis."""
    x = b.float(x)
    length = b.op("ReduceL2", x, b.constant([axis], INT64), keepdims=1)
    return b.op("Div", x, b.op("Max", length, b.constant(1e-12)))


def _clips(b: GraphBuilder, mask: Tensor) -> Tensor:
    """0 to T - 1, float32: T."""
    T = b.op("Squeeze", b.op("Shape", mask, start=1, end=2, dtype=INT64))
    return b.float(b.op("Range", b.constant(0, INT64), T, b.constant(1, INT64), dtype=INT64, shape=("T",)))


def _sine(b: GraphBuilder, position: Tensor, width: int) -> Tensor:
    """`sine_position`: one axis more, of `width`."""
    frequency = (2 * math.pi) * 10000.0 ** (np.arange(width // 2) * (-2.0 / width))
    angle = b.op("Mul", b.unsqueeze(position, 2), b.constant(frequency))
    return b.concat(b.op("Sin", angle), b.op("Cos", angle), axis=2)
