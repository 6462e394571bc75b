"""Grounds sentences in video. Imports no torch; model runners and decoders are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contracts import EncodedVideo, FeatureSpec, Grounding, Moment, TextFeatures, VideoFeatures
    from .errors import SdstError
    from .grounding.grounder import Grounder
    from .grounding.pipeline import FailedVideo, GroundedVideo, Job, ground_videos
    from .sessions.base import Session
    from .sessions.open import open_session

_HOME = {
    "EncodedVideo": "contracts",
    "FeatureSpec": "contracts",
    "Grounding": "contracts",
    "Moment": "contracts",
    "TextFeatures": "contracts",
    "VideoFeatures": "contracts",
    "SdstError": "errors",
    "Grounder": "grounding.grounder",
    "FailedVideo": "grounding.pipeline",
    "GroundedVideo": "grounding.pipeline",
    "Job": "grounding.pipeline",
    "ground_videos": "grounding.pipeline",
    "Session": "sessions.base",
    "open_session": "sessions.open",
}

__all__ = [
    "EncodedVideo",
    "FailedVideo",
    "FeatureSpec",
    "GroundedVideo",
    "Grounder",
    "Grounding",
    "Job",
    "Moment",
    "SdstError",
    "Session",
    "TextFeatures",
    "VideoFeatures",
    "ground_videos",
    "open_session",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
