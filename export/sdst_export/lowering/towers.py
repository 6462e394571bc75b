"""The frozen towers as graphs (sdst_train/backbone/vision.py, and BERT as sdst_train/backbone/text.py runs it).

Each module computes in the type of its weights, which half.py has set; what stays float32 there stays float32 here.
Scales of scores are folded into what makes the queries. Shapes: N clips, F frames, S pixels, C vision width, T tokens
of a clip, B sentences, L tokens, X text width, K layers returned, H heads, D channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sdst_train.backbone.towers import TextTower, VisionTower
from sdst_train.backbone.vision import RMS_NORM_EPS, Attention, AttentionPool, Block, PoolAttention, RMSNorm

from .blocks import attend, minus_infinity, split_packed
from .builder import BOOL, INT32, INT64, UINT8, GraphBuilder, Tensor

Change = Callable[[torch.Tensor], torch.Tensor]


def see(b: GraphBuilder, tower: VisionTower) -> Tensor:
    """features N K V float32 of clips N F S S 3 uint8."""
    return _Vision(b, tower).features()


def read(b: GraphBuilder, tower: TextTower) -> Tensor:
    """features B K L X float32 of token_ids B L int64 and token_mask B L bool."""
    return _Text(b, tower).features()


class _Tower:
    """What both have: linear maps and norms, named by their modules."""

    def __init__(self, b: GraphBuilder, tower: nn.Module) -> None:
        self.b = b
        self._paths = {module: path for path, module in tower.named_modules()}

    def path(self, module: nn.Module) -> str:
        return self._paths[module]

    def weight(self, module: nn.Module, name: str = "weight", change: Change = lambda w: w) -> Tensor:
        """A parameter, changed by `change` when the file is written."""
        return self.b.weight(f"{self.path(module)}.{name}", module.get_parameter(name), change=change)

    def linear(self, module: nn.Linear, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x weight^T + bias in the type of the weight."""
        with self.b.at(self.path(module)):
            weight = self.weight(module, change=lambda w: w.T)
            product = self.b.op("MatMul", self.b.cast(x, weight.dtype), weight)
            if module.bias is not None:
                bias = self.weight(module, "bias")
            return product if bias is None else self.b.add(product, bias)

    def layer_norm(self, module: nn.LayerNorm, x: Tensor) -> Tensor:
        """In float32."""
        with self.b.at(self.path(module)):
            scale, bias = self.weight(module), self.weight(module, "bias")
            return self.b.op("LayerNormalization", self.b.float(x), scale, bias, axis=-1, epsilon=module.eps)

    def stack(self, layers: list[Tensor]) -> Tensor:
        """A new axis 1."""
        return self.b.concat(*(self.b.unsqueeze(layer, 1) for layer in layers), axis=1)


