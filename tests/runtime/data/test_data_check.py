"""`sdst data check`: what it prints of a good data set and of a bad one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from feature_files import write_text, write_video

from sdst.data import check, check_data
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.features import text_feature_path, video_feature_path
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_jsonl


def make_row(**changes) -> dict:
    return {"qid": 7, "query": "one", "vid": "v", "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes


@pytest.fixture
def data(tmp_path) -> DataConfig:
    """One video and two sentences; a validation split with one query of them."""
    write_jsonl(tmp_path / "val.jsonl", [make_row(qid=9)])
    write_video(tmp_path / "features", "v")
    for query in ("one", "two words"):
        write_text(tmp_path / "features", query)
    return DataConfig(str(tmp_path), "train.jsonl", "val.jsonl", "")


def annotate(data: DataConfig, *rows: dict) -> None:
    write_jsonl(Path(data.root) / "train.jsonl", list(rows))


def test_check_says_that_all_is_well(data, capsys):
    annotate(data, make_row(qid=1, relevant_windows=[[8, 4], [10, 12]]), make_row(qid=2, query="two words"))
    check_data(data)
    lines = capsys.readouterr().out.splitlines()
    cells = [re.findall(r"[\w:,]+(?: [\w:,]+)*", line) for line in lines]
    for row in (
        ["train", "val"],
        ["queries", "2", "1"],
        ["absent queries", "0", "0"],
        ["videos", "1", "1"],
        ["clips of a video", "10 to 10, median 10", "10 to 10, median 10"],
        ["tokens of a query", "4 to 5, median 4", "4 to 4, median 4"],
        ["layers", "3", "3"],
        ["widths: video, text", "6, 5", "6, 5"],
        ["windows", "3", "1"],
        ["most of a query", "2", "1"],
    ):
        assert row in cells
    assert lines[-3:] == [
        "test: none in this data set (data.test is empty)",
        "train: windows that ended before they began: 1, swapped (first: qid 1)",
        "all is well",
    ]


def test_check_prints_every_problem(data, capsys):
    annotate(data, make_row(qid=1, vid="x"), make_row(qid=2, query="new"), make_row(qid=3, duration=0))
    with pytest.raises(InputError, match=f"^4 problems in the data under {re.escape(data.root)}; mend what is listed"):
        check_data(dataclasses.replace(data, test="test.jsonl"))
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].startswith(f"train: {data.root}/train.jsonl, qid 3: duration is 0.0")
    assert lines[1].startswith(f"train: {video_feature_path(data.feature_directory(), 'x')}: no such feature file")
    assert lines[2].startswith(f"train: {text_feature_path(data.feature_directory(), 'new')}: no such feature file")
    assert lines[3].startswith(f"test: cannot read {data.root}/test.jsonl")
    with pytest.raises(InputError, match=r"^1 problem in the data"):
        check_data(dataclasses.replace(data, train="", val="gone.jsonl"))


def test_absent_queries_are_counted(data, capsys):
    """In val they keep nobody from scoring the others, and what cannot be scored is still found."""
    absent = {name: value for name, value in make_row(absent=True).items() if name != "relevant_windows"}
    annotate(data, make_row(qid=1), absent | {"qid": 2}, absent | {"qid": 3, "query": "two words"})
    write_jsonl(Path(data.root) / "val.jsonl", [make_row(qid=9), absent | {"qid": 10}])
    check_data(data)
    cells = [re.findall(r"[\w:,]+(?: [\w:,]+)*", line) for line in capsys.readouterr().out.splitlines()]
    for row in (["queries", "3", "2"], ["absent queries", "2", "1"], ["windows", "1", "1"]):
        assert row in cells
    write_jsonl(Path(data.root) / "val.jsonl", [make_row(qid=9, relevant_windows=[[4, 4]]), absent | {"qid": 10}])
    with pytest.raises(InputError, match=r"^1 problem in the data"):
        check_data(data)
    assert "qid 9" in capsys.readouterr().out


def test_a_test_split_may_be_released_without_windows(data, capsys):
    annotate(data, make_row())
    write_jsonl(Path(data.root) / "test.jsonl", [make_row(relevant_windows=[])])
    check_data(dataclasses.replace(data, test="test.jsonl"))
    assert "all is well" in capsys.readouterr().out


def test_check_of_a_config_file(data, tmp_path, capsys):
    annotate(data, make_row())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": dataclasses.asdict(data) | {"root": "elsewhere"}}))
    check([str(path), "--root", data.root])
    assert capsys.readouterr().out.endswith("all is well\n")
    with pytest.raises(InputError, match=r"problems in the data under elsewhere"):
        check([str(path)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row(qid=9, relevant_windows=[[4, 4]]), "qid 9"),
        (make_row(qid=9, relevant_clip_ids=[99], saliency_scores=[[1, 2, 3]]), "qid 9"),
    ],
)
def test_what_metrics_refuse_is_a_problem_of_validation_alone(data, capsys, row, message):
    """An empty window or a scored clip outside the video is mended in training, and cannot be scored."""
    annotate(data, row)
    check_data(data)
    write_jsonl(Path(data.root) / "val.jsonl", [row])
    with pytest.raises(InputError, match="1 problem in the data"):
        check_data(data)
    assert re.search(rf"^val: .*{message}", capsys.readouterr().out, re.MULTILINE)
