"""The demo's features: videos rendered and encoded once, kept and reused afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.features import text_feature_path, video_feature_path
from sdst_runtime.errors import InputError
from sdst_runtime.files import read_jsonl
from sdst_train.backbone.feature_run import extract_sentences, extract_videos
from sdst_train.backbone.towers import Backbone, load_backbone
from sdst_train.backbone.vision import Pool

from ..progress import counted
from . import BACKBONE
from .dataset import HARD, SPLITS, World, render_dataset, require_world

SEED, TRAIN_VIDEOS, VAL_VIDEOS = 7, 300, 60


def prepare_features(data: DataConfig, pool: Pool = "adaptive", world: World = "plain") -> None:
    """Render and encode what `data.root` lacks: about two minutes on 2 cores, nothing when all is there.

    Data that `sdst demo` made with another seed or size stay as they are; so do those of the hard world where the plain
    one is asked for, as by the preset demo. Raises ContractError for plain ones where the hard world is asked for.
    """
    root = Path(data.root)
    if not all(data.annotations(split).is_file() for split in SPLITS):
        with counted("rendering videos") as on_done:
            render_dataset(
                root, seed=SEED, train_videos=TRAIN_VIDEOS, val_videos=VAL_VIDEOS, world=world, progress=on_done
            )
    elif world == HARD:
        require_world(root, world)
    if not _is_complete(data):
        with counted(f"encoding videos, pool {pool}") as on_done:
            extract(root, data.features, pool, on_done)


def _is_complete(data: DataConfig) -> bool:
    rows = [row for split in SPLITS for row in read_jsonl(data.annotations(split))]
    videos = {video_feature_path(data.feature_directory(), row["vid"]) for row in rows}
    texts = {text_feature_path(data.feature_directory(), row["query"]) for row in rows}
    return all(path.is_file() for path in videos | texts)


def extract(root: Path, features: str, pool: Pool, on_done: Callable[[int, int], None]) -> Backbone:
    """Features of all videos and sentences of the rendered data set, by the tiny backbone; those there are kept."""
    rows = [row for split in SPLITS for row in read_jsonl(root / "annotations" / f"{split}.jsonl")]
    videos = {row["vid"]: root / "videos" / f"{row['vid']}.mp4" for row in rows}
    backbone = load_backbone(BACKBONE, pool)
    result = extract_videos(
        videos,
        backbone.vision,
        root / features,
        dtype="float32",
        on_progress=lambda progress: on_done(progress.done, progress.total),
    )
    for failure in result.failures:
        raise InputError(failure.reason)
    extract_sentences([row["query"] for row in rows], backbone, root / features, dtype="float32")
    return backbone
