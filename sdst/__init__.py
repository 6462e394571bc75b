"""Sparse-Dense Side-Tuner: video temporal grounding from training to a compiled runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdst_runtime import (
        EncodedVideo,
        FailedVideo,
        FeatureSpec,
        GroundedVideo,
        Grounder,
        Grounding,
        Job,
        Moment,
        SdstError,
        Session,
        TextFeatures,
        VideoFeatures,
        ground_videos,
        open_session,
    )

__version__ = "0.1.0"

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
    """What sdst_runtime offers, imported when it is first used."""
    if name in __all__:
        import sdst_runtime

        return getattr(sdst_runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
