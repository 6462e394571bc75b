"""Every switch of a run, with its default. Which default is published and which is ours: docs/method.md.

Imports no torch: a bundle is evaluated with the data part of these configs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from sdst_runtime import bounds
from sdst_runtime.data.config import DataConfig
from sdst_runtime.errors import InputError
from sdst_runtime.strict_json import parse_strict

MOST_PARTS = 4096  # layers, heads, points, queries
MOST_STEPS = 10**9
MOST = {"epochs": bounds.COUNT[1], "batch_size": bounds.BATCH[1], "workers": bounds.WORKERS}


def check_choices(config: object) -> None:
    """Raise InputError when a Literal field holds a value outside its choices."""
    hints = get_type_hints(type(config))
    for item in fields(config):  # pyright: ignore[reportArgumentType]
        choices = get_args(hints[item.name])
        value = getattr(config, item.name)
        if choices and value not in choices:
            raise InputError(f"{item.name}: expected one of {', '.join(map(str, choices))}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of SDST. The defaults have 4,312,200 parameters."""

    video_width: int = 768  # V, of one pooled layer
    text_width: int = 1024  # X, of one token
    layers: int = 4  # K, tapped backbone layers and steps of the model
    width: int = 256  # F
    heads: int = 8  # H
    points: int = 4  # P, sampled points a head
    queries: int = 30  # M, moments predicted
    ffn_ratio: int = 4
    attention: Literal["rdsa", "deformable_ca", "full_ca"] = "rdsa"
    rdsa_context: Literal["depthwise", "full"] = "depthwise"  # the convolution that RDSA's queries are built from
    rdsa_position: bool = False  # whether RDSA's queries are told where in the video their clips are
    detach_references: bool = True  # whether a step learns nothing from what the next ones make of its moments
    feature_mode: Literal["intermediate", "last_repeat"] = "intermediate"
    query_init: Literal["learned", "pure"] = "learned"
    reference_init: Literal["grid", "random"] = "grid"
    gate: Literal["sigmoid", "raw"] = "sigmoid"
    layer_order: Literal["forward", "reversed"] = "forward"
    presence: bool = False  # whether a probability that the event is in the video is predicted; data.negatives sets it
    input_dropout: float = 0.5
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        """Raise InputError on a value that no model can be built from, naming the field."""
        check_choices(self)
        for name in ("video_width", "text_width", "layers", "width", "heads", "points", "queries", "ffn_ratio"):
            most = bounds.WIDTH if "width" in name else (1, MOST_PARTS)
            bounds.require(f"model.{name}", getattr(self, name), most)
        for divisor in (self.heads, 4):  # 4: sine and cosine of a moment's centre and width
            if self.width % divisor:
                raise InputError(f"model.width: expected a multiple of heads = {self.heads} and of 4, got {self.width}")
        for name in ("input_dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name}: expected 0 <= p < 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (method: L = hd * HD + mr * MR + align * alignment)."""

    highlight: float = 0.1  # 0.1 QVHighlights, 0.05 TACoS, 0.01 Charades-STA
    moment: float = 1.0
    alignment: float = 0.1
    focal: float = 2.0
    l1: float = 5.0
    iou: float = 2.0
    actionness: float = 4.0
    match_focal: float = 6.0
    presence: float = 1.0  # of the probability that the event is there, where the model predicts one
    overlap: Literal["iou", "giou"] = "iou"
    actionness_form: Literal["l1", "bce"] = "l1"  # of the actionness against the IoU; l1 can die at zero
    temperature: float = 0.07

    def __post_init__(self) -> None:
        """Raise InputError on a weight below 0 or a temperature that is not above it."""
        check_choices(self)
        for name in ("highlight", "moment", "alignment", "focal", "l1", "iou", "actionness", "match_focal", "presence"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"loss.{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"loss.temperature: expected a positive number, got {self.temperature}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are QVHighlights'."""

    preset: str = ""  # whose published numbers the report shows beside the run's; empty: none
    epochs: int = 60
    batch_size: int = 64  # over all processes
    learning_rate: float = 2e-4
    offset_rate: float = 0.1  # factor on the layers that predict sampling offsets
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"  # step: x0.1 at two thirds of the run
    warmup_steps: int = 500
    gradient_clip: float = 0.1
    ema_decay: float = 0.999  # of the averaged weights, which are evaluated, saved and exported; 0: no averaging
    select_by: str = "MR-full-mAP"  # the validation metric that picks the best epoch
    patience: int = 0  # epochs without a better one after which the run stops; 0: it never does
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the forward pass; auto: bf16 on a GPU that has it
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False  # torch.compile the model
    deterministic: bool = False  # only reproducible kernels; on a GPU an exact resume needs it
    workers: int = 0  # processes that read features ahead
    save_every_steps: int = 500  # the state to resume from, besides at the end of every epoch
    seed: int = 0
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        """Raise InputError on a value that no run can have, naming the field."""
        check_choices(self)
        counts = {"epochs": 1, "batch_size": 1, "save_every_steps": 1, "warmup_steps": 0, "patience": 0, "workers": 0}
        for name, least in (*counts.items(), ("offset_rate", 0), ("weight_decay", 0)):
            bounds.require(name, getattr(self, name), (least, MOST.get(name, MOST_STEPS)))
        bounds.require("seed", self.seed, bounds.SEED)
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay: expected 0 <= decay < 1, got {self.ema_decay}")


def parse_config(text: str | bytes, source: str | Path) -> TrainConfig:
    """A TrainConfig from JSON, strictly; fields that are left out keep their defaults.

    Raises ContractError naming `source`, the first field that does not fit and, for an unknown one, the nearest name.
    """
    return parse_strict(TrainConfig, text, f"{source}: its config")


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config as a mapping, its parts' too, by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        parts = flatten(value) if isinstance(value, Mapping) else None
        flat |= {name: value} if parts is None else {f"{name}.{part}": inner for part, inner in parts.items()}
    return flat


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field of `one` that `other` has otherwise or not at all, by dotted name, and both values."""
    others = flatten(other)
    return next(
        ((name, mine, others.get(name)) for name, mine in flatten(one).items() if others.get(name) != mine), None
    )
