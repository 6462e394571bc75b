"""Annotation files in each data set's own form, what is refused in them, and what is mended."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import SHARED

from sdst_runtime.data.annotations import Annotations, check_annotation, clips_of, read_annotations, row_faults
from sdst_runtime.data.repairs import Count, Repairs, mend_windows
from sdst_runtime.errors import InputError

RELEASED = SHARED / "data/qvhighlights/highlight_val_release.jsonl"
CHARADES_CSV = """\
id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length
AO8RW,HR43,Kitchen,6,7,Yes,"A person, in a kitchen, ""cooks""; then sits.",book;shelf,"One, two.",c152 0.00 11.60,33.67
3MSZA,ZAWX,Living room,4,7,Yes,Someone sits.,,Nothing,,30.96
"""


def make_row(**changes) -> dict:
    return {"qid": 7, "query": "q", "vid": "v", "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_rows(path: Path, *rows: dict) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# --- QVHighlights ----------------------------------------------------------------------------------------------------


def test_rows_of_the_qvhighlights_form_are_left_as_they_are(tmp_path):
    rows = [
        make_row(qid=1, relevant_clip_ids=[2, 3], saliency_scores=[[4, 2, 3], [1, 1, 2]], own_field={"a": [1]}),
        make_row(qid=2, duration=19, relevant_windows=[[0, 30], [30, 31]]),  # outside: mended for training only
    ]
    assert read_annotations(write_rows(tmp_path / "a.jsonl", *rows)) == Annotations(rows, Repairs())


def test_reversed_windows_are_swapped_and_counted(tmp_path):
    path = write_rows(
        tmp_path / "a.jsonl",
        make_row(qid="a"),
        make_row(qid="b", relevant_windows=[[8, 4], [10, 12.5], [20, 2]]),
        make_row(qid="c", relevant_windows=[[8, 4]]),
    )
    found = read_annotations(path)
    assert [row["relevant_windows"] for row in found.rows] == [[[4, 8]], [[4, 8], [10, 12.5], [2, 20]], [[4, 8]]]
    assert found.repairs == Repairs(reversed=Count(3, "qid b"))
    assert found.repairs.lines() == ["windows that ended before they began: 3, swapped (first: qid b)"]


def test_a_list_of_rows_in_a_json_file(tmp_path):
    rows = [make_row(qid="s1_0"), make_row(qid="s1_1", relevant_windows=[[1, 2], [3, 4]])]
    assert read_annotations(write(tmp_path / "a.json", json.dumps(rows))).rows == rows


def test_queries_without_windows_are_welcome_only_when_said(tmp_path):
    bare = make_row(qid=8)
    del bare["relevant_windows"]
    path = write_rows(tmp_path / "test.jsonl", make_row(relevant_windows=[]), bare)
    assert read_annotations(path, labelled=False) == Annotations([make_row(relevant_windows=[]), bare], Repairs())
    with pytest.raises(InputError, match=r"test\.jsonl, qid 7: no relevant window; mend the row or leave it out"):
        read_annotations(path)


def test_the_released_validation_split():
    if not RELEASED.is_file():
        pytest.skip("needs the QVHighlights annotations, which are not ours to copy")
    found = read_annotations(RELEASED)
    assert len(found.rows) == 1550
    assert found.repairs == Repairs()
    assert found.rows[0]["qid"] == 2579
    assert (found.rows[0]["vid"], found.rows[0]["relevant_windows"]) == ("NUsG9BgSes0_210.0_360.0", [[82, 150]])
    for row in found.rows:
        _, repairs = mend_windows(
            row["relevant_windows"], duration_s=row["duration"], covered_s=150, clip_s=2, source="a query"
        )
        assert repairs == Repairs(), row["qid"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevant_clip_ids": [1]}, "for each of 1 relevant_clip_ids, got 0 rows"),
        ({"relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2], [1]]}, "all of one length"),
        ({"relevant_clip_ids": [1], "saliency_scores": [[]]}, "all of one length"),
        ({"relevant_clip_ids": [1], "saliency_scores": [[2, -1]]}, "saliency_scores: expected scores of 0 or more"),
        ({"relevant_clip_ids": [1.5], "saliency_scores": [[1]]}, "relevant_clip_ids.0: Input should be a valid int"),
        ({"relevant_windows": [[1, 2, 3]]}, "relevant_windows.0"),
        ({"relevant_windows": [[1, math.nan]]}, "relevant_windows.0.1: Input should be a finite number"),
        ({"relevant_windows": []}, "no relevant window"),
        ({"duration": "long"}, "duration: Input should be a valid number"),
        ({"duration": 0}, "duration is 0.0; mend the row"),
        ({"duration": -3}, "duration is -3.0"),
        ({"duration": math.inf}, "duration: Input should be a finite number"),
        ({"query": None}, "query: Input should be a valid string"),
        ({"query": " \n"}, "query is empty"),
        ({"vid": 5}, "vid: Input should be a valid string"),
    ],
)
def test_malformed_rows(changes, message):
    with pytest.raises(InputError, match=f"train.jsonl, qid 7: .*{re.escape(message)}"):
        check_annotation(make_row(**changes), "train.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"qid": 4, "query": "one", "vid": "v"}\n', r"train\.jsonl, qid 4: duration: Field required"),
        ('\n{"query": "one", "vid": "v"}\n', r"train\.jsonl, row 1: qid"),
        ('{"qid": 1.5}\n', r"train\.jsonl, qid 1.5: qid"),
        ("", r"train\.jsonl: no annotations in it"),
        ("\n \n", r"train\.jsonl: no annotations in it"),
        ('{"qid": 1}\n{"qid": \n', r"train\.jsonl, line 2: not JSON"),
        ("[1]\n", r"train\.jsonl, line 1: expected a JSON object"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(write(tmp_path / "train.jsonl", text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    for name in ("a.jsonl", "a.json", "a.txt"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_annotations(tmp_path / name)
        (tmp_path / name).write_bytes(b'{"query": "\xff"}\n')
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_annotations(tmp_path / name)
    with pytest.raises(InputError, match=r"a\.csv: expected annotations in a .jsonl, .txt or .json file, got '.csv'"):
        read_annotations(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("qids", "message"),
    [
        ([1, 2, 1], "qid 1: occurs more than once; qids must differ"),
        ([1, 2, "3"], "qid 3: some qids are numbers, some are text"),
        (["1", 2], "qid 2: some qids are numbers"),
    ],
)
def test_qids_that_cannot_be_told_apart(tmp_path, qids, message):
    path = write_rows(tmp_path / "a.jsonl", *[make_row(qid=qid) for qid in qids])
    with pytest.raises(InputError, match=message):
        read_annotations(path)


def test_every_fault_is_found():
    rows = [make_row(qid=1), make_row(qid=2, duration=0), make_row(qid=3), make_row(qid=1), make_row(query="", qid=5)]
    assert row_faults(rows) == {
        1: "qid 2: duration is 0.0; mend the row or leave it out of the annotations",
        3: "qid 1: occurs more than once; qids must differ",
        4: "qid 5: query is empty; mend the row or leave it out of the annotations",
    }


# --- Charades-STA ----------------------------------------------------------------------------------------------------


@pytest.fixture
def charades(tmp_path) -> tuple[Path, list[Path]]:
    lines = [
        "AO8RW 0.0 6.9##a person is putting a book on a shelf.",
        "3MSZA 24.3 30.4##person turn a light on.",
        "3MSZA 30.4 24.3## person ## flipped the light switch near the door.",
    ]
    train, test = CHARADES_CSV.splitlines(keepends=True)[:2], CHARADES_CSV.splitlines(keepends=True)[::2]
    tables = [write(tmp_path / "train.csv", "".join(train)), write(tmp_path / "test.csv", "".join(test))]
    return write(tmp_path / "charades_sta_train.txt", "\n".join(lines) + "\n"), tables


def test_charades(charades):
    path, tables = charades
    found = read_annotations(path, tables)
    assert found.rows == [
        {"qid": 0, "query": "a person is putting a book on a shelf.", "vid": "AO8RW", "duration": 33.67,
         "relevant_windows": [[0.0, 6.9]]},
        {"qid": 1, "query": "person turn a light on.", "vid": "3MSZA", "duration": 30.96,
         "relevant_windows": [[24.3, 30.4]]},
        {"qid": 2, "query": "person ## flipped the light switch near the door.", "vid": "3MSZA", "duration": 30.96,
         "relevant_windows": [[24.3, 30.4]]},
    ]  # fmt: skip
    assert found.repairs == Repairs(reversed=Count(1, "qid 2"))


def test_a_video_without_a_duration(charades):
    path, tables = charades
    with pytest.raises(InputError, match=r"sta_train\.txt, line 2: no duration of video 3MSZA in .*/train\.csv$"):
        read_annotations(path, tables[:1])
    with pytest.raises(InputError, match=r"no duration of video AO8RW in no file: set data\.durations"):
        read_annotations(path)


@pytest.mark.parametrize(
    "line",
    ["AO8RW 0.0##a person", "AO8RW 0.0 6.9 a person", "AO8RW zero 6.9##a person", "AO8RW 0.0 6.9 7##a person", "##"],
)
def test_a_line_of_another_form(charades, line):
    path, tables = charades
    write(path, "AO8RW 0.0 6.9##ok.\n" + line + "\n")
    expected = re.escape(f"charades_sta_train.txt, line 2: expected VID START END##sentence, got {line!r}")
    with pytest.raises(InputError, match=expected):
        read_annotations(path, tables)


def test_charades_lines_that_are_checked_as_rows(charades):
    path, tables = charades
    write(path, "AO8RW 0.0 6.9##ok.\n\nAO8RW 0.0 nan##person.\n")
    with pytest.raises(InputError, match=r"sta_train\.txt, qid 2: relevant_windows.0.1: Input should be a finite"):
        read_annotations(path, tables)
    write(path, "AO8RW 0.0 6.9##  \n")
    with pytest.raises(InputError, match="qid 0: query is empty"):
        read_annotations(path, tables)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,seconds\nAO8RW,3\n", r"expected a CSV file with columns id and length, got \['id', 'seconds'\]"),
        ("", "expected a CSV file with columns id and length, got None"),
        ("id,length\nAO8RW,3\n3MSZA,long\n", "line 3: expected seconds in column length, got 'long'"),
        ("id,length\nAO8RW\n", "line 2: expected seconds in column length, got None"),
    ],
)
def test_durations_that_cannot_be_used(charades, text, message):
    path, tables = charades
    write(tables[0], text)
    with pytest.raises(InputError, match=f"train.csv.*{message}"):
        read_annotations(path, tables)


# --- TACoS -----------------------------------------------------------------------------------------------------------


def tacos(**changes) -> dict:
    video = {"timestamps": [[147, 441], [588, 294]], "sentences": ["He takes out a cutting board.", "He peels. "]}
    return {"s13-d21.avi": {**video, "fps": 29.4, "num_frames": 13230} | changes}


def test_tacos(tmp_path):
    other = {"s14.d1": {"timestamps": [[0, 25]], "sentences": ["She stirs."], "fps": 25, "num_frames": 1000}}
    found = read_annotations(write(tmp_path / "train.json", json.dumps(tacos() | other)))
    assert [(row["qid"], row["vid"], row["query"]) for row in found.rows] == [
        ("s13-d21_0", "s13-d21", "He takes out a cutting board."),
        ("s13-d21_1", "s13-d21", "He peels."),
        ("s14.d1_0", "s14.d1", "She stirs."),
    ]
    for row, duration_s, window in zip(found.rows, (450, 450, 40), ([5, 15], [10, 20], [0, 1]), strict=True):
        assert row["duration"] == pytest.approx(duration_s)
        assert row["relevant_windows"] == [pytest.approx(window)]
        assert set(row) == {"qid", "query", "vid", "duration", "relevant_windows"}
    assert found.repairs == Repairs(reversed=Count(1, "qid s13-d21_1"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tacos(fps=0), "video s13-d21.avi: expected fps above 0, got 0"),
        (tacos(fps=math.nan), "video s13-d21.avi: fps: Input should be a finite number"),
        (tacos(sentences=["one"]), "video s13-d21.avi: expected as many .*, got 2 timestamps and 1 sentences"),
        (tacos(timestamps=[[1, 2], [3]]), "video s13-d21.avi: timestamps.1"),
        (tacos(num_frames=None), "video s13-d21.avi: num_frames: Input should be a valid number"),
        ({"a.avi": {"timestamps": []}}, "video a.avi: sentences: Field required"),
        ({"a.avi": 3}, "video a.avi: the whole"),
        (tacos(num_frames=0), "qid s13-d21_0: duration is 0.0"),
        (tacos(sentences=["one", ""]), "qid s13-d21_1: query is empty"),
        ({}, "no annotations in it"),
        ([], "no annotations in it"),
        ([1], "expected an object of videos .* or a list of objects"),
        ("text", "expected an object of videos .* or a list of objects"),
    ],
)
def test_json_files_that_cannot_be_used(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"test\.json[,:] {message}"):
        read_annotations(write(tmp_path / "test.json", json.dumps(content)))


def test_a_file_that_is_not_json(tmp_path):
    with pytest.raises(InputError, match=r"test\.json, line 2: not JSON"):
        read_annotations(write(tmp_path / "test.json", '{\n"a": }'))


# --- repairs ---------------------------------------------------------------------------------------------------------


def test_repairs_add_up():
    first = Repairs(reversed=Count(2, "qid 3"), longer=Count(1, "video v"))
    second = Repairs(reversed=Count(1, "qid 1"), shorter=Count(5, "video w"))
    total = Repairs() + first + second
    assert total == Repairs(reversed=Count(3, "qid 3"), longer=Count(1, "video v"), shorter=Count(5, "video w"))
    assert total.lines() == [
        "windows that ended before they began: 3, swapped (first: qid 3)",
        "videos with features beyond their annotated duration: 1, cut to it (first: video v)",
        "videos with features that end a little early: 5, windows cut to what they cover for training (first: video w)",
    ]
    assert Repairs().lines() == []


def test_every_repair_has_its_sentence():
    every = Repairs(**{f.name: Count(i, f.name) for i, f in enumerate(fields(Repairs), 1)})
    assert [line.split("first: ")[1] for line in every.lines()] == [f"{f.name})" for f in fields(Repairs)]


@pytest.mark.parametrize(
    ("windows", "mended", "repairs"),  # 20 s in 10 clips of 2 s
    [
        ([[4, 8]], [(4, 8)], {}),
        ([[0, 20]], [(0, 20)], {}),
        ([[8, 4]], [(4, 8)], {"reversed": 1}),
        ([[-3, 4]], [(0, 4)], {"outside": 1}),
        ([[16, 99], [-1, 2]], [(0, 2), (16, 20)], {"outside": 2}),
        ([[5, 6]], [(4.5, 6.5)], {"empty": 1}),
        ([[30, 40]], [(18, 20)], {"outside": 1, "empty": 1}),
        ([[30, 40], [50, 60]], [(18, 20)], {"outside": 2, "empty": 1, "overlapping": 1}),
        ([[2, 6], [6, 8]], [(2, 6), (6, 8)], {}),  # they only touch
        ([[4, 8], [2, 6], [7, 12], [14, 16]], [(2, 12), (14, 16)], {"overlapping": 2}),
        ([[2, 12], [4, 6]], [(2, 12)], {"overlapping": 1}),
        ([[2, 4], [2, 4]], [(2, 4)], {"overlapping": 1}),
    ],
)
def test_windows_are_mended_and_counted(windows, mended, repairs):
    found = mend_windows(windows, duration_s=20, covered_s=20, clip_s=2, source="qid 7")
    assert found == (mended, Repairs(**{name: Count(number, "qid 7") for name, number in repairs.items()}))


def test_windows_are_cut_to_what_the_clips_cover():
    """Of 19 s only 8 clips are there: what lies after 16 s is not a fault of the windows."""
    found = mend_windows([[14, 19], [2, 3]], duration_s=19, covered_s=16, clip_s=2, source="q")
    assert found == ([(1.5, 3.5), (14, 16)], Repairs(empty=Count(1, "q")))


seconds = st.floats(-50, 250, allow_nan=False)


@given(
    st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6),
    st.integers(1, 80),
    st.sampled_from([0.5, 1, 2, 8 / 3]),
)
def test_mended_windows_can_be_trained_on(windows, clips, clip_s):
    covered_s = clips * clip_s
    duration_s = covered_s - clip_s / 2
    mended, repairs = mend_windows(windows, duration_s=duration_s, covered_s=covered_s, clip_s=clip_s, source="q")
    assert mended == sorted(mended)
    assert 1 <= len(mended) == len(windows) - repairs.overlapping.number
    for start, end in mended:
        assert 0 <= start < end <= covered_s + 1e-9
        assert end - start >= clip_s - 1e-9
    if not repairs.empty.number:  # all are wide already: there is nothing left to mend
        found = mend_windows(mended, duration_s=duration_s, covered_s=covered_s, clip_s=clip_s, source="q")
        assert found == (mended, Repairs())


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=6))
def test_the_union_of_windows_is_preserved(windows):
    """Without widening: a time inside the video is in a mended window if and only if it is in a given one."""
    mended, _ = mend_windows(windows, duration_s=150, covered_s=150, clip_s=1e-12, source="q")
    edges = sorted({0, 150} | {t for window in windows for t in window if 0 < t < 150})
    for t in ((a + b) / 2 for a, b in pairwise(edges) if b - a > 1e-6):
        assert any(start < t < end for start, end in mended) == any(min(w) < t < max(w) for w in windows)


def test_clips_of_a_duration():
    assert [clips_of(*pair) for pair in ((150, 2), (149.9, 2), (148, 2), (0.3, 0.1), (0.1, 2), (31, 1))] == [
        75, 75, 74, 3, 1, 31,
    ]  # fmt: skip
