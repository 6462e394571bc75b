"""Makes the small world that `make test-matrix` tries other versions on, in the pinned environment, which has torch:

    .venv/bin/python tests/matrix_world.py FOLDER

FOLDER gets a bundle of random weights, the same with a presence in FOLDER/present, a video, a data set with its
features and config.json, and `expected.json`: what `sdst ground` and `sdst eval` say of them here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from conftest import make_exported, write_noise
from present_world import make_present
from random_split import QUERIES, annotation, write_features

from sdst_runtime.data.config import DataConfig
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.grounding.bundle import Bundle
from sdst_train.config import TrainConfig

QUERY = "a red circle moves to the left"


def make_world(root: Path) -> None:
    make_exported(root)
    (root / "present").mkdir()
    make_present(root / "bundle", root / "best.safetensors", root / "present")
    write_noise(root / "noise.mp4")
    rng, spec = np.random.default_rng(0), Bundle.open(root / "bundle").manifest.spec
    for split in ("train", "val"):
        rows = [annotation(rng, qid, split) for qid in range(QUERIES)]
        write_jsonl(root / f"{split}.jsonl", rows)
        write_features(rows, root / "features", spec, rng)
    data = DataConfig(root=str(root), train="train.jsonl", val="val.jsonl", test="", clip_s=1.0)
    write_json(root / "config.json", asdict(TrainConfig(data=data)))
    write_json(root / "expected.json", {name: ask(command) for name, command in commands(root).items()})


def commands(root: Path) -> dict[str, list[str]]:
    """The verbs that print one JSON object, and their arguments."""
    bundle = str(root / "bundle")
    return {
        "ground": ["ground", str(root / "noise.mp4"), QUERY, "--bundle", bundle, "--json"],
        "eval": ["eval", bundle, "--data", str(root / "config.json"), "--json", "--unrounded", "--threads", "1"],
    }


def ask(command: list[str]) -> dict:
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-m", "sdst", *command], capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout)


if __name__ == "__main__":
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    make_world(folder)
    write_json(folder / "commands.json", commands(folder))
