"""The vision tower at 1B size to ONNX: python benchmarks/export_1b.py [--precision fp32] [--out DIR].

Random weights, the real configuration. Exports, writes the weights beside the graph, opens the file again and compares
its structure with the configuration, operator by operator: counts, shapes of the weights, types, the free batch axis.
Then one clip runs on ONNX Runtime and in float32 torch. Prints seconds and peak memory of each step.
"""

from __future__ import annotations

import collections
import contextlib
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import tyro
from onnxscript import ir
from rich.console import Console

from sdst_export.graph import save_model
from sdst_export.half import Precision
from sdst_export.models import export_vision
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.sessions.open import open_session
from sdst_train.backbone.text import TextConfig, TextEncoder
from sdst_train.backbone.towers import Backbone
from sdst_train.backbone.vision import INTERNVIDEO2_1B, VisionConfig, VisionEncoder

LAYERS = 4
say = Console(width=160, highlight=False, soft_wrap=True).print


def main(precision: Precision = "fp32", depth: int = INTERNVIDEO2_1B.depth, out: Path | None = None) -> None:
    """Export once and check the graph.

    Args:
        precision: Of the products.
        depth: Blocks; fewer for a quick look.
        out: Where to leave vision.onnx and vision.onnx.data; default: a temporary folder that is removed.
    """
    config = VisionConfig(**{**vars(INTERNVIDEO2_1B), "depth": depth, "aligned_width": 0})
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with step("random weights"):
            backbone = random_backbone(config)
        with step(f"export, {precision}"):
            model = export_vision(backbone, precision)
        with step("write"):
            save_model(model, folder / "vision.onnx")
        for path in sorted(folder.glob("vision.onnx*")):
            say(f"{path.name}: {path.stat().st_size:,} bytes")
        del model
        with step("structure"):
            check(ir.load(folder / "vision.onnx"), config, precision)
        compare(backbone, folder / "vision.onnx")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    say(f"{name}: {time.perf_counter() - start:.1f} s, peak memory so far {peak:.2f} GB")


def random_backbone(config: VisionConfig) -> Backbone:
    """Vision of `config`, beside it the smallest text tower, which gives the contract its widths."""
    torch.manual_seed(0)
    with torch.device("meta"):
        vision = VisionEncoder(config)
    weights = {}
    for name, value in vision.state_dict().items():
        spread = value[0].numel() ** -0.5 if value.dim() > 1 else 0.2
        weights[name] = torch.empty(value.shape).normal_(std=spread)
    vision.load_state_dict(weights, strict=True, assign=True)
    text = TextEncoder(TextConfig(vocab_size=8, width=8, depth=LAYERS, heads=1, mlp_width=8, max_positions=8))
    spec = FeatureSpec(
        backbone="random", backbone_sha256="", layers=LAYERS, pool="adaptive", frames_per_clip=config.frames,
        clip_s=2.0, image_size=config.image_size, resize="bicubic", mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225), video_width=1, text_model="none", max_tokens=8, text_width=1,
    )  # fmt: skip
    return Backbone.assemble(vision, text, spec, "")


def check(model: ir.Model, config: VisionConfig, precision: Precision) -> None:
    """Raise AssertionError where the graph is not the configuration's."""
    found = collections.Counter(node.op_type for node in model.graph)
    say("operators:", ", ".join(f"{count} {name}" for name, count in found.most_common()))
    for name, count in expected_operators(config.depth).items():
        assert found[name] == count, f"expected {count} {name}, the graph has {found[name]}"
    weights = product_weights(model)
    assert weights == expected_weights(config), f"weights of the products: {weights}"
    say("weights of the products:", ", ".join(f"{count} x {shape}" for shape, count in sorted(weights.items())))
    tokens = 1 + config.frames * config.grid**2
    table = model.graph.initializers["encoder.pos_embed"]
    assert tuple(table.shape or ()) == (1, tokens, config.width)
    check_types(model, ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.FLOAT)
    (clips,), (features,) = model.graph.inputs, model.graph.outputs
    size = config.image_size
    assert str(clips.shape) == f"[N,{config.frames},{size},{size},3]", str(clips.shape)
    assert str(features.shape) == f"[N,{LAYERS},{config.output_width}]", str(features.shape)
    elements = sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value)
    say(f"{elements:,} numbers in the graph's weights; clips {clips.shape} -> features {features.shape}")


def compare(backbone: Backbone, path: Path) -> None:
    """One clip of noise through the file and through float32 torch."""
    spec = backbone.spec
    shape = (1, spec.frames_per_clip, spec.image_size, spec.image_size, 3)
    clips = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with step("one clip in torch, float32"):
        want = backbone.vision(torch.from_numpy(clips))[0]
    with step("opening on ONNX Runtime"):
        session = open_session(path)
    with step("one clip on ONNX Runtime"):
        got = torch.from_numpy(session.run({"clips": clips})["features"][0])
    cosine = torch.nn.functional.cosine_similarity(got, want, dim=-1)
    say(f"largest error {(got - want).abs().max():.2e} of values up to {want.abs().max():.2f}")
    say("cosine by layer:", ", ".join(f"{value:.6f}" for value in cosine))


def expected_operators(depth: int) -> dict[str, int]:
    """Of `depth` blocks and the pool."""
    return {
        "Conv": 1,
        "MatMul": 6 * depth + 6,  # qkv, q k^T, weights v, proj, fc1, fc2; the pool's q, k, v, q k^T, weights v, proj
        "Softmax": depth + 1,
        "Sqrt": 4 * depth,  # one in each RMSNorm: norm1, q, k, norm2
        "ReduceMean": 4 * depth + 1,  # and the pool's query
        "LayerNormalization": 3,
        "Gelu": depth,
        "Split": depth,
    }


def expected_weights(config: VisionConfig) -> collections.Counter[tuple[int, ...]]:
    """Shapes of the matrices that products read, and how many."""
    C, M, depth = config.width, config.mlp_width, config.depth
    shapes = collections.Counter({(C, 3 * C): depth, (C, C): depth + 3, (C, M): depth, (M, C): depth})
    return shapes + collections.Counter({(C, config.output_width): 1})


def product_weights(model: ir.Model) -> collections.Counter[tuple[int, ...]]:
    inputs = (node.inputs[1] for node in model.graph if node.op_type == "MatMul")
    return collections.Counter(tuple(x.shape.numpy()) for x in inputs if x and x.shape and x.is_initializer())


def check_types(model: ir.Model, products: ir.DataType) -> None:
    """Products in their type; softmax, norms and the output in float32."""
    for node in model.graph:
        first = node.inputs[0].dtype if node.inputs and node.inputs[0] else None
        if node.op_type in ("MatMul", "Conv"):
            assert first == products, f"{node.name}: {first}"
        if node.op_type in ("Softmax", "ReduceMean", "LayerNormalization", "Sqrt"):
            assert first == ir.DataType.FLOAT, f"{node.name}: {first}"
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


if __name__ == "__main__":
    tyro.cli(main)