class _Vision(_Tower):
    def __init__(self, b: GraphBuilder, tower: VisionTower) -> None:
        super().__init__(b, tower)
        self.tower, self.encoder, self.config = tower, tower.encoder, tower.encoder.config

    def features(self) -> Tensor:
        b, spec, config = self.b, self.tower.spec, self.config
        x, kept = self._embed(Tensor("clips", UINT8)), []
        for index, block in enumerate(self.encoder.blocks):
            assert isinstance(block, Block)
            x = self._block(block, x)
            if index >= config.depth - spec.layers:
                kept.append(x)
        with b.at("encoder"):
            if spec.pool == "cls":
                return self.stack([b.pick(layer, 0, 1) for layer in kept])
            hidden = self.stack(kept)
            if spec.pool == "mean":
                return b.op("ReduceMean", hidden, b.constant([2], INT64), keepdims=0)
            shape = self._tokens, config.width
            rows = b.reshape(hidden, -1, *shape, shape=(f"{spec.layers}*N", *shape))
        pooled = b.float(self._pool(self.encoder.clip_projector, rows))
        shape = spec.layers, config.output_width
        return b.reshape(pooled, -1, *shape, shape=("N", *shape))

    @property
    def _tokens(self) -> int:
        return 1 + self.tower.spec.frames_per_clip * self.config.grid**2

    def _embed(self, clips: Tensor) -> Tensor:
        b, spec, config, embed = self.b, self.tower.spec, self.config, self.encoder.patch_embed
        size, patch, frames = spec.image_size, config.patch_size, spec.frames_per_clip
        mean, std = (getattr(self.tower, name).double().numpy() for name in ("mean", "std"))
        pixels = b.add(b.op("Mul", b.float(clips), b.constant(1 / (255 * std))), b.constant(-mean / std))
        with b.at(self.path(embed)):
            images = b.reshape(pixels, -1, size, size, 3, shape=(f"{frames}*N", size, size, 3))
            images = b.transpose(images, 0, 3, 1, 2)
            weight = self.weight(embed.proj, change=lambda w: w.squeeze(2))
            bias = self.weight(embed.proj, "bias")
            found = b.op("Conv", b.cast(images, weight.dtype), weight, bias, strides=[patch, patch])
            found = b.transpose(b.reshape(found, 0, config.width, config.grid**2), 0, 2, 1)
            shape = self._tokens - 1, config.width
            found = b.float(b.reshape(found, -1, *shape, shape=("N", *shape)))
        with b.at("encoder"):
            count = b.op("Shape", clips, start=0, end=1, dtype=INT64)
            sizes = b.concat(count, b.constant([1, config.width], INT64), axis=0)
            first = b.weight("encoder.cls_token", self.encoder.cls_token)
            first = b.op("Expand", first, sizes, shape=("N", 1, config.width))
            positions = self.encoder.positions(frames, config.grid, config.grid)
            return b.add(b.concat(first, found, axis=1), b.weight("encoder.pos_embed", positions))

    def _block(self, block: Block, x: Tensor) -> Tensor:
        attended = self._attention(block.attn, self._rms(block.norm1, x))
        x = self._into_stream(block, block.ls1, attended, x)
        fc1, fc2 = block.mlp.fc1, block.mlp.fc2
        hidden = self.linear(fc1, self._rms(block.norm2, x))
        with self.b.at(self.path(block.mlp)):
            hidden = self.b.op("Gelu", hidden)
        return self._into_stream(block, block.ls2, self.linear(fc2, hidden), x)

    def _into_stream(self, block: Block, scale: nn.Module, branch: Tensor, x: Tensor) -> Tensor:
        with self.b.at(self.path(scale)):
            branch = self.b.op("Mul", self.b.float(branch), self.weight(scale, "gamma"))
        with self.b.at(self.path(block)):
            return self.b.add(x, branch)

    def _rms(self, module: RMSNorm, x: Tensor, scale: float = 1.0) -> Tensor:
        """In float32, times `scale`; the type of x. By the nodes that ONNX Runtime knows as one kernel."""
        b = self.b
        with b.at(self.path(module)):
            full = b.float(x)
            square = b.op("ReduceMean", b.op("Pow", full, b.constant(2.0)), b.constant([-1], INT64), keepdims=1)
            root = b.op("Sqrt", b.add(square, b.constant(RMS_NORM_EPS)))
            weight = self.weight(module, change=lambda w: w * scale)
            return b.cast(b.op("Mul", b.op("Div", full, root), weight), x.dtype)

    def _attention(self, module: Attention, x: Tensor) -> Tensor:
        b, depth = self.b, self.config.width // module.heads
        packed = self.linear(module.qkv, x)
        with b.at(self.path(module)):
            query, key, value = b.split(packed, 3)
        query, key = self._rms(module.q_norm, query, depth**-0.5), self._rms(module.k_norm, key)
        with b.at(self.path(module)):
            rows = self._attend(query, key, value, module.heads)
        return self.linear(module.proj, rows)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """N M C of queries N M C, keys and values N T C."""
        b, depth = self.b, self.config.width // heads
        query, key, value = (b.reshape(x, 0, 0, heads, depth) for x in (query, key, value))
        query, key, value = b.transpose(query, 0, 2, 1, 3), b.transpose(key, 0, 2, 3, 1), b.transpose(value, 0, 2, 1, 3)
        return attend(b, query, key, value, None, self.config.width)

    def _pool(self, pool: AttentionPool, x: Tensor) -> Tensor:
        """K*N V of K*N T C."""
        b = self.b
        with b.at(self.path(pool)):
            mean = b.op("ReduceMean", x, b.constant([1], INT64), keepdims=1)
        norms = (pool.norm1_q, mean), (pool.norm1_k, x), (pool.norm1_v, x)
        found = self._pool_attention(pool.cross_attn, *(self.layer_norm(norm, of) for norm, of in norms))
        with b.at(self.path(pool)):
            return b.op("Squeeze", found, b.constant([1], INT64))

    def _pool_attention(self, module: PoolAttention, *inputs: Tensor) -> Tensor:
        b, depth = self.b, self.config.width // module.heads
        parts = zip((module.q, module.k, module.v), inputs, ("q_bias", "k_bias", "v_bias"), strict=True)
        query, key, value = (self.linear(map_, x, self.weight(module, bias)) for map_, x, bias in parts)
        with b.at(self.path(module)):
            query = b.op("Mul", query, b.constant(depth**-0.5, query.dtype))
            rows = self._attend(query, key, value, module.heads)
        return self.linear(module.proj, rows)


