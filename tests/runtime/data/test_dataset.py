"""Samples and splits: what is trained and measured on, what is mended and counted, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from feature_files import CLIP_S, SPEC, K, V, X, text_of, video_of, write_text, write_video
from safetensors.numpy import save_file

from sdst_runtime.contracts import VideoFeatures
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, batches_by_length, inspect_split, load_split, make_sample, pad_inputs
from sdst_runtime.data.features import read_video_features, text_feature_path, video_feature_path
from sdst_runtime.data.lazy_arrays import StoredArray
from sdst_runtime.data.packing import pack_features
from sdst_runtime.data.repairs import Count, Repairs
from sdst_runtime.data.stores import released_spec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import pack_header, write_jsonl


def make_row(**changes) -> dict:
    return {"qid": 7, "query": "one", "vid": "v", "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes


def sample_of(clips: int = 10, **changes) -> Sample:
    return make_sample(make_row(**changes), video_of("v", clips), text_of("one"), CLIP_S)


def config_of(root: Path, **changes) -> DataConfig:
    return dataclasses.replace(DataConfig(str(root), "train.jsonl", "val.jsonl", ""), **changes)


@pytest.fixture
def data(tmp_path) -> DataConfig:
    """Three queries on two videos for training, one for validation."""
    train = [
        make_row(qid=1),
        make_row(qid=2, query="two words", relevant_windows=[[0, 20]], relevant_clip_ids=[2], saliency_scores=[[4, 2]]),
        make_row(qid=3, vid="w", relevant_windows=[[2, 4], [10, 18]]),
    ]
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "val.jsonl", [make_row(qid=9)])
    for vid in ("v", "w"):
        write_video(tmp_path / "features", vid)
    for query in ("one", "two words"):
        write_text(tmp_path / "features", query)
    return config_of(tmp_path)


def annotate(data: DataConfig, *rows: dict) -> None:
    write_jsonl(Path(data.root) / "train.jsonl", list(rows))


# --- a sample --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "expected"),  # of 10 clips of 2 s, fractions
    [
        ([[4, 8]], [[0.2, 0.4]]),
        ([[8, 4]], [[0.2, 0.4]]),  # reversed
        ([[-3, 4]], [[0, 0.2]]),  # before the start
        ([[16, 99]], [[0.8, 1]]),  # beyond the end
        ([[5, 6]], [[0.225, 0.325]]),  # half a clip: widened about its centre
        ([[7, 7]], [[0.3, 0.4]]),  # nothing at all
        ([[0, 0.5]], [[0, 0.1]]),  # narrow at the start: moved inside
        ([[19.5, 20]], [[0.9, 1]]),  # narrow at the end
        ([[30, 40]], [[0.9, 1]]),  # wholly outside: the last clip
        ([[12, 10], [0, 2]], [[0, 0.1], [0.5, 0.6]]),
        ([[4, 8], [6, 10]], [[0.2, 0.5]]),  # they overlap
        ([[4, 8], [8, 10]], [[0.2, 0.4], [0.4, 0.5]]),  # they touch
    ],
)
def test_windows_are_mended(windows, expected):
    sample = sample_of(relevant_windows=windows)
    np.testing.assert_allclose(sample.windows, expected, atol=1e-6)
    assert sample.windows.dtype == np.float32
    assert sample.row["relevant_windows"] == windows


def test_windows_end_with_the_video_and_not_with_the_last_clip():
    """A video of 19 s in 10 clips: fractions of the valid clips, cut at 19 s."""
    np.testing.assert_allclose(sample_of(duration=19.0, relevant_windows=[[14, 30]]).windows, [[0.7, 0.95]], atol=1e-6)
    np.testing.assert_allclose(sample_of(1, duration=1.5, relevant_windows=[[0.2, 0.4]]).windows, [[0, 1]], atol=1e-6)


def test_saliency_is_the_mean_of_the_annotators():
    sample = sample_of(relevant_clip_ids=[2, 3], saliency_scores=[[4, 2, 3], [1, 1, 2]])
    np.testing.assert_allclose(sample.saliency, [0, 0, 3, 4 / 3, 0, 0, 0, 0, 0, 0], rtol=1e-6)
    assert sample.saliency.dtype == np.float32


def test_saliency_of_clips_that_were_not_extracted_is_left_out():
    sample = sample_of(relevant_clip_ids=[-1, 2, 10], saliency_scores=[[4, 4], [2, 2], [4, 4]])
    np.testing.assert_allclose(sample.saliency, [0, 0, 2, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("windows", "clips"),
    [
        ([[4, 8]], [2, 3]),
        ([[8, 4]], [2, 3]),  # reversed, as the windows
        ([[0, 2], [15, 20]], [0, 7, 8, 9]),  # a clip counts by its middle
        ([[6.2, 6.8]], [3]),  # no middle inside: the clip at the window's centre
        ([[5.9, 6.1]], [3]),
        ([[25, 30]], [9]),
    ],
)
def test_unscored_saliency_is_spread_over_the_windows(windows, clips):
    saliency = sample_of(relevant_windows=windows).saliency
    assert np.flatnonzero(saliency).tolist() == clips
    assert set(saliency[clips]) == {1.0}


def test_a_query_without_windows():
    row = make_row()
    del row["relevant_windows"]
    sample = make_sample(row, video_of("v"), text_of("one"), CLIP_S)
    assert (sample.windows.shape, sample.windows.dtype) == ((0, 2), np.float32)
    assert sample.saliency.tolist() == [0.0] * 10


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_pad_inputs_keeps_values():
    videos, texts = [video_of("a", 2).astype(np.float16), video_of("b", 4)], [text_of("one"), text_of("a b c")]
    padded = pad_inputs(videos, texts)
    np.testing.assert_array_equal(padded["video"][0, :2], videos[0])
    np.testing.assert_array_equal(padded["video"][1], videos[1])
    np.testing.assert_array_equal(padded["text"][0, :, :4], texts[0])
    np.testing.assert_array_equal(padded["text"][1], texts[1])
    assert not padded["video"][0, 2:].any()
    assert not padded["text"][0, :, 4:].any()
    assert padded["video_mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert padded["text_mask"].tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert (padded["video"].dtype, padded["text"].dtype) == (np.float32, np.float32)


def test_pad_inputs_takes_the_last_layers():
    padded = pad_inputs([video_of("a", 4)], [text_of("one")], layers=2)
    np.testing.assert_array_equal(padded["video"][0], video_of("a", 4)[:, 1:])
    np.testing.assert_array_equal(padded["text"][0], text_of("one")[1:])
    for layers in (0, 4):
        with pytest.raises(InputError, match=f"layers: expected 1 to 3, as many as the features hold, got {layers}"):
            pad_inputs([video_of("a", 4)], [text_of("one")], layers=layers)


@pytest.mark.parametrize("layers", [None, 1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_pad_inputs_of_stored_features(data, packed, layers):
    samples = load_split(as_packed(data) if packed else data, "train").samples
    assert all(isinstance(array, StoredArray) for s in samples for array in (s.video, s.text))
    padded = pad_inputs([s.video for s in samples], [s.text for s in samples], layers)
    arrays = [video_of(s.row["vid"]) for s in samples], [text_of(s.row["query"]) for s in samples]
    for name, values in pad_inputs(*arrays, layers).items():
        np.testing.assert_array_equal(padded[name], values)


def as_packed(data: DataConfig) -> DataConfig:
    pack_features(data.feature_directory(), Path(data.root) / "packed", per_shard=1)
    return dataclasses.replace(data, features="packed")


def test_batches_by_length():
    samples = [sample_of(clips, qid=clips) for clips in (7, 10, 3, 5, 9)]
    found = [[s.row["qid"] for s in batch] for batch in batches_by_length(samples, 2)]
    assert found == [[3, 5], [7, 9], [10]]


# --- a split ---------------------------------------------------------------------------------------------------------


def test_samples_are_read_as_written(data):
    told: list[tuple[int, int]] = []
    split = load_split(data, "train", needed=SPEC, on_done=lambda done, total: told.append((done, total)))
    assert (split.spec, split.repairs) == (SPEC, Repairs())
    assert [s.row["qid"] for s in split.samples] == [1, 2, 3]
    for sample in split.samples:
        np.testing.assert_array_equal(sample.video, video_of(sample.row["vid"]))
        np.testing.assert_array_equal(sample.text, text_of(sample.row["query"]))
    first, second, third = split.samples
    assert second.video is first.video
    np.testing.assert_allclose(second.windows, [[0, 1]])
    np.testing.assert_allclose(third.windows, [[0.1, 0.2], [0.5, 0.9]], atol=1e-6)
    assert second.saliency.tolist() == [0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [s.row["qid"] for s in load_split(data, "val").samples] == [9]


def test_features_are_not_read_before_they_are_used(data):
    """A file may become unreadable after its header was looked at; only its use says so."""
    samples = load_split(data, "train").samples
    video_feature_path(data.feature_directory(), "w").unlink()
    np.testing.assert_array_equal(samples[0].video, video_of("v"))
    with pytest.raises(InputError, match=r"w\.safetensors: not a readable feature file"):
        np.asarray(samples[2].video)


def test_charades_with_released_features(tmp_path):
    """Another form of annotations and another layout: the same samples come out."""
    (tmp_path / "sta.txt").write_text("v 8.0 4.0##one\nw 3.0 9.5##two words\n")
    (tmp_path / "lengths.csv").write_text("id,length\nv,10\nw,9.2\n")
    for folder, key, arrays in (
        ("vid_feats", "visual_feats_interm_pooled", {vid: video_of(vid) for vid in ("v", "w")}),
        ("txt_feats", "text_feats", {"0": text_of("one"), "1": text_of("two words")}),
    ):
        (tmp_path / folder).mkdir()
        for name, array in arrays.items():
            np.savez(tmp_path / folder / f"{name}.npz", **{key: array})
    data = DataConfig(str(tmp_path), "sta.txt", "", "", ("lengths.csv",), ".", clip_s=1.0, metrics="moments")
    split = load_split(data, "train", needed=released_spec(2, 1.0, V, X))
    for sample, vid, query, window in zip(split.samples, "vw", ("one", "two words"), ([0.4, 0.8], [0.3, 0.92])):
        np.testing.assert_array_equal(sample.video, video_of(vid))
        np.testing.assert_array_equal(sample.text, text_of(query))
        np.testing.assert_allclose(sample.windows, [window], atol=1e-6)
    assert split.repairs == Repairs(reversed=Count(1, "qid 0"), outside=Count(1, "qid 1"))


@pytest.mark.parametrize(
    ("field", "value"), [("image_size", 57), ("backbone_sha256", "f" * 64), ("mean", (0.4, 0.5, 0.5)), ("layers", 4)]
)
def test_features_of_another_contract(data, field, value):
    with pytest.raises(ContractError, match=f"disagree on {field}") as caught:
        load_split(data, "train", needed=dataclasses.replace(SPEC, **{field: value}))
    for part in (repr(value), repr(getattr(SPEC, field)), str(data.feature_directory()), "the model"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_layers_than_needed_are_welcome(data):
    assert len(load_split(data, "train", needed=dataclasses.replace(SPEC, layers=1)).samples) == 3


def test_clips_of_another_length(data):
    message = r"data.clip_s is 1.0, the features in .*/features were made with 2.0 s a clip; set data.clip_s to 2.0"
    with pytest.raises(ContractError, match=message):
        load_split(dataclasses.replace(data, clip_s=1.0), "train")


@pytest.mark.parametrize(
    ("duration", "clips", "repairs"),
    [
        (20.0, 10, Repairs()),
        (18.1, 10, Repairs()),
        (18.0, 9, Repairs(longer=Count(1, "video v"))),
        (5.0, 3, Repairs(longer=Count(1, "video v"))),
        (20.2, 10, Repairs()),  # the last 0.2 s end before a frame of theirs is taken
        (20.3, 10, Repairs(shorter=Count(1, "video v"))),
        (28.0, 10, Repairs(shorter=Count(1, "video v"))),
    ],
)
def test_features_longer_and_a_little_shorter_than_the_video(data, duration, clips, repairs):
    """Counted once a video, not once a query."""
    annotate(data, *[make_row(qid=i, duration=duration, relevant_windows=[[2, 5]]) for i in (1, 2)])
    split = load_split(data, "train")
    assert split.repairs == repairs
    for sample in split.samples:
        assert (sample.video.shape, sample.saliency.shape) == ((clips, K, V), (clips,))
        np.testing.assert_array_equal(sample.video, video_of("v")[:clips])
        np.testing.assert_allclose(sample.windows, [[1 / clips, 2.5 / clips]], atol=1e-6)


def test_windows_are_cut_where_features_end_early(data):
    annotate(
        data,
        make_row(duration=24.0, relevant_windows=[[16, 24]], relevant_clip_ids=[9, 11], saliency_scores=[[1], [2]]),
    )
    split = load_split(data, "train")
    (sample,) = split.samples
    np.testing.assert_allclose(sample.windows, [[0.8, 1]])
    assert sample.saliency.tolist() == [0] * 9 + [1]
    assert sample.row["relevant_windows"] == [[16, 24]]  # what is measured against
    assert split.repairs == Repairs(shorter=Count(1, "video v"), clips_outside=Count(1, "qid 7"))


def test_features_that_end_too_early(data):
    annotate(data, make_row(duration=28.1))
    with pytest.raises(InputError, match=r"video v: its features have 10 clips, its annotated 28.1 s are 15; extract"):
        load_split(data, "train")


def test_repairs_are_counted_over_the_split(data):
    annotate(
        data,
        make_row(qid=1, relevant_windows=[[8, 4], [2, 5]]),
        make_row(qid=2, relevant_windows=[[19, 22], [4, 4.5]]),
        make_row(qid=3, relevant_windows=[[12, 8]], relevant_clip_ids=[10, 4, -1], saliency_scores=[[1], [2], [3]]),
    )
    split = load_split(data, "train")
    assert split.repairs == Repairs(
        reversed=Count(2, "qid 1"),
        overlapping=Count(1, "qid 1"),
        outside=Count(1, "qid 2"),
        empty=Count(2, "qid 2"),
        clips_outside=Count(2, "qid 3"),
    )
    assert [s.row["relevant_windows"] for s in split.samples] == [[[4, 8], [2, 5]], [[19, 22], [4, 4.5]], [[8, 12]]]


def test_the_first_problems_and_their_number(data):
    annotate(data, make_row(qid=1), make_row(qid=2, duration=0), *[make_row(qid=i, vid=f"x{i}") for i in (3, 4, 5)])
    with pytest.raises(InputError) as caught:
        load_split(data, "train")
    message = str(caught.value)
    assert message.startswith(f"{data.root}/train.jsonl: 4 problems: {data.root}/train.jsonl, qid 2: duration is 0.0")
    assert message.endswith("; see all with  sdst data check")
    assert [f"x{i}.safetensors: no such feature file" in message for i in (3, 4, 5)] == [True, True, False]
    assert "\n" not in message
    annotate(data, *[make_row(qid=i, vid="x") for i in range(3)])
    with pytest.raises(InputError, match=r"train.jsonl: 1 problem: .*x\.safetensors: no such"):  # of all three queries
        load_split(data, "train")


def test_a_split_that_is_not_there(data):
    with pytest.raises(InputError, match=r"this data set has no test split: set data\.test"):
        load_split(data, "test")
    with pytest.raises(InputError, match=r"cannot read .*/gone\.jsonl"):
        load_split(dataclasses.replace(data, val="gone.jsonl"), "val")
    with pytest.raises(InputError, match="nowhere: no features there"):
        load_split(dataclasses.replace(data, features="nowhere"), "val")


def test_a_split_without_windows(data):
    annotate(data, make_row(relevant_windows=[]))
    (sample,) = load_split(data, "train", labelled=False).samples
    assert (sample.windows.shape, sample.saliency.any()) == ((0, 2), np.False_)
    with pytest.raises(InputError, match="qid 7: no relevant window"):
        load_split(data, "train")


# --- looking at a split ----------------------------------------------------------------------------------------------


def test_inspection(data):
    found = inspect_split(data, "train")
    assert dataclasses.asdict(found) == {
        "problems": [], "repairs": dataclasses.asdict(Repairs()), "queries": 3, "videos": 2, "clips": (10, 10, 10),
        "tokens": (4, 4, 5), "layers": K, "video_width": V, "text_width": X, "windows": 4, "most_windows": 2,
            "absent": 0,
    }  # fmt: skip


def test_inspection_tells_every_problem(data):
    rows = [make_row(qid=i, vid=f"x{i}", query=f"new {i}") for i in range(5)]
    annotate(
        data, *rows, make_row(qid=8, relevant_windows=[]), make_row(qid=9), make_row(qid=9), make_row(qid=10, vid="x0")
    )
    found = inspect_split(data, "train")
    features = data.feature_directory()
    expected = [
        f"{data.root}/train.jsonl, qid 8: no relevant window",
        f"{data.root}/train.jsonl, qid 9: occurs more than once",
        *[str(path) for row in rows for path in paths_of(features, row)],
    ]
    assert len(found.problems) == len(expected) == 12
    for problem, start in zip(found.problems, expected, strict=True):
        assert problem.startswith(start)
    assert (found.queries, found.windows) == (1, 1)  # qid 9


def paths_of(features: Path, row: dict) -> tuple[Path, Path]:
    return video_feature_path(features, row["vid"]), text_feature_path(features, row["query"])


def test_inspection_of_nothing(data):
    (problem,) = inspect_split(data, "test").problems
    assert problem.startswith("this data set has no test split")
    (problem,) = inspect_split(data, "train", needed=dataclasses.replace(SPEC, layers=9)).problems
    assert "disagree on layers" in problem
    annotate(data, make_row(vid="x"))
    found = inspect_split(data, "train")
    assert (len(found.problems), found.queries, found.clips) == (1, 0, (0, 0, 0))


# --- feature files ---------------------------------------------------------------------------------------------------


def test_feature_files_that_cannot_be_used(data):
    path = video_feature_path(data.feature_directory(), "v")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"v\.safetensors: not a readable feature file"):
        read_video_features(path)
    zeros = np.zeros((10, K, V), np.float32)
    save_file({"features": zeros}, path)
    with pytest.raises(InputError, match="metadata lacks spec, duration_s"):
        read_video_features(path)
    save_file({"features": zeros}, path, pack_header(spec="{}", duration_s="20.0"))
    with pytest.raises(ContractError, match="feature contract does not parse: backbone"):
        read_video_features(path)
    header = pack_header(spec=SPEC.to_json(), duration_s="20.0")
    save_file({"features": zeros[..., :-1].copy()}, path, header)
    with pytest.raises(InputError, match=r"v\.safetensors: video features: expected shape"):
        read_video_features(path)
    zeros[3, 1, 2] = np.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        VideoFeatures(zeros, 20.0, SPEC)
    save_file({"features": zeros}, path, header)
    with pytest.raises(InputError, match=r"v\.safetensors: .*NaN or infinity"):
        read_video_features(path)
    path.unlink()
    with pytest.raises(InputError, match=r"v\.safetensors: no such feature file"):
        read_video_features(path)
