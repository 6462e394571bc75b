"""What a QVHighlights submission must be, and the files it is written to."""

from __future__ import annotations

import json
import math
import zipfile

import pytest

from sdst_runtime.errors import InputError
from sdst_runtime.metrics.submission import check_predictions, complete_saliency, write_submission

CLIP_S = 2.0


def annotations() -> list[dict]:
    return [
        {"qid": 3, "query": "a dog", "vid": "a_0_9", "duration": 9},
        {"qid": 5, "query": "café", "vid": "b_0_4", "duration": 4},
    ]


def predictions() -> list[dict]:
    windows = {3: [[0.0, 9.0, 0.9], [2.5, 4.0, 0.9], [1, 2, 0.1]], 5: [[3.5, 4, 1]]}
    return [
        {
            **{key: row[key] for key in ("qid", "query", "vid")},
            "pred_relevant_windows": windows[row["qid"]],
            "pred_saliency_scores": [0.25] * math.ceil(row["duration"] / CLIP_S),
        }
        for row in annotations()
    ]


def test_a_valid_submission_passes():
    check_predictions(predictions(), annotations(), CLIP_S)
    check_predictions(predictions()[::-1], annotations(), CLIP_S, max_windows=3)


SPOILED = {
    "missing": (lambda p: p.pop(0), r"qid 3 has no prediction"),
    "unknown": (lambda p: p.append({**p[0], "qid": "3"}), r"qid '3' is not in the annotations"),
    "doubled": (lambda p: p.append(p[1]), r"qid 5 occurs more than once"),
    "query": (lambda p: p[0].update(query="a cat"), r"qid 3 has the query 'a cat', the annotation 'a dog'"),
    "video": (lambda p: p[1].update(vid="b"), r"qid 5 has the vid 'b', the annotation 'b_0_4'"),
    "too many": (
        lambda p: p[0].update(pred_relevant_windows=[[0, 1, 0.5]] * 11),
        r"qid 3 needs 1 to 10 windows, got 11",
    ),
    "none": (lambda p: p[0].update(pred_relevant_windows=[]), r"qid 3 needs 1 to 10 windows, got 0"),
    "no list": (lambda p: p[0].pop("pred_relevant_windows"), r"qid 3 needs 1 to 10 windows, got no list"),
    "nan": (
        lambda p: p[0]["pred_relevant_windows"][1].__setitem__(2, math.nan),
        r"qid 3 has a window that is not three finite numbers, \[2.5, 4.0, nan\]",
    ),
    "no score": (lambda p: p[0]["pred_relevant_windows"][2].pop(), r"qid 3 .* not three finite numbers, \[1, 2\]"),
    "empty": (
        lambda p: p[1].update(pred_relevant_windows=[[2, 2, 1]]),
        r"qid 5 has a window that does not end after it starts, \[2, 2, 1\]",
    ),
    "beyond": (lambda p: p[1].update(pred_relevant_windows=[[2, 4.5, 1]]), r"qid 5 has a window outside 0 to 4 s"),
    "before": (lambda p: p[1].update(pred_relevant_windows=[[-0.1, 4, 1]]), r"qid 5 has a window outside 0 to 4 s"),
    "unsorted": (
        lambda p: p[0]["pred_relevant_windows"].reverse(),
        r"qid 3 has windows that are not sorted by descending score",
    ),
    "clips": (lambda p: p[0]["pred_saliency_scores"].pop(), r"qid 3 needs 5 finite saliency scores, got 4"),
    "infinite": (
        lambda p: p[0]["pred_saliency_scores"].__setitem__(0, math.inf),
        r"qid 3 needs 5 finite saliency scores, got 5",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_one_fault_is_named_alone(case):
    rows = predictions()
    spoil, message = SPOILED[case]
    spoil(rows)

    with pytest.raises(InputError, match=message) as caught:
        check_predictions(rows, annotations(), CLIP_S)
    assert "more problems" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_further_problems_are_counted():
    rows = predictions()
    rows[0]["query"] = "a cat"
    rows[1]["qid"] = 6

    with pytest.raises(InputError, match=r"qid 3 has the query .*; 2 more problems; "):
        check_predictions(rows, annotations(), CLIP_S)


def test_clips_without_features_get_the_lowest_saliency():
    rows = predictions()
    rows[0]["pred_saliency_scores"] = [0.5, 0.1, 0.2]

    completed = complete_saliency(rows, annotations(), CLIP_S)

    assert completed[0]["pred_saliency_scores"] == [0.5, 0.1, 0.2, -1.0, -1.0]
    assert completed[1] == rows[1]
    assert len(rows[0]["pred_saliency_scores"]) == 3
    check_predictions(completed, annotations(), CLIP_S)


def test_files_and_zip(tmp_path):
    val, test = predictions(), predictions()[:1]
    val[0]["held_out"] = True  # not the server's

    archive = write_submission(tmp_path / "new", val, test)

    assert archive == tmp_path / "new" / "submission.zip"
    names = ["hl_val_submission.jsonl", "hl_test_submission.jsonl"]
    assert sorted(path.name for path in archive.parent.iterdir()) == sorted([*names, archive.name])
    with zipfile.ZipFile(archive) as stored:
        assert stored.namelist() == names
        for name, rows in zip(names, (predictions(), test), strict=True):
            content = stored.read(name)
            assert content == (archive.parent / name).read_bytes()
            assert [json.loads(line) for line in content.decode().splitlines()] == rows
    assert "café" in (archive.parent / names[0]).read_text(encoding="utf-8")


def test_same_rows_give_the_same_bytes(tmp_path):
    first, second = (write_submission(tmp_path / name, predictions(), predictions()) for name in "ab")

    assert first.read_bytes() == second.read_bytes()


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match="cannot write"):
        write_submission(tmp_path / "file", predictions(), predictions())
