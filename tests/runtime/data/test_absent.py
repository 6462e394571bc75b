"""Queries about what is not in the video: which sentences are never drawn, how many are, and always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from feature_files import CLIP_S, text_of, video_of

from sdst_runtime.data.absent import AbsentQueries, with_absent
from sdst_runtime.data.annotations import is_absent, read_annotations, row_faults
from sdst_runtime.data.dataset import Sample, make_sample
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_jsonl

SENTENCES = ("a dog barks", "two men talk", "rain falls down", "she opens some door", "nobody eats here")


def sample_of(qid: int | str, vid: str, query: str, **changes) -> Sample:
    row = {"qid": qid, "query": query, "vid": vid, "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes
    return make_sample(row, video_of(vid), text_of(query), CLIP_S)


def absent_of(qid: int | str, vid: str, query: str) -> Sample:
    return sample_of(qid, vid, query, relevant_windows=[], absent=True)


def world(count: int = 10) -> list[Sample]:
    """Two sentences a video; the first five and the last five are pairs that are too much alike."""
    return [sample_of(i, f"v{i // 2}", f"{SENTENCES[i % 5]} {i}") for i in range(count)]


def pairs(samples: Sequence[Sample], count: int = 300) -> set[tuple[str, str]]:
    """(video, sentence) of many draws."""
    drawn = AbsentQueries(samples).draw(count, np.random.default_rng(0))
    return {(sample.row["vid"], sample.row["query"]) for sample in drawn}


# ---------------------------------------------------------------- what is drawn


def test_a_drawn_query_is_a_video_and_the_sentence_of_another():
    samples = world()
    videos = {sample.row["vid"]: sample.video for sample in samples}
    sentences = {sample.row["query"]: sample for sample in samples}
    for number, drawn in enumerate(AbsentQueries(samples).draw(40, np.random.default_rng(1))):
        origin = sentences[drawn.row["query"]]
        assert origin.row["vid"] != drawn.row["vid"]
        assert drawn.text is origin.text
        np.testing.assert_array_equal(drawn.video, videos[drawn.row["vid"]])
        assert drawn.row == {
            "qid": f"absent {number}", "query": origin.row["query"], "vid": drawn.row["vid"], "duration": 20.0,
            "relevant_windows": [], "absent": True,
        }  # fmt: skip
        assert drawn.windows.shape == (0, 2)
        assert drawn.saliency.shape == (10,)
        assert not drawn.saliency.any()
        assert row_faults([drawn.row]) == {}


def test_never_a_sentence_of_the_same_video():
    samples = [
        sample_of(1, "v", "a dog barks"),
        sample_of(2, "v", "rain falls down"),
        sample_of(3, "w", "two men talk"),
    ]
    assert pairs(samples) == {("v", "two men talk"), ("w", "a dog barks"), ("w", "rain falls down")}


def test_never_an_event_that_the_video_shows():
    """The events decide and not the words: v shows the barking without a sentence about it."""
    samples = [
        sample_of(1, "v", "rain falls down", event="rain", video_events=["rain", "bark"]),
        sample_of(2, "w", "the animal is loud", event="bark", video_events=["bark"]),
        sample_of(3, "x", "rain is falling down", event="rain", video_events=["rain"]),
        sample_of(4, "x", "rain falls", event="snow", video_events=["snow", "rain"]),
    ]
    assert pairs(samples) == {
        ("v", "rain falls"),  # two words of three alike, but said to be another event
        ("w", "rain falls down"), ("w", "rain is falling down"), ("w", "rain falls"),
        ("x", "the animal is loud"),
    }  # fmt: skip


@pytest.mark.parametrize("event", [{}, {"event": ""}, {"event": "bark"}])
def test_elsewhere_never_a_sentence_with_half_of_the_words(event):
    """An event says nothing of a video that does not name what it shows, nor no event of one that does."""
    shown = {"video_events": ["rain"]} if event == {"event": ""} else {}
    samples = [
        sample_of(1, "v", "A dog barks, loudly.", **shown),
        sample_of(2, "w", "the dog barks", **event),  # 2 of 5 different words
        sample_of(3, "w", "a dog barks", **event),  # 3 of 4
        sample_of(4, "w", "Loudly a man", **event),  # 2 of 5
        sample_of(5, "w", "LOUDLY a DOG sings it!", **event),  # 3 of 6
    ]
    assert {query for vid, query in pairs(samples) if vid == "v"} == {"the dog barks", "Loudly a man"}


def test_one_video_has_no_other_sentence():
    samples = [sample_of(i, "v", sentence) for i, sentence in enumerate(SENTENCES)]
    with pytest.raises(InputError, match=r"^negatives: of 100 pairs .* give more videos, or set data.negatives to 0$"):
        AbsentQueries(samples).draw(1, np.random.default_rng(0))
    assert AbsentQueries(samples).draw(0, np.random.default_rng(0)) == []


# ---------------------------------------------------------------- how many


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.5, 10), (1 / 3, 5), (0.9, 90), (0.04, 0), (0.05, 1)])
def test_the_share_is_of_all(share, count):
    samples = world(10)
    assert AbsentQueries(samples).count(share) == count
    everything = with_absent(samples, share)
    assert len(everything) == 10 + count
    assert sum(is_absent(sample.row) for sample in everything) == count


def test_explicit_absent_rows_are_counted_and_never_drawn_from():
    samples = [*world(10), absent_of(20, "v0", "a cow flies"), absent_of(21, "v1", "a cow sings")]
    queries = AbsentQueries(samples)
    assert [queries.count(share) for share in (0.1, 0.5, 1 / 3)] == [0, 8, 3]
    drawn = queries.draw(200, np.random.default_rng(0))
    assert not {sample.row["query"] for sample in drawn} & {"a cow flies", "a cow sings"}
    assert with_absent(samples, 0.5) == samples  # a split that says so itself is left as it is


# ---------------------------------------------------------------- always the same


def test_a_draw_is_a_function_of_its_seed():
    samples = world()
    first, again, other = (
        [(s.row["vid"], s.row["query"]) for s in AbsentQueries(samples).draw(30, np.random.default_rng(seed))]
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    ours, theirs = with_absent(samples, 0.5), with_absent(samples, 0.5)
    assert [sample.row for sample in ours] == [sample.row for sample in theirs]


def test_qids_go_on_where_they_are_numbers():
    numbers = with_absent(world(4), 0.5)
    assert [sample.row["qid"] for sample in numbers] == list(range(8))
    texts = with_absent([sample_of(f"q{i}", f"v{i}", SENTENCES[i]) for i in range(3)], 0.5)
    assert [sample.row["qid"] for sample in texts] == ["q0", "q1", "q2", "absent 0", "absent 1", "absent 2"]
    assert row_faults([sample.row for sample in (*numbers,)]) == row_faults([sample.row for sample in texts]) == {}


# ---------------------------------------------------------------- rows


def test_rows_that_say_so_themselves(tmp_path):
    row = {"qid": 1, "query": "q", "vid": "v", "duration": 9.0}
    write_jsonl(
        tmp_path / "a.jsonl", [row | {"absent": True}, row | {"qid": 2, "absent": True, "relevant_windows": []}]
    )
    assert [is_absent(found) for found in read_annotations(tmp_path / "a.jsonl").rows] == [True, True]
    faults = row_faults(
        [
            row,
            row | {"qid": 2, "absent": False, "relevant_windows": []},
            row | {"qid": 3, "absent": True, "relevant_windows": [[1, 2]]},
            row | {"qid": 4, "absent": "yes"},
            row | {"qid": 5, "absent": True, "event": 3},
            row | {"qid": 6, "absent": True, "video_events": "rain"},
        ]
    )
    assert list(faults) == list(range(6))
    assert 'or say "absent": true' in faults[0]
    assert "qid 3: absent is true, and it has windows or clips" in faults[2]
    for index, name in ((3, "absent"), (4, "event"), (5, "video_events")):
        assert name in faults[index]