class _Text(_Tower):
    def __init__(self, b: GraphBuilder, tower: TextTower) -> None:
        super().__init__(b, tower)
        self.tower, self.config = tower, tower.encoder.config
        self.bert: Any = tower.encoder.bert

    def features(self) -> Tensor:
        b, kept = self.b, []
        with b.at("encoder"):
            mask = minus_infinity(b, Tensor("token_mask", BOOL), (1, 2))
        x = self._embed(Tensor("token_ids", INT64))
        for index, layer in enumerate(self.bert.encoder.layer):
            x = self._layer(layer, x, mask)
            if index >= self.config.depth - self.tower.spec.layers:
                kept.append(x)
        with b.at("encoder"):
            return self.stack(kept)

    def _embed(self, ids: Tensor) -> Tensor:
        b, embed = self.b, self.bert.embeddings
        ids = b.cast(ids, INT32)  # TensorRT's type of an index
        with b.at(self.path(embed)):
            words = b.float(b.op("Gather", self.weight(embed.word_embeddings), ids, axis=0))
            kind = self.weight(embed.token_type_embeddings, change=lambda w: w[0].float())
            length = b.op("Shape", ids, start=1, end=2, dtype=INT64)
            table, zero = self.weight(embed.position_embeddings), b.constant([0], INT64)
            places = b.float(b.op("Slice", table, zero, length, zero, shape=("L", self.config.width)))
            x = b.add(b.add(words, kind), places)
        return self.layer_norm(embed.LayerNorm, x)

    def _layer(self, layer: Any, x: Tensor, mask: Tensor) -> Tensor:
        attended = self._self_attention(layer.attention.self, x, mask)
        x = self._residual(layer.attention.output, attended, x)
        hidden = self.linear(layer.intermediate.dense, x)
        with self.b.at(self.path(layer.intermediate)):
            hidden = self.b.op("Gelu", hidden)
        return self._residual(layer.output, hidden, x)

    def _residual(self, output: Any, branch: Tensor, x: Tensor) -> Tensor:
        branch = self.linear(output.dense, branch)
        with self.b.at(self.path(output)):
            total = self.b.add(branch, x)
        return self.layer_norm(output.LayerNorm, total)

    def _self_attention(self, module: Any, x: Tensor, mask: Tensor) -> Tensor:
        """Queries, keys and values are one product."""
        b, path, heads = self.b, self.path(module), self.config.heads
        depth = self.config.width // heads
        parts = module.query, module.key, module.value

        def pack(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            packed = torch.cat(((query.double() * depth**-0.5).to(key.dtype), key, value))
            return packed if packed.ndim == 1 else packed.T

        with b.at(path):
            weight, bias = (
                b.weight(f"{path}.{name}", *(part.get_parameter(name) for part in parts), change=pack)
                for name in ("weight", "bias")
            )
            packed = b.add(b.op("MatMul", b.cast(x, weight.dtype), weight), bias)
            packed = b.reshape(packed, 0, 0, 3, heads, depth)
            return attend(b, *split_packed(b, packed), mask, self.config.width)
