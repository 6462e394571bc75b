"""What a Grounder takes as a video, encoded videos in files, and how results show themselves."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sdst_runtime import EncodedVideo, Grounder, Grounding, Moment, SdstError, VideoFeatures
from sdst_runtime.errors import ContractError, DependencyError, InputError
from sdst_runtime.files import pack_header

QUERIES = ["a red circle moves to the left", "a ring grows"]


@pytest.fixture(scope="module")
def grounder(exported) -> Grounder:
    return Grounder(exported.directory, threads=1)


@pytest.fixture(scope="module")
def encoded(grounder, video) -> EncodedVideo:
    return grounder.encode(video)


def assert_same(one: Grounding, other: Grounding, tolerance: float = 0) -> None:
    assert (one.query, one.clip_s) == (other.query, other.clip_s)
    assert np.abs(one.saliency - other.saliency).max() <= tolerance
    for mine, theirs in zip(one, other, strict=True):
        assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), abs=tolerance)


# ---------------------------------------------------------------- what is taken


def test_a_path_is_grounded_in_one_call(exported, encoded, video):
    with Grounder(str(exported.directory), threads=1) as grounder:
        assert_same(grounder.ground(str(video), QUERIES[0]), grounder.ground(encoded, QUERIES[0]), 1e-5)
        both = grounder.ground(video, QUERIES)
    assert [answer.query for answer in both] == QUERIES


def test_a_file_object_is_a_video(grounder, encoded, video):
    with video.open("rb") as stream:
        from_file = grounder.encode(stream)
    from_memory = grounder.encode(io.BytesIO(video.read_bytes()))
    for other in (from_file, from_memory):
        assert np.array_equal(other.features, encoded.features)
        assert other.duration_s == encoded.duration_s


def lossless(path: Path, frames: np.ndarray, rate: int) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_frames_with_timestamps_equal_the_file_of_them(grounder, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (45, 36, 48, 3), dtype=np.uint8)
    of_file = grounder.encode(lossless(tmp_path / "frames.mkv", frames, 10))
    for start_s in (0.0, 1e6):
        of_frames = grounder.encode(frames, start_s + np.arange(45) / 10)
        assert of_frames.duration_s == pytest.approx(of_file.duration_s, abs=2e-3) == 4.5
        assert np.abs(of_frames.features - of_file.features).max() < 1e-4
    shuffled = grounder.encode(frames[::-1], np.arange(45) / 10)
    assert np.abs(shuffled.features - of_file.features).max() > 1e-2


FRAMES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([1, 2],), "expected a path, a binary file object, or frames .* got list"),
        ((None,), "got NoneType"),
        ((FRAMES,), "timestamps_s: expected the time of each frame in seconds, got none"),
        ((FRAMES, [0, 1, 2]), r"expected one for each of two frames or more, got \[3\] for 4"),
        ((FRAMES, [0, 1, 1, 2]), "finite seconds that rise"),
        ((FRAMES, [0, 1, 2, float("nan")]), "finite seconds that rise"),
        ((FRAMES, [0, 1, 2, 1e9]), "rise by at most 3600"),
        ((FRAMES, ["a"] * 4), "expected a number of seconds for each frame"),
        ((FRAMES[:1], [0]), "two frames or more"),
        ((FRAMES.astype(np.float32), range(4)), r"expected uint8 \[N, H, W, 3\] in RGB, got float32"),
        ((FRAMES[0], range(4)), r"got uint8 \[8, 8, 3\]"),
        ((io.StringIO("text"),), "open it with 'rb'"),
        ((io.BytesIO(),), "the file object: holds no bytes"),
        ((io.BytesIO(b"not a video" * 99),), "the file object: not a video that can be read|the file object: .*text"),
        (("none.mp4",), "none.mp4: no such video file"),
        (("none.mp4", [0.0]), r"expected with frames"),
    ],
)
def test_anything_else_is_refused(grounder, given, says):
    with pytest.raises(InputError, match=says):
        grounder.encode(*given)


@pytest.mark.parametrize("queries", [5, None, {"a"}, [5], [None, "a"], b"a ring"])
def test_queries_that_are_no_sentences(grounder, encoded, queries):
    with pytest.raises(SdstError, match="queries: expected"):
        grounder.ground(encoded, queries)


def test_progress_is_told(grounder, video):
    heard = []
    grounder.encode(video, on_progress=lambda done, total: heard.append((done, total)))
    assert (heard[0], heard[-1]) == ((0, 8), (8, 8))


# ---------------------------------------------------------------- files


def test_a_saved_video_answers_the_same(grounder, encoded, tmp_path):
    video = dataclasses.replace(encoded, warnings=("one", "two\nlines"))
    video.save(tmp_path / "v.safetensors")
    loaded = EncodedVideo.load(tmp_path / "v.safetensors")

    for part in dataclasses.fields(video):
        mine, theirs = getattr(video, part.name), getattr(loaded, part.name)
        if part.name in ("features", "projected"):
            assert np.array_equal(np.asarray(mine), np.asarray(theirs))
        else:
            assert mine == theirs, part.name
    for query in QUERIES:
        assert_same(grounder.ground(loaded, query), grounder.ground(encoded, query))


def test_a_saved_video_of_windows(exported, tmp_path):
    with Grounder(exported.directory, threads=1, window_clips=24) as windowed:
        features = np.random.default_rng(1).standard_normal((70, 2, 12), np.float32)
        video = windowed.project(VideoFeatures(features, 69.5, windowed.spec))
        video.save(tmp_path / "v.safetensors")
        loaded = EncodedVideo.load(tmp_path / "v.safetensors")
        assert len(loaded.windows) > 2
        assert_same(windowed.ground(loaded, QUERIES[0]), windowed.ground(video, QUERIES[0]))


def test_another_bundle_refuses_a_saved_video(grounder, encoded, tmp_path):
    encoded.save(tmp_path / "v.safetensors")
    with pytest.raises(ContractError, match="disagree on clip_s"):
        EncodedVideo.load(tmp_path / "v.safetensors", dataclasses.replace(encoded.spec, clip_s=2.0))
    with pytest.raises(ContractError, match="projection_sha256"):
        EncodedVideo.load(tmp_path / "v.safetensors", encoded.spec, "0" * 64)
    dataclasses.replace(encoded, projection_sha256="0" * 64).save(tmp_path / "w.safetensors")
    with pytest.raises(ContractError, match="projection_sha256"):
        grounder.ground(EncodedVideo.load(tmp_path / "w.safetensors"), QUERIES[0])


@pytest.mark.parametrize("place", [-1, -400, 9, 200])
def test_a_damaged_file_is_refused(encoded, tmp_path, place):
    path = tmp_path / "v.safetensors"
    encoded.save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(SdstError):
        EncodedVideo.load(path)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(InputError, match="cannot be read"):
        EncodedVideo.load(path)


@pytest.mark.parametrize(
    "windows", ["[]", "[[0, 7]]", "[[0, 9]]", "[[0, 4], [5, 8]]", "[[0]]", "5", "[[true, 8]]", '[["a", 8]]', "[[0, 8"]
)
def test_windows_that_do_not_fit(encoded, tmp_path, windows):
    from sdst_runtime.tensor_files import write_arrays

    stated = {
        "spec": encoded.spec.to_json(), "duration_s": "7.4", "decoder": "", "warnings": "[]",
        "projection_sha256": encoded.projection_sha256,
    }  # fmt: skip
    arrays = {"features": encoded.features, "projected.0": encoded.projected[0]}
    write_arrays(tmp_path / "v.safetensors", arrays, **stated, windows=windows)
    with pytest.raises(InputError, match=r"v\.safetensors"):
        EncodedVideo.load(tmp_path / "v.safetensors")


def test_not_an_encoded_video(encoded, tmp_path):
    from safetensors.numpy import save_file

    save_file({"features": encoded.features}, tmp_path / "v.safetensors", pack_header(spec=encoded.spec.to_json()))
    with pytest.raises(InputError, match="its metadata lacks duration_s"):
        EncodedVideo.load(tmp_path / "v.safetensors")
    with pytest.raises(InputError, match="no such file"):
        EncodedVideo.load(tmp_path / "none.safetensors")


# ---------------------------------------------------------------- kept


def test_kept_by_content_bundle_and_windows(exported, exported_fp16, video, tmp_path):
    shutil.copy(video, tmp_path / "renamed.mp4")

    def encode(bundle: Path, path: Path, **options) -> Grounder:
        with Grounder(bundle, threads=1, cache=tmp_path / "kept", **options) as grounder:
            grounder.encode(path)
        return grounder

    def made() -> int:
        return len(list((tmp_path / "kept").iterdir()))

    assert encode(exported.directory, video).timings.samples.keys() == {"decode", "vision", "projection"}
    assert encode(exported.directory, tmp_path / "renamed.mp4").timings.samples.keys() == set()
    assert made() == 1
    encode(exported.directory, video, window_clips=8)
    assert made() == 2
    assert "vision" in encode(exported_fp16, video).timings.samples
    assert made() == 3
    kept = next((tmp_path / "kept").iterdir())
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged: made again
    encode(exported.directory, video)
    encode(exported.directory, video, window_clips=8)
    encode(exported_fp16, video)
    assert made() == 3
    assert all(EncodedVideo.load(path).duration_s == pytest.approx(7.4) for path in (tmp_path / "kept").iterdir())


def test_a_folder_that_cannot_be_written_costs_no_answer(exported, video, tmp_path, monkeypatch):
    with Grounder(exported.directory, threads=1, cache=tmp_path / "kept") as grounder:
        shutil.rmtree(tmp_path / "kept")
        (tmp_path / "kept").write_text("in the way")
        encoded = grounder.encode(video)
    assert len(encoded.features) == 8
    assert "the encoded video was not kept: cannot write" in encoded.warnings[-1]


# ---------------------------------------------------------------- results

ANSWER = Grounding("<b>q</b>", (Moment(1, 2.5, 0.75), Moment(0, 1, 0.25)), np.array([0.5, -0.25], np.float32), 2.0)


def test_results_are_short(encoded):
    assert repr(ANSWER.moments[0]) == "Moment(1.00 to 2.50 s, score 0.750)"
    assert repr(ANSWER) == f"Grounding('<b>q</b>': 2 moments, best {ANSWER.moments[0]!r}; 2 clips of 2 s)"
    assert repr(encoded) == "EncodedVideo(7.40 s: 8 clips of 1 s, 2 layers of 12, float32, by test)"
    assert list(ANSWER) == list(ANSWER.moments)


def test_results_as_dicts_and_html():
    assert json.loads(json.dumps(ANSWER.to_dict())) == {
        "query": "<b>q</b>",
        "unknown_words": [],
        "presence": None,
        "moments": [{"start_s": 1, "end_s": 2.5, "score": 0.75}, {"start_s": 0, "end_s": 1, "score": 0.25}],
        "saliency": [0.5, -0.25],
    }
    page = ANSWER._repr_html_()
    assert "<caption>&lt;b&gt;q&lt;/b&gt;</caption>" in page
    assert "<td>1.00</td><td>2.50</td><td>0.750</td>" in page


def test_results_in_pandas():
    try:
        import pandas as pd
    except ImportError:
        with pytest.raises(DependencyError, match="run  pip install pandas"):
            ANSWER.to_pandas()
        return
    expected = pd.DataFrame({"start_s": [1, 0], "end_s": [2.5, 1], "score": [0.75, 0.25]})
    pd.testing.assert_frame_equal(ANSWER.to_pandas(), expected, check_dtype=False)


def test_results_are_drawn():
    import matplotlib as mpl

    mpl.use("agg")
    axes = ANSWER.plot(top=1)
    assert axes.get_title() == "<b>q</b>"
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 0.5], [3.0, -0.25]]
    assert [patch.get_extents().width > 0 for patch in axes.patches] == [True]
    assert ANSWER.plot(axes) is axes


def test_what_holds_arrays_is_compared_by_identity(encoded):
    assert encoded == encoded
    assert encoded != dataclasses.replace(encoded)
    assert len({encoded, ANSWER, ANSWER}) == 2
