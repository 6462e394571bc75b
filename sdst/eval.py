"""`sdst eval`: a checkpoint or a bundle on a split of a data set. A bundle needs no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.errors import InputError, require_package
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.grounding.bundle import MANIFEST, Bundle
from sdst_runtime.grounding.decode import predict
from sdst_runtime.metrics.postprocess import Postprocess
from sdst_runtime.metrics.score import Row, score
from sdst_runtime.sessions.base import Session
from sdst_train.presets import PRESETS

from .options import load_config
from .progress import counted

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
SplitName = Literal["train", "val", "test"]
BEST = "best.safetensors"


@dataclass(frozen=True)
class Head:
    """A model ready to predict from features."""

    session: Session
    spec: FeatureSpec
    data: DataConfig | None  # what it was trained on; a bundle does not say


def evaluate_model(
    model: tyro.conf.Positional[Path],
    *,
    data: str | None = None,
    split: SplitName = "val",
    root: Path | None = None,
    nms: float | None = None,
    round_s: float | None = None,
    predictions: Path | None = None,
    output: Path | None = None,
    unrounded: Flag = False,
    threads: int | None = None,
) -> None:
    """Predict a split and print its metrics as JSON, in the form of `sdst score`.

    Args:
        model: A checkpoint (.safetensors), the folder of a run (its best one), or a bundle, which needs no torch.
        data: A preset or a config.json; default: the data that the checkpoint was trained on.
        split: Which split of it.
        root: Folder of the data set, instead of the config's.
        nms: Drop windows whose IoU with a better one is at least this.
        round_s: Round windows to multiples of this many seconds.
        predictions: Write the predictions to this JSONL file.
        output: Write the metrics to this JSON file too.
        unrounded: All digits instead of two.
        threads: Threads for the model; default: all cores.
    """
    postprocess = Postprocess(nms, round_s)
    head = open_head(model, threads)
    chosen = data_of(head, data, root)
    samples = load_samples(head, chosen, split)
    labelled = has_windows(samples)
    if not labelled and predictions is None:
        raise InputError(f"{chosen.annotations(split)}: holds no windows, nothing to score; give --predictions FILE")
    rows = predict_samples(head, samples, split, postprocess)
    if predictions is not None:
        write_jsonl(predictions, rows)
    if not labelled:
        say(f"{len(rows)} predictions written; {chosen.annotations(split)} holds no windows: nothing to score")
        return
    result = score(rows, samples, chosen, rounded=not unrounded)
    if output is not None:
        write_json(output, result)
    print(json.dumps(result, indent=4))  # noqa: T201


def open_head(model: Path, threads: int | None = None) -> Head:
    """The head of a checkpoint, of a run's best checkpoint, or of a bundle.

    Raises InputError or ContractError when it cannot be used, DependencyError when a checkpoint meets no torch.
    """
    if (model / MANIFEST).is_file():
        bundle = Bundle.open(model)
        return Head(bundle.grounding_model(threads), bundle.manifest.spec, None)
    if model.is_dir() and not (model / BEST).is_file():
        raise InputError(f"{model}: expected a bundle ({MANIFEST}) or a run ({BEST}) in it, found neither")
    return _open_checkpoint(model / BEST if model.is_dir() else model, threads)


def data_of(head: Head, name: str | None, root: Path | None) -> DataConfig:
    """The data set that was asked for, else the one the model was trained on. Raises InputError without either."""
    data = head.data if name is None else load_config(name).data
    if data is None:
        raise InputError(
            f"a bundle does not say on what data: give --data, one of {', '.join(PRESETS)} or a config.json"
        )
    return data if root is None else replace(data, root=str(root))


def load_samples(head: Head, data: DataConfig, split: SplitName) -> list[Sample]:
    """The samples of a split; repairs of its annotations go to stderr. Only a test split may come without windows."""
    with counted("checking features") as on_done:
        loaded = load_split(data, split, needed=head.spec, labelled=split != "test", on_done=on_done)
    for line in loaded.repairs.lines():
        say(f"{split}: {line}")
    return loaded.samples


def predict_samples(head: Head, samples: list[Sample], split: str, postprocess: Postprocess) -> list[Row]:
    """Postprocessed prediction rows, under a progress bar."""
    with counted(f"predicting {split}") as on_done:
        rows = predict(head.session, samples, head.spec.clip_s, layers=head.spec.layers, on_done=on_done)
    return postprocess(rows, {sample.row["qid"]: sample.row["duration"] for sample in samples})


def has_windows(samples: list[Sample]) -> bool:
    """Whether there is something to score against."""
    return any(sample.row.get("relevant_windows") for sample in samples)


def say(line: str) -> None:
    """A line for a person, on stderr."""
    print(line, file=sys.stderr)  # noqa: T201


def _open_checkpoint(path: Path, threads: int | None) -> Head:
    checkpoints: Any = require_package("sdst_train.loop.checkpoint", "train")
    sessions: Any = require_package("sdst_train.model.torch_session", "train")
    devices: Any = require_package("sdst_train.loop.device", "train")
    torch: Any = require_package("torch", "train")
    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, got {threads}")
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = checkpoints.load_checkpoint(path)
    model = checkpoint.model.to(devices.choose_device("auto"))
    return Head(sessions.TorchSession(model), checkpoint.spec, checkpoint.config.data)
