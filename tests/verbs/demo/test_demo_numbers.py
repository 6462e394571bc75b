"""The demo's numbers of predictions, some of absent queries, and `sdst demo --world hard` from end to end, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdst.cli import main
from sdst.demo.dataset import annotate
from sdst.demo.numbers import in_parts, measured, presence, tables
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.files import read_jsonl
from sdst_runtime.metrics.evaluator import LENGTH_RANGES_S


@pytest.fixture(scope="module")
def truth():
    return [row for i in range(12) for row in annotate(7, "val", i, "hard")]


def perfect(row, presence: float):
    """A prediction of the truth itself; of an absent query some window."""
    clips = int(row["duration"] // 2) + 1
    saliency = [0.0] * clips
    for clip, scores in zip(row["relevant_clip_ids"], row["saliency_scores"], strict=True):
        saliency[clip] = sum(scores) / 3
    windows = [[start_s, end_s, 1.0] for start_s, end_s in row["relevant_windows"]] or [[0.0, 9.0, 1.0]]
    return {"qid": row["qid"], "pred_relevant_windows": windows, "pred_saliency_scores": saliency,
            "pred_presence": presence}  # fmt: skip


def test_absent_queries_are_no_part_of_retrieval(truth):
    rows = [perfect(row, 0.5) for row in truth]
    numbers = measured(rows, truth)
    assert (numbers["R1@0.7"], numbers["mAP"]) == (100, 100)
    parts = in_parts(rows, truth)
    present = [row for row in truth if not is_absent(row)]
    assert sum(group["queries"] for group in parts["by_windows"].values()) == len(present)
    assert all(group["mAP"] == 100 for group in parts["by_windows"].values())
    lengths_s = [end_s - start_s for row in present for start_s, end_s in row["relevant_windows"]]
    for name, group in parts["by_length"].items():
        least_s, most_s = LENGTH_RANGES_S[name]
        assert group["windows"] == sum(least_s < length_s <= most_s for length_s in lengths_s)
    assert sum(group["windows"] for group in parts["by_length"].values()) == len(lengths_s)


def test_sequences_have_numbers_of_their_own(truth):
    rows = [perfect(row, 0.5) for row in truth]
    for row, said in zip(truth, rows, strict=True):
        if " > " in row["event"]:
            said["pred_relevant_windows"] = [[0.0, 0.1, 1.0]]
    parts = in_parts(rows, truth)
    assert (parts["val_single_events"]["mAP"], parts["val_sequences"]["mAP"]) == (100, 0)


def test_presence_is_told_by_kind_of_absent_query(truth):
    def sure(row) -> float:  # takes near misses for present
        return 0.9 if not is_absent(row) or row["near_miss"] else 0.1

    rows, control = [perfect(row, sure(row)) for row in truth], [perfect(row, 0.5) for row in truth]
    numbers = presence(rows, control, truth)["presence"]
    assert [numbers[f"AUROC {name}"] for name in ("near misses", "others", "shuffled queries")] == [0.5, 1, 0.5]
    assert (numbers["AUROC"], numbers["queries"], numbers["absent"]) == (0.75, 72, 24)
    assert (numbers["recall"], numbers["refused"]) == (100, 50)
    present = [row for row in truth if not is_absent(row)]
    assert presence(rows, control, present) == {}


def test_tables_hold_the_numbers(truth):
    rows = [perfect(row, float(not is_absent(row))) for row in truth]
    summary = {**in_parts(rows, truth), **presence(rows, rows, truth)}
    lengths, counts, told = tables(summary)
    short = summary["by_length"]["short"]
    shares = [f"{short[name]:.2f}" for name in ("mAP", "R1@0.5", "R1@0.7")]
    assert lengths.rows[0] == ("short, 0 to 10 s", str(short["windows"]), *shares)
    assert [cells[0] for cells in counts.rows] == ["1", "2", "3 or more"]
    assert ("AUROC", "1.0") in told.rows
    assert [table.title for table in tables({**summary, "presence": {}, "by_windows": {}})] == ["By length of window"]


# ---- from end to end


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hard") / "out"
    sizes = ["--train-videos", "3", "--val-videos", "2", "--epochs", "1"]
    assert main(["demo", "--world", "hard", "--out", str(folder), *sizes]) == 0
    return folder


def test_the_hard_demo_runs_to_its_end(out):
    summary, rows = json.loads((out / "summary.json").read_text()), read_jsonl(out / "annotations" / "val.jsonl")
    assert (summary["world"], summary["queries"]["val"], summary["queries"]["val_absent"]) == ("hard", 12, 4)
    assert summary["presence"].items() >= {"queries": 12, "absent": 4}.items()
    assert summary["find_video"]["queries"] == 8
    config = json.loads((out / "run" / "config.json").read_text())
    assert (config["preset"], config["data"]["negatives"], config["model"]["presence"]) == ("demo-hard", 0.33, True)
    predictions = read_jsonl(out / "run" / "val_predictions.jsonl")
    assert measured(predictions, rows)["mAP"] == summary["mAP"]
    assert presence(predictions, predictions, rows)["presence"]["AUROC"] == summary["presence"]["AUROC"]
    assert summary["onnx_max_abs_error"] < 1e-4


def test_its_page_shows_what_is_absent(out):
    page = (out / "report.html").read_text()
    for title in ("By length of window", "By number of windows", "Presence"):
        assert title in page
    assert "2 are about what the video does not show" in page
    for row in filter(is_absent, read_jsonl(out / "annotations" / "val.jsonl")):
        assert row["query"] in page


def test_the_preset_of_the_plain_world_trains_on_it_too(out, tmp_path):
    """It draws no absent queries, so its model has no presence; those of the data are no part of its metrics."""
    arguments = ["train", "demo", "--data.root", str(out), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    metrics = json.loads((tmp_path / "run" / "val_metrics.json").read_text())
    assert "presence" not in metrics
    assert "presence-AUROC" not in metrics["brief"]
    assert main([*arguments[:-1], str(tmp_path / "other"), "--select-by", "presence-AUROC"]) == 2


def test_an_ablation_on_it_is_read_again(out, tmp_path, capsys):
    options = ["--over", "query_init", "--seeds", "1", "--epochs", "1", "--data.root", str(out)]
    for _ in range(2):
        assert main(["ablate", "demo-hard", *options, "--out", str(tmp_path / "ablation")]) == 0
        cells = json.loads((tmp_path / "ablation" / "ablation.json").read_text())
        assert "presence-AUROC" in json.dumps(cells)
    assert "2 of them finished" in capsys.readouterr().err
