"""`sdst calibrate scores`: of a bundle, of a run and its export, and what cannot be calibrated."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from random_split import annotation, write_features

from sdst_calib.scores.measure import FOLDS
from sdst_runtime import Grounder
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import load_split
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.grounding.bundle import MANIFEST, Bundle
from sdst_runtime.grounding.decode import predict
from sdst_runtime.grounding.scores import SCORES, read_scores
from sdst_train.config import TrainConfig

QUERIES = 48


@pytest.fixture(scope="module")
def config(present, tmp_path_factory) -> Path:
    """Data in which every third query is absent and half of the others have a window that the model finds."""
    root, rng = tmp_path_factory.mktemp("scores"), np.random.default_rng(0)
    bundle = Bundle.open(present.directory)
    rows = [annotation(rng, qid, "val") | {"query": f"val{qid} happens{qid}"} for qid in range(QUERIES)]
    write_features(rows, root / "features", replace(bundle.manifest.spec, layers=3), rng)
    data = DataConfig(root=str(root), train="", val="val.jsonl", test="", clip_s=1.0)
    write_jsonl(root / "val.jsonl", rows)
    samples = load_split(data, "val").samples
    found = {
        row["qid"]: row["pred_relevant_windows"][0]
        for row in predict(bundle.grounding_model(1), samples, 1.0, layers=2)
    }
    for row in rows:
        if row["qid"] % 3 == 0:
            for name in ("relevant_windows", "relevant_clip_ids", "saliency_scores"):
                del row[name]
            row["absent"] = True
        elif row["qid"] % 2:
            start, end, _ = found[row["qid"]]
            row["relevant_windows"] = [[start, max(end, start + 1)]]
    write_jsonl(root / "val.jsonl", rows)
    write_json(root / "config.json", asdict(TrainConfig(data=data)))
    return root / "config.json"


def calibrate(capsys, model: Path, config: Path, out: Path) -> str:
    code, said, err = run(capsys, "calibrate", "scores", model, "--data", config, "--out", out, "--threads", 1)
    assert code == 0, err
    return said


def test_a_bundle_answers_with_probabilities(capsys, present, config, video, tmp_path):
    bundle = shutil.copytree(present.directory, tmp_path / "bundle")
    before = Grounder(bundle, threads=1).ground(video, "a ring grows")
    said = calibrate(capsys, bundle, config, tmp_path / "out")
    assert "48 queries, 16 absent" in " ".join(said.split())
    report = json.loads((tmp_path / "out" / "scores-report.json").read_text())
    assert (report["queries"], report["absent"], FOLDS) == (48, 16, 5)
    assert report["moments"]["line"]["ece"] < report["moments"]["as it is"]["ece"]
    assert (tmp_path / "out" / "scores.png").read_bytes().startswith(b"\x89PNG")

    scores = Bundle.open(bundle).scores()
    after = Grounder(bundle, threads=1).ground(video, "a ring grows")
    assert after.presence == pytest.approx(scores.presence(before.presence))
    assert after.presence != before.presence
    assert [m.score for m in after] == pytest.approx([scores.moment(m.score, before.presence) for m in before])
    assert [(m.start_s, m.end_s) for m in after] == [(m.start_s, m.end_s) for m in before]

    first = (bundle / MANIFEST).read_bytes(), (bundle / SCORES).read_bytes()
    calibrate(capsys, bundle, config, tmp_path / "again")  # of the model's own scores, not of calibrated ones
    assert ((bundle / MANIFEST).read_bytes(), (bundle / SCORES).read_bytes()) == first


def test_a_run_hands_its_scores_to_the_export(capsys, present, config, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(present.checkpoint_path, folder / "best.safetensors")
    calibrate(capsys, folder, config, tmp_path / "out")
    export = ("export", folder / "best.safetensors", "--backbone", present.backbone_path, "--out")
    code, _, err = run(capsys, *export, tmp_path / "bundle")
    assert code == 0, err
    assert Bundle.open(tmp_path / "bundle").scores() == read_scores(folder / SCORES)

    other = json.loads((folder / SCORES).read_text()) | {"checkpoint_sha256": "0" * 64}
    write_json(folder / SCORES, other)
    code, _, err = run(capsys, *export, tmp_path / "bundle")
    assert code == 0, err
    assert "scores.json is of another checkpoint than best.safetensors, and is left out" in err
    assert Bundle.open(tmp_path / "bundle").scores() is None  # the older file is gone too


def test_what_cannot_be_calibrated(capsys, exported, present, config, tmp_path):
    told = fails(capsys, "calibrate", "scores", tmp_path, "--data", config, "--out", tmp_path / "out")
    assert "expected a bundle (bundle.json) or the folder of a run (best.safetensors), found neither" in told
    told = fails(capsys, "calibrate", "scores", exported.directory, "--data", config, "--out", tmp_path / "out")
    assert "the model gives no presence; train it with --data.negatives" in told
    told = fails(
        capsys, "calibrate", "scores", present.directory, "--data", config, "--out", tmp_path, "--negatives", 1
    )
    assert "--negatives: expected a share between 0 and 1, got 1.0" in told
    assert not (tmp_path / "out").exists()
