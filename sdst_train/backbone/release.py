"""The released InternVideo2 checkpoints, as encoders whose weights are the file's own.

The state dict lies under `module`, `model` or `state_dict`, or is the whole file; or it is a safetensors file; all its
names may begin with what a wrapper of torch adds (tensors.py). Names, read in
OpenGVLab/InternVideo (InternVideo2/multi_modality): `vision_encoder.*` and `vision_proj.*` are the vision encoder,
`text_encoder.bert.embeddings` and its lower layers the text encoder; what else pre-training needs is left out.

The CLIP variant re-tunes nothing of the vision encoder but the pool (`clip_projector`), and its released file holds
only that; it is laid over the Stage-2 checkpoint. Its text encoder, LLaMA, is not built here.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdst_runtime import bounds
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError

from .tensors import first_ten, tensor_faults, unwrapped
from .text import BERT_LARGE_STAGE2, TextConfig, TextEncoder
from .vision import INTERNVIDEO2_1B, VisionConfig, VisionEncoder

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Of pre-training: distillation, matching and language heads, and a buffer. A name that ends in a dot is a prefix.
IGNORED = (
    "vision_encoder.clip_pos_embed",
    "vision_encoder.clip_img_pos_embed",
    "vision_encoder.clip_decoder.",
    "vision_encoder.final_clip_decoder.",
    "text_encoder.bert.embeddings.position_ids",
    "text_encoder.cls.",
    "text_proj.",
    "itm_head.",
    "temp",
)
IGNORED_IN_POOL_FILE = ("text_encoder.", "temp")  # the CLIP variant's own text side
OTHER_WIDTHS = {3200: "InternVideo2-6B"}


@dataclass(frozen=True)
class Variant:
    """A released checkpoint: what the feature contract calls it, and the sizes that its tensors must have."""

    backbone: str
    vision: VisionConfig  # `frames` follows the file's position table
    text: TextConfig
    fusion_layers: int  # of the text encoder above those that features need
    text_model: str
    max_tokens: int


STAGE2_1B = Variant("internvideo2-1b-stage2", INTERNVIDEO2_1B, BERT_LARGE_STAGE2, 5, "bert-large-uncased", 40)
VARIANTS = {"stage2-1b": STAGE2_1B}


@dataclass(frozen=True)
class Release:
    """Both encoders, frozen, their weights in the types of the file, and the contract without the file's digest."""

    vision: VisionEncoder
    text: TextEncoder
    spec: FeatureSpec


def load_internvideo2(
    path: Path,
    variant: Variant = STAGE2_1B,
    *,
    frames: int = 4,
    clip_s: float = 2.0,
    layers: int = 4,
    pool_checkpoint: Path | None = None,
) -> Release:
    """Read a released checkpoint (.pt, .pth or .safetensors). Its weights are mapped from the file, not copied.

    `frames` a clip, `clip_s` seconds a clip and `layers` are what features will be made with; position tables of
    another number of frames are interpolated by the encoder. `pool_checkpoint` is the CLIP variant's file.
    Raises InputError when a file is missing or not a checkpoint, ContractError when it is another variant's or its
    tensors are not the variant's (the first ten faults, and how many).
    """
    if frames < 1 or layers < 1 or not (clip_s > 0 and math.isfinite(clip_s)):
        raise InputError(f"expected frames, layers and clip_s above 0, got {frames}, {layers} and {clip_s}")
    bounds.require("frames", frames, bounds.COUNT)
    bounds.require("clip_s", clip_s, bounds.CLIP_S, "seconds")
    found = _read_tensors(path)
    _require_variant(path, found, variant)
    table_frames = _table_frames(found, variant.vision)
    with torch.device("meta"):  # names and shapes only: no memory, no random numbers
        vision = VisionEncoder(dataclasses.replace(variant.vision, frames=table_frames))
        text = TextEncoder(variant.text)
    weights = _take(path, found, needed_tensors(vision, text), _ignored(variant), variant.backbone)
    if pool_checkpoint is not None:
        weights |= _read_pool(pool_checkpoint, vision, weights)
    vision.load_state_dict({name: weights[_vision_name(name)] for name in vision.state_dict()}, assign=True)
    text.load_state_dict({name: weights[_text_name(name)] for name in text.state_dict()}, assign=True)
    text.materialise_buffers()
    vision.eval().requires_grad_(False)
    text.eval().requires_grad_(False)
    return Release(vision, text, _spec(variant, frames, clip_s, layers, with_pool=pool_checkpoint is not None))


def needed_tensors(vision: VisionEncoder, text: TextEncoder) -> dict[str, Tensor]:
    """The encoders' own tensors under the names of the released checkpoint."""
    needed = {_vision_name(name): tensor for name, tensor in vision.state_dict().items()}
    return needed | {_text_name(name): tensor for name, tensor in text.state_dict().items()}


def _vision_name(name: str) -> str:
    return name if name.startswith("vision_proj.") else f"vision_encoder.{name}"


def _text_name(name: str) -> str:
    return f"text_encoder.{name}"


