"""`sdst train`: one run on a folder of annotations and features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.dataset import Sample, load_samples
from sdst_runtime.errors import InputError
from sdst_runtime.features import read_video_features
from sdst_train.checkpoint import Checkpoint
from sdst_train.config import TrainConfig
from sdst_train.model import in_both_units, parameter_count
from sdst_train.train import SELECT_BY, Progress
from sdst_train.train import train as run_training


def train(data: tyro.conf.Positional[Path], *, out: Path, config: tyro.conf.OmitArgPrefixes[TrainConfig]) -> None:
    """Train SDST and keep the best and the last checkpoint.

    Args:
        data: Folder with annotations/train.jsonl, annotations/val.jsonl and features/{video,text}/*.safetensors.
        out: Folder of the run.
        config: The run; feature widths are taken from the feature files.
    """
    spec = dataset_spec(data)
    model = replace(config.model, video_width=spec.video_width, text_width=spec.text_width)
    train_samples, val_samples = (load_split(data, split, spec) for split in ("train", "val"))
    best = train_with_progress(replace(config, model=model), train_samples, val_samples, spec, out)
    print(f"trained parameters: {in_both_units(parameter_count(best.model))}")  # noqa: T201
    print(f"{out / 'best.safetensors'}: epoch {best.epoch}, {SELECT_BY} {best.metrics[SELECT_BY]:.2f}")  # noqa: T201


def dataset_spec(data: Path) -> FeatureSpec:
    """The contract of a folder's features, read off its first video."""
    first = min((data / "features" / "video").glob("*.safetensors"), default=None)
    if first is None:
        raise InputError(f"{data}/features/video: no feature files there; extract the features first")
    return read_video_features(first).spec


def load_split(data: Path, split: str, spec: FeatureSpec) -> list[Sample]:
    """Samples of annotations/{split}.jsonl."""
    return load_samples(data / "annotations" / f"{split}.jsonl", data / "features", spec)


def train_with_progress(
    config: TrainConfig, train_samples: list[Sample], val_samples: list[Sample], spec: FeatureSpec, out: Path
) -> Checkpoint:
    """Train under a progress bar, with a line of losses and metrics an epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=None)

        def show(progress: Progress) -> None:
            loss = progress.losses["loss"]
            bar.update(task, completed=progress.step, total=progress.steps, description=f"training, loss {loss:.2f}")
            if progress.metrics is not None:
                metrics = progress.metrics
                bar.console.print(
                    f"epoch {progress.epoch}/{progress.epochs}  loss {loss:.2f}  R1@0.5 {metrics['MR-full-R1@0.5']:.2f}"
                    f"  R1@0.7 {metrics['MR-full-R1@0.7']:.2f}  mAP {metrics[SELECT_BY]:.2f}",
                    highlight=False,
                )

        return run_training(config, train_samples, val_samples, spec, out, show)
