"""The vision encoder and the decoder that feeds it: python benchmarks/encoder.py [--blocks 2] [--output DIR].

On a CPU: the encoder at full width and few blocks, through scaled_dot_product_attention and written out literally.
On a GPU besides: all 40 blocks in bfloat16, 4 and 8 frames, batches of 1 to 64: eager, torch.compile, CUDA graphs.
Last: clips a second that one thread decodes. Floors are the multiplications of the encoder at the rate of this
machine's own matrix product; 40 blocks take 2.31 TFLOP a clip at 4 frames, 5.08 at 8, and the pool 0.03 and 0.07.
The part for GPUs has not been run yet.

Shape letters: B clips, N tokens, C width, H heads, D = C / H, K layers.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro
from timing import interleave, matmul_rate, report
from torch import Tensor

from sdst.demo.render import make_plan, render_video
from sdst.demo.scenes import make_scene
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.media.clips import ClipStream
from sdst_train.backbone.vision import (
    INTERNVIDEO2_1B,
    POOL_NORM_EPS,
    RMS_NORM_EPS,
    AttentionPool,
    Block,
    VisionConfig,
    VisionEncoder,
)

K = 4
BATCHES = (1, 4, 16, 64)


def main(blocks: int = 2, frames: int = 4, seconds: float = 60.0, output: Path | None = None) -> None:
    """Time what this machine can.

    Args:
        blocks: Depth on a CPU.
        frames: A clip's, on a CPU.
        seconds: How long to measure each table.
        output: Folder for JSON files with the numbers.
    """

    def path(name: str) -> Path | None:
        return output and output / f"{name}.json"

    with torch.inference_mode():
        on_cpu(blocks, frames, seconds, path("encoder_cpu"))
        if torch.cuda.is_available():
            for count in (4, 8):
                for batch in BATCHES:
                    on_gpu(count, batch, seconds, path(f"encoder_gpu_{count}_frames_batch_{batch}"))
    decoding(seconds, path("decoding"))


def on_cpu(blocks: int, frames: int, seconds: float, output: Path | None) -> None:
    layers = min(K, blocks)
    encoder = random_encoder(dataclasses.replace(INTERNVIDEO2_1B, depth=blocks, frames=frames))
    video = torch.randn(1, 3, frames, 224, 224)
    variants = {
        "literal": lambda: literal(encoder, video, layers),
        "encoder": lambda: encoder(video, layers),
    }
    torch.testing.assert_close(variants["literal"](), variants["encoder"](), rtol=1e-3, atol=1e-4)
    flops, rate = clip_flops(encoder.config, frames, layers), matmul_rate(torch.device("cpu"), torch.float32)
    title = f"{blocks} of 40 blocks, one clip of {frames} frames, float32, {flops / 1e9:.0f} GFLOP"
    report(
        f"{title}, matrix product here {rate / 1e9:.0f} GFLOP/s",
        interleave(variants, seconds=seconds),
        items=1,
        floors_s=dict.fromkeys(variants, flops / rate),
        versions=versions(),
        output=output,
    )


def on_gpu(frames: int, batch: int, seconds: float, output: Path | None) -> None:
    device = torch.device("cuda")
    encoder = random_encoder(dataclasses.replace(INTERNVIDEO2_1B, frames=frames)).to(device, torch.bfloat16)
    video = torch.randn(batch, 3, frames, 224, 224, device=device, dtype=torch.bfloat16)
    torch.compiler.reset()
    compiled = torch.compile(encoder, dynamic=False)
    runs = {
        "eager": lambda: encoder(video, K),
        "CUDA graph": cuda_graph(lambda: encoder(video, K)),
        "torch.compile": lambda: compiled(video, K),
        "torch.compile, CUDA graph": cuda_graph(lambda: compiled(video, K)),
    }
    variants = {name: lambda run=run: (run(), torch.cuda.synchronize()) for name, run in runs.items()}
    flops, rate = batch * clip_flops(encoder.config, frames, K), matmul_rate(device, torch.bfloat16)
    title = f"40 blocks, {batch} clips of {frames} frames, bfloat16, {flops / batch / 1e12:.2f} TFLOP a clip"
    report(
        f"{title}, matrix product here {rate / 1e12:.0f} TFLOP/s",
        interleave(variants, seconds=seconds),
        items=batch,
        floors_s=dict.fromkeys(variants, flops / rate),
        versions={**versions(), "device": torch.cuda.get_device_name()},
        output=output,
    )


def decoding(seconds: float, output: Path | None) -> None:
    """A video of 480 x 480 pixels at 29.97 frames a second, into clips of 4 frames of 224 x 224 every 2 seconds."""
    rng = np.random.default_rng(0)
    scene = make_scene(rng)
    plan = make_plan(rng, scene.duration_s, "29.97")
    spec = FeatureSpec(
        backbone="", backbone_sha256="", layers=K, pool="adaptive", frames_per_clip=4, clip_s=2.0, image_size=224,
        resize="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), video_width=768, text_model="",
        max_tokens=40, text_width=1024,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        render_video(scene, plan, path, size=480)

        def decode() -> int:
            return sum(len(clips) for clips in ClipStream(path, spec, threads=1))

        title = f"decoding on one thread, {plan.duration_s:.0f} s of video, 480 x 480, H.264"
        report(title, interleave({"decode": decode}, seconds=seconds / 4), items=decode(), output=output)


def random_encoder(config: VisionConfig) -> VisionEncoder:
    """Weights that keep values of about the same size from block to block."""
    torch.manual_seed(0)
    encoder = VisionEncoder(config).eval().requires_grad_(False)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
    return encoder


def clip_flops(config: VisionConfig, frames: int, layers: int) -> int:
    """Multiplications and additions of one clip: the products of the blocks and of the pool's keys and values."""
    N, C, M = 1 + frames * config.grid**2, config.width, config.mlp_width
    block = 2 * N * C * (4 * C + 2 * M) + 4 * N**2 * C
    return config.depth * block + layers * 2 * N * C * 2 * C


