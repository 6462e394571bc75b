"""The two towers that make features, and the one file that holds them.

The same module object extracts features for training and is exported for inference: pixel normalisation, layers and
pooling live inside it and come from the FeatureSpec, so nothing is left to be done differently elsewhere.

A backbone file is one safetensors file: tensors `vision.*` and `text.*` (fp16 or fp32), and one metadata entry,
`sdst_backbone`, a JSON object of VisionConfig (`vision`), TextConfig (`text`), the FeatureSpec without what the file
itself determines (`features`), and the text of tokenizer.json (`tokenizer`). One entry only, since safetensors writes
several in random order and the digest of the file, which is the FeatureSpec's backbone_sha256, must not depend on it.

Shape letters: N clips, S image size in pixels, B sentences, L tokens, K layers, V visual width, X text width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError, foreign_errors
from sdst_runtime.files import atomic_path, sha256_file
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_runtime.strict_json import dump_json, load_json, parse_strict

from .tensors import first_ten, tensor_faults
from .text import TextConfig, TextEncoder
from .tokenizer import METADATA_KEY
from .vision import POOLS, Pool, VisionConfig, VisionEncoder

FORMAT = 1
DTYPES = (torch.float16, torch.float32)  # that a file may hold
DERIVED = ("backbone_sha256", "video_width", "text_width")  # FeatureSpec fields that follow from the file itself
Config = TypeVar("Config", VisionConfig, TextConfig)


class VisionTower(nn.Module):
    """Raw frames to pooled features: what extraction runs and what is exported."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: VisionEncoder, spec: FeatureSpec) -> None:
        super().__init__()
        if spec.pool not in POOLS:
            raise ContractError(f"pool: expected one of {POOLS}, got {spec.pool!r}")
        _require_equal("image_size", spec.image_size, encoder.config.image_size)
        _require_equal("video_width", spec.video_width, encoder.feature_width(cast(Pool, spec.pool)))
        _require_layers(spec.layers, encoder.config.depth, "vision")
        self.encoder = encoder
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 RGB frames N, frames_per_clip, S, S, 3 to float features N K V, shallow to deep."""
        pixels = self.normalise(clips).permute(0, 4, 1, 2, 3)
        features = self.encoder(pixels.to(self.encoder.cls_token.dtype), self.spec.layers, cast(Pool, self.spec.pool))
        return features.float()

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 RGB [..., 3] to float32 of zero mean and unit deviation, by the statistics of the FeatureSpec."""
        return (clips.float() / 255 - self.mean) / self.std


class TextTower(nn.Module):
    """Token ids to token features: what extraction runs and what is exported."""

    def __init__(self, encoder: TextEncoder, spec: FeatureSpec) -> None:
        super().__init__()
        _require_equal("text_width", spec.text_width, encoder.config.width)
        _require_layers(spec.layers, encoder.config.depth, "text")
        if spec.max_tokens > encoder.config.max_positions:
            raise ContractError(
                f"max_tokens is {spec.max_tokens}, but the text encoder has {encoder.config.max_positions} positions"
            )
        self.encoder = encoder
        self.spec = spec

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """int64 ids B L and mask B L (bool, or int64 with 0 = padding) to float features B K L X, shallow to deep."""
        return self.encoder(token_ids, token_mask, self.spec.layers).float()


