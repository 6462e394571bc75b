"""Vectors of a store and the exact scan over them, on made-up projections."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from sdst_runtime.contracts import EncodedVideo, FeatureSpec, Window
from sdst_runtime.corpus import ranking
from sdst_runtime.corpus.ranking import Ranking, write_ranking
from sdst_runtime.corpus.store import FACTS, FORMAT, Store, StoreFacts, stored_arrays, unit_vectors
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json

K, F = 2, 16
SPEC = FeatureSpec("tiny", "0" * 64, K, "mean", 2, 1.0, 28, "bicubic", (0.5,) * 3, (0.5,) * 3, 12, "bert", 24, 16)
LENGTHS = {"a": (9,), "b": (30, 30), "c": (1,), "d": (200,), "e": (3,)}  # clips of the windows


@pytest.fixture
def store(tmp_path) -> Store:
    """Random projections; the two windows of "b" overlap by ten clips."""
    write_json(tmp_path / FACTS, asdict(StoreFacts(FORMAT, "0", SPEC, "/bundle", "p" * 64, {})))
    made, rng = Store.open(tmp_path), np.random.default_rng(0)
    for vid, lengths in LENGTHS.items():
        starts = [20 * i for i in range(len(lengths))]
        windows = tuple(Window(start, start + n) for start, n in zip(starts, lengths))
        clips = windows[-1].stop
        projected = tuple(rng.standard_normal((n, K, F)).astype(np.float32) * 5 for n in lengths)
        features = np.zeros((clips, K, 12), np.float16)
        encoded = EncodedVideo(features, float(clips), SPEC, windows, projected, "p" * 64, ("cut",), decoder="x")
        path = tmp_path / f"{vid}.mp4"
        made.write(vid, encoded, stored_arrays(encoded, path), f"digest of {vid}", path)
    return made


def sentences(count: int) -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((count, K, F)).astype(np.float32)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


@pytest.mark.parametrize("rows", [1, 40, 100_000])
def test_alignment_is_that_of_the_definition(store, monkeypatch, rows):
    """The largest mean cosine of all clips of all windows, in blocks of any size; int8 moves it by little."""
    monkeypatch.setattr(ranking, "ROWS", rows)
    assert write_ranking(store, store.ids()) == 9 + 60 + 1 + 200 + 3
    found = Ranking.open(store)
    asked = sentences(4)
    got = found.alignment(asked)
    assert [video.vid for video in found.videos] == list(LENGTHS)
    assert got.shape == (4, 5)
    for number, vid in enumerate(LENGTHS):
        stored = store.read(vid)
        clips = np.concatenate(stored.video.projected).astype(np.float64)
        units = clips / np.linalg.norm(clips, axis=-1, keepdims=True)
        exact = np.einsum("nkf,qkf->qnk", units, asked).mean(-1).max(-1)
        assert np.abs(got[:, number] - exact).max() < 0.01
        rounded = np.einsum("nkf,qkf->qnk", stored.vectors / 127, asked).mean(-1).max(-1)
        assert np.abs(got[:, number] - rounded).max() < 1e-5


def test_a_file_holds_what_was_encoded(store, tmp_path):
    stored = store.read("b")
    assert stored.video.windows == (Window(0, 30), Window(20, 50))
    assert [piece.dtype for piece in stored.video.projected] == [np.float16] * 2
    assert (stored.video.duration_s, stored.source, stored.warnings) == (50.0, "digest of b", ("cut",))
    assert stored.path == str(tmp_path / "b.mp4")
    np.testing.assert_allclose(np.linalg.norm(stored.vectors / 127, axis=-1), 1, atol=0.02)


def test_vectors_of_any_length_and_of_none():
    values = np.stack([np.eye(3)[None] * 1e4, np.eye(3)[None] * -1e-3, np.zeros((1, 3, 3))])[:, 0]
    assert unit_vectors(values).tolist() == [
        (np.eye(3, dtype=int) * 127).tolist(), (np.eye(3, dtype=int) * -127).tolist(), [[0] * 3] * 3,
    ]  # fmt: skip


def test_a_new_ranking_takes_the_place_of_the_old(store):
    write_ranking(store, store.ids())
    before = Ranking.open(store)
    write_ranking(store, ["c", "e"])
    assert len(list(store.directory.glob("ranking-*.npy"))) == 1
    assert [video.vid for video in Ranking.open(store).videos] == ["c", "e"]
    assert before.alignment(sentences(1)).shape == (1, 5)  # the file that it has open stays


def test_what_is_damaged_or_missing_is_told(store):
    with pytest.raises(InputError, match=r"has no ranking.json, its indexing did not end; run  sdst corpus index"):
        Ranking.open(store)
    write_ranking(store, store.ids())
    (vectors,) = store.directory.glob("ranking-*.npy")
    with pytest.raises(InputError, match=r"expected Q \(2, 16\), got \(1, 3, 16\)"):
        Ranking.open(store).alignment(np.zeros((1, 3, F), np.float32))
    vectors.write_bytes(vectors.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"cannot be read|expected"):
        Ranking.open(store)
    vectors.unlink()
    with pytest.raises(InputError, match=r"cannot be read .*run  sdst corpus index  again"):
        Ranking.open(store)
    path = store.path("d")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"d.safetensors: its arrays are not those that were written"):
        write_ranking(store, store.ids())
    assert not list(store.directory.glob("ranking-*.npy"))


def test_what_float16_cannot_hold_is_refused(tmp_path):
    projected = (np.full((2, K, F), 7e4, np.float32),)
    encoded = EncodedVideo(np.zeros((2, K, 12), np.float16), 2.0, SPEC, (Window(0, 2),), projected, "p" * 64)
    with pytest.raises(InputError, match=r"x.mp4: its projected features exceed float16"):
        stored_arrays(encoded, tmp_path / "x.mp4")