def cuda_graph(run: Callable[[], object]) -> Callable[[], object]:
    """Record `run` once; the result replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def literal(encoder: VisionEncoder, video_B3THW: Tensor, layers: int) -> Tensor:
    """`encoder(video, layers)` as the formulas stand: B K V."""
    patches = torch.nn.functional.conv3d(
        video_B3THW, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, encoder.patch_embed.proj.stride
    )
    x = torch.cat([encoder.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + encoder.pos_embed
    kept = []
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = literal_block(block, x)
        kept.append(x)
    return torch.stack([literal_pool(encoder.clip_projector, x) for x in kept[-layers:]], dim=1)


def literal_block(block: Block, x: Tensor) -> Tensor:
    attn = block.attn
    q, k, v = attn.qkv(rms_norm(x, block.norm1.weight)).chunk(3, dim=-1)
    attended = literal_attention(rms_norm(q, attn.q_norm.weight), rms_norm(k, attn.k_norm.weight), v, attn.heads)
    x = x + attn.proj(attended) * block.ls1.gamma
    hidden = block.mlp.fc1(rms_norm(x, block.norm2.weight))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden * 0.5**0.5))
    return x + block.mlp.fc2(hidden) * block.ls2.gamma


def literal_pool(pool: AttentionPool, x: Tensor) -> Tensor:
    cross = pool.cross_attn
    q = layer_norm(x.mean(dim=1, keepdim=True), pool.norm1_q) @ cross.q.weight.T + cross.q_bias
    k = layer_norm(x, pool.norm1_k) @ cross.k.weight.T + cross.k_bias
    v = layer_norm(x, pool.norm1_v) @ cross.v.weight.T + cross.v_bias
    return cross.proj(literal_attention(q, k, v, cross.heads)).squeeze(1)


def literal_attention(q_BMC: Tensor, k_BNC: Tensor, v_BNC: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BMC, k_BNC, v_BNC))
    weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + RMS_NORM_EPS) * weight


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    spread = torch.sqrt(centred.pow(2).mean(dim=-1, keepdim=True) + POOL_NORM_EPS)
    return centred / spread * norm.weight + norm.bias


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "threads": str(torch.get_num_threads())}


if __name__ == "__main__":
    tyro.cli(main)
