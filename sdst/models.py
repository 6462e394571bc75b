"""Models that verbs open, checkpoints and bundles alike, and what they predict of a data set."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdst_runtime import bounds
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.annotations import Row
from sdst_runtime.data.config import DataConfig, SplitName
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.errors import InputError, require_package
from sdst_runtime.grounding.bundle import MANIFEST, Bundle
from sdst_runtime.grounding.decode import predict
from sdst_runtime.grounding.scores import Scores
from sdst_runtime.metrics.postprocess import Postprocess
from sdst_runtime.sessions.base import Session
from sdst_train.presets import PRESETS

from .options import load_config
from .progress import counted

BEST = "best.safetensors"


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to predict from features."""

    session: Session
    spec: FeatureSpec
    data: DataConfig | None  # what it was trained on; a bundle does not say
    scores: Scores | None = None  # how its scores become probabilities, of a bundle that was calibrated


def open_model(path: Path, threads: int | None = None, as_written: bool = False) -> OpenedModel:
    """The model of a checkpoint, of a run's best checkpoint, or of a bundle, `as_written` as of `open_session`.

    Raises InputError or ContractError when it cannot be used, DependencyError when a checkpoint meets no torch.
    """
    if (path / MANIFEST).is_file():
        bundle = Bundle.open(path)
        return OpenedModel(bundle.grounding_model(threads, as_written), bundle.manifest.spec, None, bundle.scores())
    if path.is_dir() and not (path / BEST).is_file():
        raise InputError(f"{path}: expected a bundle ({MANIFEST}) or a run ({BEST}) in it, found neither")
    return _open_checkpoint(path / BEST if path.is_dir() else path, threads)


def data_of(model: OpenedModel, name: str | None, root: Path | None) -> DataConfig:
    """The data set that was asked for, else the one the model was trained on. Raises InputError without either."""
    data = model.data if name is None else load_config(name).data
    if data is None:
        raise InputError(
            f"a bundle does not say on what data: give --data, one of {', '.join(PRESETS)} or a config.json"
        )
    return data if root is None else replace(data, root=str(root))


def load_samples(model: OpenedModel, data: DataConfig, split: SplitName) -> list[Sample]:
    """The samples of a split; repairs of its annotations go to stderr. Only a test split may come without windows."""
    with counted("checking features") as on_done:
        loaded = load_split(data, split, needed=model.spec, labelled=split != "test", on_done=on_done)
    for line in loaded.repairs.lines():
        say(f"{split}: {line}")
    return loaded.samples


def predict_samples(model: OpenedModel, samples: list[Sample], split: str, postprocess: Postprocess) -> list[Row]:
    """Postprocessed prediction rows, under a progress bar; their scores are probabilities where the model has some."""
    with counted(f"predicting {split}") as on_done:
        rows = predict(model.session, samples, model.spec.clip_s, layers=model.spec.layers, on_done=on_done)
    if model.scores is not None:
        rows = [calibrated(row, model.scores) for row in rows]
    return postprocess(rows, {sample.row["qid"]: sample.row["duration"] for sample in samples})


def calibrated(row: Row, scores: Scores) -> Row:
    """A prediction row with probabilities in place of the model's own scores, as `Scores.apply` makes them."""
    presence = row.get("pred_presence")
    if presence is None:
        return row
    windows = [[start, end, scores.moment(score, presence)] for start, end, score in row["pred_relevant_windows"]]
    return row | {"pred_relevant_windows": windows, "pred_presence": scores.presence(presence)}


def has_windows(samples: list[Sample]) -> bool:
    """Whether there is something to score against."""
    return any(sample.row.get("relevant_windows") for sample in samples)


def say(line: str) -> None:
    """A line for a person, on stderr."""
    print(line, file=sys.stderr)  # noqa: T201


def _open_checkpoint(path: Path, threads: int | None) -> OpenedModel:
    checkpoints: Any = require_package("sdst_train.loop.checkpoint", "train")
    sessions: Any = require_package("sdst_train.model.torch_session", "train")
    devices: Any = require_package("sdst_train.loop.device", "train")
    torch: Any = require_package("torch", "train")
    if threads is not None:
        bounds.require("threads", threads, bounds.THREADS)
        torch.set_num_threads(threads)
    checkpoint = checkpoints.load_checkpoint(path)
    session = sessions.TorchSession(checkpoint.model.to(devices.choose_device("auto")))
    return OpenedModel(session, checkpoint.spec, checkpoint.config.data)
