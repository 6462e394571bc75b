"""The demo from end to end, small: every stage runs for real, only the numbers mean nothing yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdst.cli import main
from sdst.demo import BACKBONE
from sdst.demo.search import recall
from sdst_runtime.files import read_jsonl
from sdst_runtime.metrics.evaluator import evaluate

METRICS = {"R1@0.5", "R1@0.7", "mAP", "HIT@1", "top_clip_in_window"}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["demo", "--out", str(folder), "--train-videos", "6", "--val-videos", "4", "--epochs", "1"]
    assert main(arguments) == 0
    return folder


def test_summary_holds_the_documented_keys(out):
    summary = json.loads((out / "summary.json").read_text())
    assert summary.keys() >= METRICS | {"shuffled_queries", "onnx", "onnx_max_abs_error", "parameters", "seconds"}
    for block in (summary, summary["shuffled_queries"], summary["onnx"]):
        assert all(0 <= block[name] <= 100 for name in METRICS)
    assert summary["shuffled_queries"].keys() == summary["onnx"].keys() == METRICS
    assert list(summary["seconds"]) == ["render", "extract", "train", "evaluate", "export", "compare", "ground", "find"]


def test_the_right_video_is_found_by_alignment(out):
    """The demo here is too small to train: the numbers are those of any order, and fit together."""
    found = json.loads((out / "summary.json").read_text())["find_video"]
    page = (out / "report.html").read_text()
    assert (found["videos"], 0 < found["queries"] <= 100) == (4, True)
    for order in ("by_alignment", "by_head_score"):
        shares = [found[order][f"R@{depth}"] for depth in (1, 5, 10)]
        assert 0 <= shares[0] <= 100
        assert shares[1:] == [100, 100]  # of four videos
    assert f"{found['queries']} queries, {found['videos']} videos" in page


def test_ranks_within_depths():
    assert recall([1, 2, 5, 6, 10, 11, 1, 1]) == {"R@1": 37.5, "R@5": 62.5, "R@10": 87.5}


def test_onnx_equals_torch(out):
    summary = json.loads((out / "summary.json").read_text())
    assert summary["onnx_max_abs_error"] < 1e-4
    for name, value in summary["onnx"].items():
        assert value == pytest.approx(summary[name], abs=0.1)


def test_the_numbers_are_those_of_the_predictions(out):
    summary = json.loads((out / "summary.json").read_text())
    predictions, truth = read_jsonl(out / "run/val_predictions.jsonl"), read_jsonl(out / "annotations/val.jsonl")
    assert evaluate(predictions, truth)["brief"]["MR-full-mAP"] == summary["mAP"]
    assert summary["queries"]["val"] == len(truth)
    assert summary["queries"]["val_held_out_combination"] == sum(row["held_out_combination"] for row in truth)


def test_the_control_takes_another_videos_sentence(out):
    from sdst.demo.run import demo_config, with_other_sentences
    from sdst_runtime.data.dataset import load_split

    samples = load_split(demo_config(out, 1, 7).data, "val").samples
    videos = {id(sample.text): sample.row["vid"] for sample in samples}
    for sample, mixed in zip(samples, with_other_sentences(samples), strict=True):
        assert mixed.row is sample.row
        assert mixed.video is sample.video
        assert videos[id(mixed.text)] != sample.row["vid"]


def test_report_is_there_and_alone(out):
    page = (out / "report.html").read_text()
    assert "shuffled" in page.lower()
    assert page.count("data:image/jpeg;base64,") >= 4 * 8
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_a_second_run_keeps_videos_and_features(out):
    kept = {
        path: path.stat().st_mtime_ns for folder in ("videos", "features/video") for path in (out / folder).iterdir()
    }
    assert len(kept) == 2 * 10
    from sdst.demo.prepare import prepare_features
    from sdst.demo.run import demo_config

    prepare_features(demo_config(out, 1, 7).data)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_the_shipped_backbone_is_small():
    assert BACKBONE.stat().st_size < 2_000_000
