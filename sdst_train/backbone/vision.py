"""The InternVideo2 vision encoder with its AdaptivePool, at any size, in plain torch.

One pass returns what SDST reads: the residual stream after the last K blocks, each through the one frozen attention
pool of the last layer. Parameter names are those of the released Stage-2 checkpoint without `vision_encoder.`
(`vision_proj.*` keeps its own name), so a released state dict loads strictly.

Shape letters: B clips in a batch, T frames, N = 1 + T * grid * grid tokens (cls first, then frame-major), C width,
H heads, D = C / H, K layers returned, V pooled width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdst_runtime.errors import InputError

Pool = Literal["adaptive", "cls", "mean"]
POOLS: tuple[Pool, ...] = ("adaptive", "cls", "mean")

RMS_NORM_EPS = 1e-6
POOL_NORM_EPS = 1e-5


@dataclass(frozen=True)
class VisionConfig:
    """Size of a vision encoder."""

    image_size: int  # pixels, square
    patch_size: int
    frames: int  # of the stored position table; other lengths are interpolated
    width: int  # C
    depth: int
    heads: int
    mlp_width: int
    pool_heads: int
    output_width: int  # V of the AdaptivePool
    aligned_width: int = 0  # of `vision_proj`, the space shared with text in pre-training; 0 = without

    def __post_init__(self) -> None:
        for size, part, names in (
            (self.image_size, self.patch_size, "image_size and patch_size"),
            (self.width, self.heads, "width and heads"),
            (self.width, self.pool_heads, "width and pool_heads"),
        ):
            if part < 1 or size < part or size % part:
                raise InputError(f"VisionConfig: {names}: expected a multiple, got {size} and {part}")
        if min(self.frames, self.depth, self.mlp_width, self.output_width) < 1 or self.aligned_width < 0:
            raise InputError(f"VisionConfig: every size must be positive, got {self}")

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


INTERNVIDEO2_1B = VisionConfig(
    image_size=224,
    patch_size=14,
    frames=4,
    width=1408,
    depth=40,
    heads=16,
    mlp_width=6144,
    pool_heads=16,
    output_width=768,
    aligned_width=512,
)


class VisionEncoder(nn.Module):
    """Video to the last K layers, pooled."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        tokens = config.grid**2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.frames * tokens, config.width))
        self.img_pos_embed = nn.Parameter(torch.empty(1, 1 + tokens, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.clip_projector = AttentionPool(config)
        # Unused for features; the checkpoint's `vision_proj` compares a pooled clip with a sentence.
        self.vision_proj = nn.Linear(config.output_width, config.aligned_width) if config.aligned_width else None
        for table in (self.cls_token, self.pos_embed, self.img_pos_embed):
            nn.init.normal_(table, std=0.1)

    def forward(self, video_B3THW: Tensor, layers: int, pool: Pool = "adaptive") -> Tensor:
        """Normalised video B 3 T H W (float) to features B K V, the last `layers` blocks, shallow to deep.

        V is `feature_width(pool)`: `adaptive` is the frozen attention pool, `cls` the class token, `mean` the average
        of all tokens (class token included, as in the query of the attention pool).
        """
        hidden_BKNC = self.hidden(video_B3THW, layers)
        if pool == "cls":
            return hidden_BKNC[:, :, 0]
        if pool == "mean":
            return hidden_BKNC.mean(dim=2)
        if pool != "adaptive":
            raise InputError(f"pool: expected one of {POOLS}, got {pool!r}")
        batch, _, tokens, width = hidden_BKNC.shape
        pooled = self.clip_projector(hidden_BKNC.reshape(-1, tokens, width))
        return pooled.reshape(batch, layers, self.config.output_width)

    def hidden(self, video_B3THW: Tensor, layers: int) -> Tensor:
        """The residual stream after the last `layers` blocks: B K N C, shallow to deep. No final norm."""
        if not 1 <= layers <= self.config.depth:
            raise InputError(f"layers: expected 1 to {self.config.depth} (the encoder's depth), got {layers}")
        x_BNC = self.embed(video_B3THW)
        kept = []
        for index, block in enumerate(self.blocks):
            x_BNC = block(x_BNC)
            if index >= self.config.depth - layers:
                kept.append(x_BNC)
        return torch.stack(kept, dim=1)

    def embed(self, video_B3THW: Tensor) -> Tensor:
        """Tokens before the first block, position added: B N C."""
        batch, _, frames, height, width = video_B3THW.shape
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise InputError(f"video: expected height and width in multiples of {patch}, got {height} x {width}")
        x_BNC = torch.cat([self.cls_token.expand(batch, -1, -1), self.patch_embed(video_B3THW)], dim=1)
        return x_BNC + self.positions(frames, height // patch, width // patch)

    def positions(self, frames: int, rows: int, columns: int) -> Tensor:
        """The position table for `frames` frames of rows x columns patches: 1 N C. One frame has a table of its own."""
        if frames == 1:
            return interpolate_positions(self.img_pos_embed, 1, self.config.grid, frames, rows, columns)
        return interpolate_positions(self.pos_embed, self.config.frames, self.config.grid, frames, rows, columns)

    def aligned(self, pooled: Tensor) -> Tensor:
        """Pooled clips [..., V] to unit vectors in the space shared with sentences."""
        if self.vision_proj is None:
            raise InputError("this encoder has no vision_proj: set VisionConfig.aligned_width")
        return F.normalize(self.vision_proj(pooled), dim=-1)

    def feature_width(self, pool: Pool) -> int:
        """V for a way of pooling."""
        return self.config.output_width if pool == "adaptive" else self.config.width


def sincos_positions(config: VisionConfig) -> Tensor:
    """The official initial position table 1, 1 + T * grid^2, C: a quarter of the width for time, the rest for x, y."""
    C, grid = config.width, config.grid

    def waves(position_N: Tensor, width: int) -> Tensor:
        omega = 10000.0 ** (torch.arange(width // 2, dtype=torch.float64) * (-2.0 / width))
        angle = position_N[:, None] * omega
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    axes = (torch.arange(n, dtype=torch.float64) for n in (config.frames, grid, grid))
    time, row, column = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    spatial = C // 4 * 3 // 2
    table = torch.cat((waves(time, C // 4), waves(column, spatial), waves(row, spatial)), dim=1)
    return torch.cat((torch.zeros(1, C), table.float()))[None]


def interpolate_positions(table: Tensor, frames0: int, grid0: int, frames: int, rows: int, columns: int) -> Tensor:
    """Resize a joint position table 1, 1 + frames0 * grid0^2, C: linear over time, then bicubic over space.

    The row of the class token stays. Both use align_corners=False, as the official loader does.
    """
    if (frames, rows, columns) == (frames0, grid0, grid0):
        return table
    width = table.shape[-1]
    cls_11C, x = table[:, :1], table[:, 1:]
    if frames != frames0:
        x = x.reshape(frames0, grid0**2 * width).T[None]  # 1, patches * C, frames0
        x = F.interpolate(x.float(), size=frames, mode="linear", align_corners=False)[0].T
    if (rows, columns) != (grid0, grid0):
        x = x.reshape(frames, grid0, grid0, width).permute(0, 3, 1, 2)
        x = F.interpolate(x.float(), size=(rows, columns), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    return torch.cat([cls_11C, x.reshape(1, -1, width).to(table.dtype)], dim=1)


class PatchEmbed(nn.Module):
    """Patches of single frames to tokens, frame-major."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        kernel = (1, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.width, kernel_size=kernel, stride=kernel)

    def forward(self, video_B3THW: Tensor) -> Tensor:
        """B 3 T H W to B, T * patches, C."""
        batch, channels, frames, height, width = video_B3THW.shape
        # The kernel spans one frame: a 2-D convolution over B * T images is the same sum and better supported.
        images = video_B3THW.transpose(1, 2).reshape(batch * frames, channels, height, width)
        x = F.conv2d(images, self.proj.weight.squeeze(2), self.proj.bias, stride=self.proj.stride[1:])
        patches = x.shape[2] * x.shape[3]
        return x.flatten(2).transpose(1, 2).reshape(batch, frames * patches, x.shape[1])


class RMSNorm(nn.Module):
    """RMSNorm in float32, whatever the type of the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the width last."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), RMS_NORM_EPS).to(x.dtype)


class LayerScale(nn.Module):
    """One factor a channel on the way into the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the width last."""
        return x * self.gamma


class Attention(nn.Module):
    """Self-attention whose q and k are normalised over the full width, before the heads are split."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)
        self.q_norm = RMSNorm(config.width)
        self.k_norm = RMSNorm(config.width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B N C to B N C."""
        q_BNC, k_BNC, v_BNC = self.qkv(x_BNC).chunk(3, dim=-1)
        return self.proj(attend(self.q_norm(q_BNC), self.k_norm(k_BNC), v_BNC, self.heads))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B N C to B N C."""
        return self.fc2(F.gelu(self.fc1(x_BNC)))


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width)
        self.norm2 = RMSNorm(config.width)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B N C to B N C."""
        x_BNC = x_BNC + self.ls1(self.attn(self.norm1(x_BNC)))
        return x_BNC + self.ls2(self.mlp(self.norm2(x_BNC)))


class AttentionPool(nn.Module):
    """The AdaptivePool: one query, the mean of all tokens, attends to the tokens. No residual, no MLP."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1_q = nn.LayerNorm(config.width, eps=POOL_NORM_EPS)
        self.norm1_k = nn.LayerNorm(config.width, eps=POOL_NORM_EPS)
        self.norm1_v = nn.LayerNorm(config.width, eps=POOL_NORM_EPS)
        self.cross_attn = PoolAttention(config)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """B N C to B V."""
        query_B1C = self.norm1_q(x_BNC.mean(dim=1, keepdim=True))
        return self.cross_attn(query_B1C, self.norm1_k(x_BNC), self.norm1_v(x_BNC)).squeeze(1)


class PoolAttention(nn.Module):
    """Cross-attention; the checkpoint stores the q, k and v biases apart from their weights."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.pool_heads
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.k_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, config.width, bias=False)
        self.v = nn.Linear(config.width, config.width, bias=False)
        self.proj = nn.Linear(config.width, config.output_width)

    def forward(self, q_B1C: Tensor, k_BNC: Tensor, v_BNC: Tensor) -> Tensor:
        """Query B 1 C, keys and values B N C to B 1 V."""
        q = F.linear(q_B1C, self.q.weight, self.q_bias)
        k = F.linear(k_BNC, self.k.weight, self.k_bias)
        v = F.linear(v_BNC, self.v.weight, self.v_bias)
        return self.proj(attend(q, k, v, self.heads))


def attend(q_BMC: Tensor, k_BNC: Tensor, v_BNC: Tensor, heads: int) -> Tensor:
    """Multi-head attention of B M C queries to B N C keys and values: B M C."""
    q_BHMD, k_BHND, v_BHND = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BMC, k_BNC, v_BNC))
    return F.scaled_dot_product_attention(q_BHMD, k_BHND, v_BHND).transpose(1, 2).flatten(2)
