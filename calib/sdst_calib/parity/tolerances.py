"""What parity is held to. Limits that the user does not state come from the precision of the bundle.

The defaults are those that the demo's bundles keep with room to spare (docs/precision.md has what was measured).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdst_runtime.contracts import FP16, FP32, INT8, PRECISION_KEY
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.sessions.base import GROUNDING_MODELS, GroundingModel, Session

from .task import CHECKED, Metric

if TYPE_CHECKING:
    from .decisions import Decisions  # needs scipy, which a device lacks

Level = Literal["tensor", "decision", "task"]


@dataclass(frozen=True)
class Tolerances:
    """One number a kind of check; None: not checked."""

    max_abs: float | None = None  # of any output
    cosine: float | None = None  # least, of any output
    snr_db: float | None = None  # least, of any output
    layer_snr_db: float | None = None  # least, of any tensor, where layers are compared
    top_iou: float | None = None  # least mean
    rank: float | None = None  # least mean
    top_clip: float | None = None  # least share
    points: float | None = None  # most, either way, of the metrics that stand for the task

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            least, most = _RANGES.get(field.name, (0.0, math.inf))
            if not (isinstance(value, int | float) and math.isfinite(value) and least <= value <= most):
                limits = f" from {least:g} to {most:g}" if math.isfinite(most) else f" of at least {least:g}"
                limits = limits if math.isfinite(least) else ""
                raise InputError(f"tolerance {field.name}: expected a number{limits}, got {value!r}")

    def or_else(self, default: Tolerances) -> Tolerances:
        """These where they are stated, else the others."""
        stated = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(default, **stated)


@dataclass(frozen=True)
class Check:
    """One number against its limit."""

    level: Level
    name: str
    value: float
    limit: float
    passed: bool  # False for NaN


_ANY = (-math.inf, math.inf)
_RANGES = {
    "snr_db": _ANY,
    "layer_snr_db": _ANY,
    "cosine": (-1.0, 1.0),
    "top_iou": (0.0, 1.0),
    "rank": (-1.0, 1.0),
    "top_clip": (0.0, 1.0),
}

DEFAULTS: dict[str, Tolerances] = {  # by precision, each coarser than the one before
    FP32: Tolerances(snr_db=60, layer_snr_db=60, top_iou=0.999, rank=0.99, top_clip=0.99, points=0.5),
    FP16: Tolerances(snr_db=30, layer_snr_db=20, top_iou=0.98, rank=0.9, top_clip=0.95, points=0.5),
    INT8: Tolerances(snr_db=10, layer_snr_db=5, top_iou=0.9, rank=0.7, top_clip=0.8, points=2.0),
}


def precision_of(session: Session, source: Path) -> str:
    """The coarser of what the projection and head of a bundle state; "torch" for the session of a checkpoint.

    Raises ContractError, naming `source`, where either states none that has tolerances.
    """
    if not isinstance(session, GroundingModel):
        return "torch"
    stated = [model.metadata.get(PRECISION_KEY, "") for model in (session.projection, session.head)]
    for name, precision in zip(GROUNDING_MODELS, stated, strict=True):
        if precision not in DEFAULTS:
            expected = ", ".join(DEFAULTS)
            raise ContractError(
                f"{source}: {name}'s precision: expected one of {expected}, got {precision!r}; export the bundle again"
            )
    return max(stated, key=list(DEFAULTS).index)


def checks(
    tolerances: Tolerances,
    kind: str,
    tensors: Mapping[str, Any],
    decided: Decisions | None,
    measured: Sequence[Metric],
) -> list[Check]:
    """All that `tolerances` state, in the order of the levels. `tensors` have max_abs, cosine and snr_db."""
    results = []
    for output, error in tensors.items():
        results += _at_most("tensor", f"{output} max_abs", error.max_abs, tolerances.max_abs)
        results += _at_least("tensor", f"{output} cosine", error.cosine, tolerances.cosine)
        results += _at_least("tensor", f"{output} snr_db", error.snr_db, tolerances.snr_db)
        results += _at_most("tensor", f"{output} not finite", error.not_finite, 0)
    for name, limit in (("top_iou", tolerances.top_iou), ("rank", tolerances.rank), ("top_clip", tolerances.top_clip)):
        results += _at_least("decision", name, getattr(decided, name) if decided else math.nan, limit)
    for metric in measured:
        if metric.name in CHECKED[kind]:
            results += _at_most("task", metric.name, abs(metric.difference.value), tolerances.points)
    return results


def _at_least(level: Level, name: str, value: float, limit: float | None) -> list[Check]:
    return [] if limit is None else [Check(level, name, value, limit, value >= limit)]


def _at_most(level: Level, name: str, value: float, limit: float | None) -> list[Check]:
    return [] if limit is None else [Check(level, name, value, limit, value <= limit)]
