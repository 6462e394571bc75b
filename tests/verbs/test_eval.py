"""`sdst eval` and `sdst submit` on a small data set in the real formats: a bundle, its checkpoint, a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from random_split import QUERIES, annotation, write_features

from sdst.cli import main
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import load_split
from sdst_runtime.files import read_jsonl, write_json, write_jsonl
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.grounding.decode import predict
from sdst_runtime.metrics.evaluator import evaluate
from sdst_train.config import TrainConfig


@dataclass(frozen=True)
class World:
    """A data set, and the models that its features were made for."""

    bundle: Path
    checkpoint: Path
    run: Path  # of the same weights, trained on this data
    config: Path
    root: Path

    def truth(self, split: str) -> list[dict]:
        return read_jsonl(self.root / f"{split}.jsonl")


@pytest.fixture(scope="module")
def world(exported, tmp_path_factory) -> World:
    from sdst_train.loop.checkpoint import load_checkpoint, save_checkpoint

    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    data = DataConfig(root=str(root), train="", val="val.jsonl", test="test.jsonl", clip_s=1.0)
    checkpoint = load_checkpoint(exported.checkpoint_path)
    for split in ("val", "test"):
        rows = [annotation(rng, qid, split) for qid in range(QUERIES)]
        write_jsonl(root / f"{split}.jsonl", rows)
        write_features(rows, root / "features", replace(checkpoint.spec, layers=3), rng)
    write_json(root / "config.json", asdict(TrainConfig(data=data)))
    run = tmp_path_factory.mktemp("run")
    trained = replace(checkpoint, config=replace(checkpoint.config, data=data))
    save_checkpoint(run / "best.safetensors", trained)
    return World(exported.directory, exported.checkpoint_path, run, root / "config.json", root)


@pytest.fixture
def unlabelled(world, tmp_path) -> Path:
    """A config whose test annotations hold no windows, as the first release of QVHighlights test."""
    kept = ("qid", "query", "vid", "duration")
    write_jsonl(tmp_path / "test.jsonl", [{key: row[key] for key in kept} for row in world.truth("test")])
    config = json.loads(world.config.read_text())
    config["data"]["test"] = str(tmp_path / "test.jsonl")
    write_json(tmp_path / "config.json", config)
    return tmp_path / "config.json"


def sdst(capsys, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of a command that must succeed."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


def fails(capsys, *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert (code, captured.out, len(lines)) == (2, "", 1), captured.err
    return lines[0]


def measured(result: dict) -> dict[str, float]:
    return {name: value for name, value in result["brief"].items() if value is not None}


def test_bundle_and_checkpoint_agree(capsys, world, tmp_path):
    files = [tmp_path / name for name in ("bundle.jsonl", "checkpoint.jsonl")]
    results = [
        json.loads(sdst(capsys, "eval", model, "--data", world.config, "--json", "--predictions", file)[0])
        for model, file in zip((world.bundle, world.checkpoint), files, strict=True)
    ]

    assert results[0].keys() == {
        "brief", "full", "long", "middle", "short", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood",
    }  # fmt: skip
    assert measured(results[0]) == pytest.approx(measured(results[1]), abs=0.011)
    assert results[0]["brief"]["HL-min-Fair-Hit1"] > 0
    for ours, theirs in zip(*map(read_jsonl, files), strict=True):
        assert (ours["qid"], ours["query"]) == (theirs["qid"], theirs["query"])
        assert np.allclose(ours["pred_relevant_windows"], theirs["pred_relevant_windows"], atol=2e-3)
        assert np.allclose(ours["pred_saliency_scores"], theirs["pred_saliency_scores"], atol=1e-4)
    assert results[0] == evaluate(read_jsonl(files[0]), world.truth("val"), clip_s=1.0)


def test_a_run_is_evaluated_on_its_own_data(capsys, world, tmp_path):
    output = tmp_path / "metrics.json"
    out, err = sdst(capsys, "eval", world.run, "--json", "--unrounded", "--output", output, "--threads", 1)
    by_file, _ = sdst(capsys, "eval", world.run / "best.safetensors", "--data", world.config, "--json", "--unrounded")

    assert json.loads(out) == json.loads(by_file) == json.loads(output.read_text())
    assert err == ""


def test_the_table_holds_the_numbers_of_the_json(capsys, world):
    result = json.loads(sdst(capsys, "eval", world.run, "--json")[0])
    table, _ = sdst(capsys, "eval", world.run)
    rows = {cells[0]: cells[1:] for line in table.splitlines() if (cells := line.replace("│", " ").split())}

    assert f"val: {QUERIES} queries, percent" in table
    for name, value in measured(result).items():
        if name.startswith(("MR-full-", "HL-")):
            assert rows[name.removeprefix("MR-full-")][0] == f"{value:.2f}"
    lengths = [result["brief"].get(f"MR-{length}-mAP") for length in ("full", "short", "middle", "long")]
    assert rows["mAP"] == [f"{value:.2f}" for value in lengths if value is not None]


def test_another_root(capsys, world, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(world.root)

    out, _ = sdst(capsys, "eval", world.run, "--root", moved)
    assert out == sdst(capsys, "eval", world.run)[0]
    assert str(tmp_path / "none") in fails(capsys, "eval", world.run, "--root", tmp_path / "none")


def test_postprocessing_reaches_the_predictions(capsys, world, tmp_path):
    plain, file = tmp_path / "plain.jsonl", tmp_path / "predictions.jsonl"
    sdst(capsys, "eval", world.run, "--predictions", plain)
    sdst(capsys, "eval", world.run, "--predictions", file, "--nms", 0.4, "--round-s", 2)

    durations_s = {row["qid"]: row["duration"] for row in world.truth("val")}
    before, after = read_jsonl(plain), read_jsonl(file)
    assert {len(row["pred_relevant_windows"]) for row in before} == {5}
    assert sum(len(row["pred_relevant_windows"]) for row in after) < 5 * QUERIES
    ends = {(end, durations_s[row["qid"]]) for row in after for _, end, _ in row["pred_relevant_windows"]}
    assert all(end <= duration and (end % 2 == 0 or end == duration) for end, duration in ends)


def test_predict_takes_the_last_layers_and_tells_how_far_it_is(world):
    data = DataConfig(root=str(world.root), train="", val="val.jsonl", test="", clip_s=1.0)
    samples, head = load_split(data, "val").samples, Bundle.open(world.bundle).grounding_model()
    done = []
    rows = predict(head, samples, 1.0, batch_size=5, layers=2, on_done=lambda *counts: done.append(counts))

    assert done == [(5, QUERIES), (10, QUERIES), (12, QUERIES)]
    cut = [replace(s, video=np.asarray(s.video)[:, -2:], text=np.asarray(s.text)[-2:]) for s in samples]
    assert rows == predict(head, cut, 1.0, batch_size=5)


WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from sdst.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`sdst ARGUMENTS` in a process where torch cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_bundle_needs_no_torch(capsys, world, tmp_path):
    arguments = ("eval", world.bundle, "--data", world.config)
    done = without_torch(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == sdst(capsys, *arguments)[0]

    done = without_torch("submit", world.bundle, "--data", world.config, "--out", tmp_path, "--round-s", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "submission.zip").is_file()

    done = without_torch("eval", world.checkpoint, "--data", world.config)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: torch is needed here")
    assert done.stderr.endswith("run pip install '.[train]' in the project's checkout\n")


def test_without_windows_there_is_nothing_to_score(capsys, world, unlabelled, tmp_path):
    arguments = ("eval", world.run, "--data", unlabelled, "--split", "test")
    assert "holds no windows, nothing to score; give --predictions" in fails(capsys, *arguments)

    out, err = sdst(capsys, *arguments, "--predictions", tmp_path / "test_predictions.jsonl")

    assert out == ""
    assert "12 predictions written" in err
    assert "nothing to score" in err
    sdst(capsys, "eval", world.run, "--split", "test", "--predictions", tmp_path / "labelled.jsonl")
    assert read_jsonl(tmp_path / "test_predictions.jsonl") == read_jsonl(tmp_path / "labelled.jsonl")


def test_repairs_are_said(capsys, world, tmp_path):
    rows = world.truth("val")
    rows[3]["relevant_windows"][0].reverse()
    write_jsonl(tmp_path / "val.jsonl", rows)
    config = json.loads(world.config.read_text())
    config["data"]["val"] = str(tmp_path / "val.jsonl")
    write_json(tmp_path / "config.json", config)

    out, err = sdst(capsys, "eval", world.run, "--data", tmp_path / "config.json")

    assert re.search("val: .*swapped.*qid 3", err)
    assert out == sdst(capsys, "eval", world.run)[0]


def test_what_cannot_be_evaluated(capsys, world, tmp_path):
    line = fails(capsys, "eval", world.bundle)
    assert "does not say on what data: give --data, one of qvhighlights, charades, tacos, demo, demo-hard or" in line
    assert "expected a bundle (bundle.json) or a run (best.safetensors)" in fails(capsys, "eval", tmp_path)
    assert "no such checkpoint" in fails(capsys, "eval", tmp_path / "none.safetensors")
    assert "expected one of qvhighlights, " in fails(capsys, "eval", world.run, "--data", "qvhighlight")
    assert "nms: expected an IoU" in fails(capsys, "eval", world.run, "--nms", 2)
    assert "threads: expected at least 1, got 0" in fails(capsys, "eval", world.run, "--threads", 0)
    assert "threads: expected at least 1, got 0" in fails(
        capsys, "eval", world.bundle, "--data", world.config, "--threads", 0
    )
    assert "has no train split" in fails(capsys, "eval", world.run, "--split", "train")


def test_features_of_another_contract(capsys, world, tmp_path):
    from sdst_train.loop.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(world.run / "best.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", replace(checkpoint, spec=replace(checkpoint.spec, pool="mean")))

    line = fails(capsys, "eval", tmp_path / "other.safetensors")
    assert "feature contracts disagree on pool" in line


# ---------------------------------------------------------------- submit


def test_submission_of_a_run(capsys, world, tmp_path):
    out, _ = sdst(capsys, "submit", world.run, "--out", tmp_path / "s", "--windows", 3, "--nms", 0.9, "--round-s", 1)

    said = json.loads(out)
    archive = tmp_path / "s" / "submission.zip"
    assert (said["zip"], said["bytes"]) == (str(archive), archive.stat().st_size)
    with zipfile.ZipFile(archive) as stored:
        assert stored.namelist() == ["hl_val_submission.jsonl", "hl_test_submission.jsonl"]
    for split in ("val", "test"):
        rows, truth = read_jsonl(tmp_path / "s" / f"hl_{split}_submission.jsonl"), world.truth(split)
        assert [row["qid"] for row in rows] == list(range(QUERIES))
        assert {len(row["pred_relevant_windows"]) for row in rows} <= {1, 2, 3}
        assert [len(r["pred_saliency_scores"]) for r in rows] == [int(np.ceil(t["duration"])) for t in truth]
        assert said[split] == evaluate(rows, truth, clip_s=1.0)["brief"]


def test_submission_of_a_bundle_with_hidden_test_windows(capsys, world, unlabelled, tmp_path):
    out, _ = sdst(capsys, "submit", world.bundle, "--data", unlabelled, "--out", tmp_path / "s", "--round-s", 1)

    assert json.loads(out).keys() == {"zip", "bytes", "val"}
    assert len(read_jsonl(tmp_path / "s" / "hl_test_submission.jsonl")) == QUERIES


def test_no_submission_for_other_metrics(capsys, world, tmp_path):
    config = json.loads(world.config.read_text())
    config["data"]["metrics"] = "moments"
    write_json(tmp_path / "config.json", config)

    line = fails(capsys, "submit", world.run, "--data", tmp_path / "config.json", "--out", tmp_path / "s")

    assert "a submission is for QVHighlights, the data's metrics are 'moments'" in line
    assert not (tmp_path / "s").exists()