@dataclass(frozen=True)
class Backbone:
    """Both towers, in eval mode and frozen, with the contract and the tokenizer that belong to them."""

    vision: VisionTower
    text: TextTower
    spec: FeatureSpec
    tokenizer_json: str

    @classmethod
    def assemble(cls, vision: VisionEncoder, text: TextEncoder, spec: FeatureSpec, tokenizer_json: str) -> Backbone:
        """Towers around two encoders. The spec's widths are taken from the encoders; gradients are switched off."""
        if spec.pool not in POOLS:
            raise ContractError(f"pool: expected one of {POOLS}, got {spec.pool!r}")
        width = vision.feature_width(cast(Pool, spec.pool))
        spec = dataclasses.replace(spec, video_width=width, text_width=text.config.width)
        towers = VisionTower(vision, spec), TextTower(text, spec)
        for tower in towers:
            tower.eval().requires_grad_(False)
        return cls(*towers, spec, tokenizer_json)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text tower. Raises ContractError when it knows ids that the tower does not."""
        tokenizer = Tokenizer.from_text(self.tokenizer_json, "the backbone's tokenizer")
        known = self.text.encoder.config.vocab_size
        if tokenizer.vocab_size > known:
            raise ContractError(f"the tokenizer has {tokenizer.vocab_size} entries, the text encoder {known}")
        return tokenizer

    def to(self, device: str | torch.device) -> Backbone:
        """The same backbone with its towers moved to `device`."""
        return dataclasses.replace(self, vision=self.vision.to(device), text=self.text.to(device))


def save_backbone(
    path: Path,
    vision: VisionEncoder,
    text: TextEncoder,
    spec: FeatureSpec,
    tokenizer_json: str,
    dtype: torch.dtype = torch.float16,
) -> FeatureSpec:
    """Write one backbone file atomically and return the spec with the file's digest and widths.

    `spec.backbone_sha256`, `video_width` and `text_width` are ignored: the file determines them. The same weights give
    the same bytes. Raises ContractError when the spec does not fit the encoders or a weight does not fit `dtype`, and
    InputError when the path cannot be written.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: a backbone is stored as torch.float16 or torch.float32, got {dtype}")
    spec = Backbone.assemble(vision, text, spec, tokenizer_json).spec
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in _named_tensors(vision, text)}
    broken = sorted(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
    if broken:
        raise ContractError(f"cannot store as {dtype}: {first_ten(broken, 'tensors')} would hold NaN or infinity")
    header = {
        "format": FORMAT,
        "vision": dataclasses.asdict(vision.config),
        "text": dataclasses.asdict(text.config),
        "features": {k: v for k, v in dataclasses.asdict(spec).items() if k not in DERIVED},
        "tokenizer": tokenizer_json,
    }
    _write_tensors(path, tensors, header)
    return dataclasses.replace(spec, backbone_sha256=sha256_file(path))


def load_backbone(path: Path, pool: Pool | None = None) -> Backbone:
    """Read a backbone file; weights become float32 on the CPU. `pool` replaces the file's, for the paper's ablation.

    Raises InputError when the file is missing or not safetensors, ContractError when it is another kind of file or its
    tensors are not those of its own configuration (the first ten differences, and how many).
    """
    from safetensors import safe_open

    path = Path(path)
    digest = sha256_file(path)
    again = "make or download it again"
    with foreign_errors(f"{path} is not a readable safetensors file", again), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    header = _parse_header(metadata.get(METADATA_KEY), path)
    vision_config = _parse_config(VisionConfig, header["vision"], f"{path}, vision")
    text_config = _parse_config(TextConfig, header["text"], f"{path}, text")
    makes_none = f"{path}: its configuration makes no encoders"
    with foreign_errors(makes_none, again, ContractError), torch.device("meta"):  # names and shapes only: no memory
        vision, text = VisionEncoder(vision_config), TextEncoder(text_config)
    _require_tensors(path, dict(_named_tensors(vision, text)), tensors)
    for prefix, encoder in (("vision.", vision), ("text.", text)):
        part = {name.removeprefix(prefix): x.float() for name, x in tensors.items() if name.startswith(prefix)}
        encoder.load_state_dict(part, strict=True, assign=True)
    text.materialise_buffers()
    spec = _parse_features(header["features"], vision, text, digest, path)
    spec = dataclasses.replace(spec, pool=pool or spec.pool)
    return Backbone.assemble(vision, text, spec, header["tokenizer"])


def tiny_config(vocab_size: int) -> tuple[VisionConfig, TextConfig]:
    """The demo's backbone: under 2 MB in fp16 with a vocabulary of some 250 words. Use it with K = 4.

    Small pictures in small patches: at equal cost it learns motion and shape several times sooner than 56 pixels in
    patches of 14, where an object hides within one patch.
    """
    vision = VisionConfig(
        image_size=28,
        patch_size=7,
        frames=4,
        width=64,
        depth=6,
        heads=4,
        mlp_width=192,
        pool_heads=4,
        output_width=64,
    )
    text = TextConfig(vocab_size=vocab_size, width=64, depth=5, heads=4, mlp_width=256, max_positions=40)
    return vision, text


def _named_tensors(vision: VisionEncoder, text: TextEncoder) -> Iterable[tuple[str, Tensor]]:
    for prefix, encoder in (("vision.", vision), ("text.", text)):
        for name, tensor in encoder.state_dict().items():
            yield prefix + name, tensor


def _write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """From the tensors' own memory to the disk: a copy of a large model as bytes is never made."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the user's umask; save_file makes a file for its owner alone
        try:
            save_file(tensors, temporary, {METADATA_KEY: dump_json(header)})
            temporary.chmod(mode)
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}; choose another place or free it") from error


def _parse_header(text: str | None, path: Path) -> dict[str, Any]:
    if text is None:
        raise ContractError(f"{path}: expected a backbone file, got safetensors without metadata {METADATA_KEY!r}")
    try:
        header = load_json(text, f"{path}: metadata {METADATA_KEY!r} is")
    except InputError as error:
        raise ContractError(str(error)) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise ContractError(f"{path}: expected backbone format {FORMAT}, got {got!r}; use the sdst that wrote it")
    for key, kind in (("vision", dict), ("text", dict), ("features", dict), ("tokenizer", str)):
        if not isinstance(header.get(key), kind):
            raise ContractError(f"{path}: metadata {METADATA_KEY!r} needs {key!r}, got {header.get(key)!r}")
    return header


def _parse_config(kind: type[Config], values: dict[str, Any], source: str) -> Config:
    return parse_strict(kind, dump_json(values), f"{source} configuration")


def _parse_features(
    fields: dict[str, Any], vision: VisionEncoder, text: TextEncoder, digest: str, path: Path
) -> FeatureSpec:
    if unwanted := sorted(set(fields) & set(DERIVED)):
        raise ContractError(
            f"{path}: the file itself determines {', '.join(unwanted)}: its metadata must not name them"
        )
    if fields.get("pool") not in POOLS:
        raise ContractError(f"{path}: pool: expected one of {POOLS}, got {fields.get('pool')!r}")
    widths = {"video_width": vision.feature_width(fields["pool"]), "text_width": text.config.width}
    return FeatureSpec.from_json(dump_json({**fields, "backbone_sha256": digest, **widths}), path)


def _require_tensors(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ContractError unless `found` has exactly the names and shapes of `wanted`, as fp16 or fp32."""
    if faults := tensor_faults(wanted, found, DTYPES):
        raise ContractError(f"{path}: tensors do not fit the file's own configuration: {first_ten(faults, 'faults')}")


def _require_equal(field: str, spec_value: int, encoder_value: int) -> None:
    if spec_value != encoder_value:
        raise ContractError(f"{field}: the feature contract says {spec_value}, the encoder has {encoder_value}")


def _require_layers(layers: int, depth: int, which: str) -> None:
    if not 1 <= layers <= depth:
        raise ContractError(f"layers: the feature contract says {layers}, the {which} encoder has {depth}")
