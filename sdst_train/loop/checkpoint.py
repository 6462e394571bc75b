"""Checkpoints: one safetensors file with the weights, the resolved config and the feature contract."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError, foreign_errors
from sdst_runtime.files import pack_header, unpack_header, write_bytes
from sdst_runtime.strict_json import dump_json, load_json

from ..backbone.tensors import unwrapped
from ..config import TrainConfig, parse_config
from ..model.sdst import SDST


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, with all that made it."""

    model: SDST
    config: TrainConfig
    spec: FeatureSpec
    epoch: int
    metrics: dict[str, float]
    usual_clips: int = 0  # the median length of the videos that it was trained on; 0: an older one that does not tell
    longest_clips: int = 0


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    header = pack_header(
        config=dump_json(dataclasses.asdict(checkpoint.config)),
        spec=checkpoint.spec.to_json(),
        epoch=str(checkpoint.epoch),
        metrics=dump_json(checkpoint.metrics),
        usual_clips=str(checkpoint.usual_clips),
        longest_clips=str(checkpoint.longest_clips),
    )
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()}
    write_bytes(path, save(weights, header))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check. Raises InputError (missing, broken) or ContractError (weights of another shape)."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train one with  sdst train")
    again = "use another or train again"
    try:
        with foreign_errors(f"{path}: not a readable checkpoint", again), safe_open(path, "pt") as stored:
            metadata = stored.metadata()
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
    except InputError as error:
        if not _is_torch_save(path):
            raise
        raise InputError(
            f"{path}: expected a checkpoint that  sdst train  wrote, got a file of torch.save without the "
            "config and the contract; give RUN/best.safetensors, or for a released backbone  sdst convert-backbone"
        ) from error
    header = unpack_header(metadata, ("config", "spec", "epoch", "metrics"), path)
    config = parse_config(header["config"], path)
    spec = FeatureSpec.from_json(header["spec"], path)
    with foreign_errors(f"{path}: its config makes no model", again, ContractError):
        model = SDST(config.model).eval()
    load_weights(model, unwrapped(weights), str(path))
    epoch, *lengths = (_number(header, name, path) for name in ("epoch", "usual_clips", "longest_clips"))
    metrics = load_json(header["metrics"], f"{path}: its metrics are", "train again")
    if not isinstance(metrics, dict):
        raise InputError(f"{path}: expected its metrics by name, got {type(metrics).__name__}; train again")
    return Checkpoint(model, config, spec, epoch, metrics, *lengths)


def _number(header: Mapping[str, str], name: str, path: Path) -> int:
    """A whole number that a header says, 0 where it does not say it."""
    told = str(header.get(name, "0"))
    if not (told.isascii() and told.isdigit() and len(told) < 10):
        raise InputError(f"{path}: {name}: expected a whole number, got {told[:20]!r}; train again")
    return int(told)


def _is_torch_save(path: Path) -> bool:
    """Whether a file is what torch.save writes: a zip archive or, of old, a pickle."""
    try:
        with path.open("rb") as file:
            return zipfile.is_zipfile(path) or file.read(1) == b"\x80"
    except OSError:
        return False


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load strictly; ContractError lists the first ten names that are missing, unknown or of another shape."""
    own: dict[str, Any] = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in own]
    wrong += [
        f"{name} is {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if wrong:
        listed = "; ".join(wrong[:10])
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ContractError(f"{source}: weights do not fit the model: {listed}{more}; check the model's config")
    with torch.no_grad():
        module.load_state_dict(weights)
