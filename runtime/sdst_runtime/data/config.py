"""Where a data set lies and how it is read: the part of a run's config that inference shares with training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .. import bounds
from ..errors import InputError

SplitName = Literal["train", "val", "test"]
Metrics = Literal["qvhighlights", "moments"]
MOST_NEGATIVES = 0.9


@dataclass(frozen=True)
class DataConfig:
    """One data set. Annotation files and the features' folder are relative to `root`; absolute ones stand as they are.

    An annotation file is read by its suffix: .jsonl the QVHighlights form, .txt Charades-STA's text, .json TACoS' JSON.
    """

    root: str = "data/qvhighlights"
    train: str = "highlight_train_release.jsonl"
    val: str = "highlight_val_release.jsonl"
    test: str = "highlight_test_release.jsonl"  # empty: there is none
    durations: tuple[str, ...] = ()  # CSV files with columns id and length, where annotations hold no duration
    features: str = "features"
    clip_s: float = 2.0  # seconds a clip
    negatives: float = 0.0  # share of the queries that are other videos' sentences and have no moment (data/absent.py)
    metrics: Metrics = "qvhighlights"  # moments: R1 at 0.3, 0.5, 0.7 and mIoU, as Charades-STA and TACoS report

    def __post_init__(self) -> None:
        if self.metrics not in get_args(Metrics):
            raise InputError(f"data.metrics: expected one of {', '.join(get_args(Metrics))}, got {self.metrics!r}")
        bounds.require("data.clip_s", self.clip_s, bounds.CLIP_S, "seconds")
        if not 0 <= self.negatives <= MOST_NEGATIVES:
            raise InputError(f"data.negatives: expected a share of 0 to {MOST_NEGATIVES}, got {self.negatives}")

    def annotations(self, split: SplitName) -> Path:
        """The file of a split. Raises InputError when the data set has none."""
        if split not in get_args(SplitName):
            raise InputError(f"split: expected one of {', '.join(get_args(SplitName))}, got {split!r}")
        name = getattr(self, split)
        if not name:
            raise InputError(f"this data set has no {split} split: set data.{split} to its annotation file")
        return Path(self.root) / name

    def feature_directory(self) -> Path:
        """The folder of the features."""
        return Path(self.root) / self.features

    def duration_files(self) -> list[Path]:
        """The CSV files of durations."""
        return [Path(self.root) / name for name in self.durations]
