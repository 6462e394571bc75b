"""RecentVideos: what sdst_ground keeps of the files that it was asked about, without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine_files import SPEC

from sdst_runtime.contracts import EncodedVideo, Window
from sdst_runtime.errors import InputError
from sdst_runtime.serving.triton.videos import RecentVideos

CLIPS = 10
BYTES = CLIPS * SPEC.layers * SPEC.video_width * 4 + CLIPS * SPEC.layers * 4 * 4


class Encoder:
    """Stands for a Grounder's `encode`; hears which files it was asked for."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, path: Path) -> EncodedVideo:
        self.heard.append(path.name)
        if path.read_bytes() == b"junk":
            raise InputError("not a video")
        features = np.zeros((CLIPS, SPEC.layers, SPEC.video_width), np.float32)
        projected = np.zeros((CLIPS, SPEC.layers, 4), np.float32)
        return EncodedVideo(features, 9.5, SPEC, (Window(0, CLIPS),), (projected,), "")


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    for name in "abc":
        (tmp_path / name).write_text(f"video {name}")
    return {name: tmp_path / name for name in "abc"}


def test_a_file_is_encoded_once(files):
    encode, videos = Encoder(), RecentVideos(2 * BYTES)
    first = videos.get(files["a"], encode)
    assert first.size_bytes == BYTES
    assert videos.get(files["a"], encode) is first
    assert encode.heard == ["a"]


def test_those_not_asked_for_longest_make_room(files):
    encode, videos = Encoder(), RecentVideos(2 * BYTES)
    for name in "abacab":
        videos.get(files[name], encode)
    assert encode.heard == ["a", "b", "c", "b"]


def test_one_larger_than_the_budget_is_answered_and_not_kept(files):
    encode, videos = Encoder(), RecentVideos(BYTES - 1)
    for _ in range(2):
        assert len(videos.get(files["a"], encode).features) == CLIPS
    assert encode.heard == ["a", "a"]


def test_a_replaced_file_is_encoded_again(files):
    encode, videos = Encoder(), RecentVideos(2 * BYTES)
    videos.get(files["a"], encode)
    files["b"].replace(files["a"])
    videos.get(files["a"], encode)
    videos.get(files["a"], encode)
    assert encode.heard == ["a", "a"]


def test_a_file_replaced_while_it_is_read_is_not_kept(files):
    encode, videos = Encoder(), RecentVideos(2 * BYTES)

    def encode_slowly(path: Path) -> EncodedVideo:
        files["b"].replace(path)
        return encode(path)

    videos.get(files["a"], encode_slowly)
    videos.get(files["a"], encode)
    assert encode.heard == ["a", "a"]


def test_a_file_that_cannot_be_encoded(files):
    encode, videos = Encoder(), RecentVideos(2 * BYTES)
    videos.get(files["a"], encode)
    files["a"].write_bytes(b"junk")
    for _ in range(2):
        with pytest.raises(InputError):
            videos.get(files["a"], encode)
    files["a"].unlink()
    with pytest.raises(FileNotFoundError):  # of this encoder; a Grounder says InputError
        videos.get(files["a"], encode)
