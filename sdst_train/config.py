"""Every switch of the model, with its default. Which default is published and which is ours: docs/method.md."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from sdst_runtime.errors import InputError


def check_choices(config: object) -> None:
    """Raise InputError when a Literal field holds a value outside its choices."""
    hints = get_type_hints(type(config))
    for field in fields(config):  # pyright: ignore[reportArgumentType]
        choices = get_args(hints[field.name])
        value = getattr(config, field.name)
        if choices and value not in choices:
            raise InputError(f"{field.name}: expected one of {', '.join(map(str, choices))}, got {value!r}")


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
    feature_mode: Literal["intermediate", "last_repeat"] = "intermediate"
    query_init: Literal["learned", "pure"] = "learned"
    reference_init: Literal["grid", "random"] = "grid"
    gate: Literal["sigmoid", "raw"] = "sigmoid"
    layer_order: Literal["forward", "reversed"] = "forward"
    input_dropout: float = 0.5
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        """Raise InputError on a value that no model can be built from, naming the field."""
        check_choices(self)
        for name in ("video_width", "text_width", "layers", "width", "heads", "points", "queries", "ffn_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: expected at least 1, got {getattr(self, name)}")
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
    overlap: Literal["iou", "giou"] = "iou"
    temperature: float = 0.07

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are QVHighlights'."""

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-4
    offset_rate: float = 0.1  # factor on the layers that predict sampling offsets
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"  # step: x0.1 at two thirds of the run
    warmup_steps: int = 500
    gradient_clip: float = 0.1
    seed: int = 0
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: expected a positive number, got {getattr(self, name)}")