def _ignored(variant: Variant) -> tuple[str, ...]:
    first = variant.text.depth
    fusion = range(first, first + variant.fusion_layers)
    return (*IGNORED, *(f"text_encoder.bert.encoder.layer.{layer}." for layer in fusion))


def _spec(variant: Variant, frames: int, clip_s: float, layers: int, with_pool: bool) -> FeatureSpec:
    return FeatureSpec(
        backbone=variant.backbone + ("+clip-pool" if with_pool else ""),
        backbone_sha256="",  # of a file that is still to be written
        layers=layers,
        pool="adaptive",
        frames_per_clip=frames,
        clip_s=clip_s,
        image_size=variant.vision.image_size,
        resize="bicubic",
        mean=IMAGE_MEAN,
        std=IMAGE_STD,
        video_width=variant.vision.output_width,
        text_model=variant.text_model,
        max_tokens=variant.max_tokens,
        text_width=variant.text.width,
    )


def _read_tensors(path: Path) -> dict[str, Any]:
    """The state dict of a checkpoint, mapped into memory: only what is used is ever read."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; download it and give the path of the file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: expected tensors only, got a file with other objects, which could run code when read; "
            "save its state dict alone, where you trust the file"
        ) from error
    except Exception as error:  # torch, zipfile and pickle keep no list of what a broken file makes them raise
        raise InputError(f"{path}: expected a checkpoint of torch.save, got a broken or other file") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path}: expected a state dict, got {type(stored).__name__}")
    return unwrapped(stored)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrapped(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({error}); download it again") from error


def _require_variant(path: Path, found: Mapping[str, Any], variant: Variant) -> None:
    """Name a checkpoint of another kind, which a list of its tensors would not."""
    blocks = [name.split(".")[2] for name in found if name.startswith("vision_encoder.blocks.")]
    numbers = [int(number) for number in blocks if number.isdecimal()]
    if not numbers:
        raise ContractError(f"{path}: expected {variant.backbone}, got {_without_blocks(found)}")
    if any(name.startswith("text_encoder.transformer.") for name in found):
        raise ContractError(
            f"{path}: expected {variant.backbone} with {variant.text_model}, got the CLIP variant with LLaMA;"
            " use the Stage-2 checkpoint"
        )
    width, depth = _last_size(found.get("vision_encoder.cls_token")), max(numbers) + 1
    wanted = variant.vision.width, variant.vision.depth
    if width and (width, depth) != wanted:
        named = f", as {OTHER_WIDTHS[width]} has" if width in OTHER_WIDTHS else ""
        raise ContractError(
            f"{path}: expected {variant.backbone} with width {wanted[0]} and {wanted[1]} blocks,"
            f" got width {width} and {depth} blocks{named}; use the checkpoint of this variant"
        )


def _without_blocks(found: Mapping[str, Any]) -> str:
    if any(name.startswith("blocks.") for name in found):
        return "a vision encoder alone, as Stage 1 releases it; use the Stage-2 checkpoint"
    if any(name.removeprefix("vision_encoder.").startswith("clip_projector.") for name in found):
        return "the CLIP variant's pool alone; use the Stage-2 checkpoint, and this file as its pool checkpoint"
    listed = ", ".join(list(found)[:3]) or "nothing"
    return f"a file without vision_encoder.blocks (it begins with {listed}); use the Stage-2 checkpoint"


def _last_size(tensor: Any) -> int:
    return tensor.shape[-1] if isinstance(tensor, Tensor) and tensor.ndim else 0


def _table_frames(found: Mapping[str, Any], config: VisionConfig) -> int:
    """Frames of the file's position table; the variant's own when its rows are no whole frames (a fault, then)."""
    table = found.get("vision_encoder.pos_embed")
    rows = table.shape[1] - 1 if isinstance(table, Tensor) and table.ndim == 3 else 0
    frames, rest = divmod(rows, config.grid**2)
    return frames if frames > 0 and not rest else config.frames


def _take(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor], ignored: tuple[str, ...], what: str
) -> dict[str, Tensor]:
    """What is wanted of `found`. Raises ContractError for all that does not fit, unless it is known and ignored."""
    prefixes = tuple(name for name in ignored if name.endswith("."))
    kept = {name: x for name, x in found.items() if name not in ignored and not name.startswith(prefixes)}
    if faults := tensor_faults(wanted, kept, DTYPES):
        raise ContractError(f"{path}: expected the tensors of {what}: {first_ten(faults, 'faults')}")
    return kept


def _read_pool(path: Path, vision: VisionEncoder, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a re-tuned pool under their full names, in the types of those that they replace."""
    found = {name.removeprefix("vision_encoder."): x for name, x in _read_tensors(path).items()}
    wanted = {f"clip_projector.{name}": tensor for name, tensor in vision.clip_projector.state_dict().items()}
    pool = _take(path, found, wanted, IGNORED_IN_POOL_FILE, "a re-tuned pool")
    return {_vision_name(name): x.to(weights[_vision_name(name)].dtype) for name, x in pool.items()}
