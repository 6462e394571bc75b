"""Feature folders in their three layouts: the same arrays out of each, and files that do not fit are named."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import pickle
import re
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from feature_files import SPEC, K, V, X, text_of, video_of, write_text, write_video
from safetensors.numpy import save_file

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.features import read_video_features, text_feature_path, video_feature_path, write_video_features
from sdst_runtime.data.lazy_arrays import StoredArray
from sdst_runtime.data.packing import pack_features
from sdst_runtime.data.stores import FeatureStore, open_features, released_spec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import pack_header

VIDEOS = ["half", *(f"v{i}.0_{i}" for i in range(4))]
QUERIES = ["one", "two words", "zwölf kleine Vögel"]


def row_of(vid: str = "v1.0_1", query: str = "one", qid: int | str = "q-1") -> dict:
    return {"qid": qid, "query": query, "vid": vid}


def write_loose(directory: Path) -> Path:
    for vid in VIDEOS:
        write_video(directory, vid)
    for query in QUERIES:
        write_text(directory, query)
    return directory


def write_packed(directory: Path) -> Path:
    loose = write_loose(directory.with_name(f"{directory.name}-loose"))
    pack_features(loose, directory, per_shard=2)
    return directory


def write_released(directory: Path) -> Path:
    for folder in ("vid_feats", "txt_feats"):
        (directory / folder).mkdir(parents=True)
    for vid in VIDEOS:
        np.savez_compressed(directory / f"vid_feats/{vid}.npz", visual_feats_interm_pooled=video_of(vid))
    for i, query in enumerate(QUERIES):
        np.savez(directory / f"txt_feats/q-{i}.npz", text_feats=text_of(query), other=np.zeros(3))
    return directory


WRITERS = {"loose": write_loose, "packed": write_packed, "released": write_released}
LAYOUTS = pytest.mark.parametrize("layout", WRITERS)


def rows() -> list[dict]:
    return [row_of(vid, query, f"q-{i}") for vid in VIDEOS for i, query in enumerate(QUERIES)]


# --- what comes out --------------------------------------------------------------------------------------------------


@LAYOUTS
def test_arrays_are_those_that_were_written(tmp_path, layout):
    store = open_features(WRITERS[layout](tmp_path / "features"), 2.0)
    for row in rows():
        for stored, array in ((store.video(row), video_of(row["vid"])), (store.text(row), text_of(row["query"]))):
            assert (stored.shape, len(stored)) == (array.shape, len(array))
            assert np.asarray(stored).dtype == array.dtype
            np.testing.assert_array_equal(stored, array)


@LAYOUTS
def test_a_part_is_read_alone(tmp_path, layout):
    row = row_of("v3.0_3", "two words", "q-1")
    store = open_features(WRITERS[layout](tmp_path / "features"), 2.0)
    video, text = video_of("v3.0_3"), text_of("two words")
    np.testing.assert_array_equal(store.video(row)[:, -2:], video[:, -2:])
    np.testing.assert_array_equal(store.video(row)[1:3, 1:, 2:4], video[1:3, 1:, 2:4])
    np.testing.assert_array_equal(store.text(row)[-1:], text[-1:])
    first = store.video(row).first(5)
    assert (first.shape, first.first(99).shape) == ((5, K, V), (5, K, V))
    np.testing.assert_array_equal(first, video[:5])
    np.testing.assert_array_equal(first[-2:, 1:], video[3:5, 1:])


@LAYOUTS
def test_arrays_can_be_assigned_and_converted(tmp_path, layout):
    stored = open_features(WRITERS[layout](tmp_path / "features"), 2.0).video(row_of())
    padded = np.zeros((12, K, V), np.float32)
    padded[: len(stored)] = stored
    np.testing.assert_array_equal(padded[:10], video_of("v1.0_1"))
    assert not padded[10:].any()
    assert np.asarray(stored, np.float32).dtype == np.float32


@LAYOUTS
def test_spec(tmp_path, layout):
    expected = released_spec(K, 1.5, V, X) if layout == "released" else SPEC
    assert open_features(WRITERS[layout](tmp_path / "features"), 1.5).spec == expected


def test_the_contract_of_the_released_features():
    assert released_spec(4, 2.0, 768, 1024) == FeatureSpec(
        "internvideo2-1b-stage2", "not stated by the released files", 4, "adaptive", 4, 2.0, 224, "bicubic",
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 768, "bert-large-uncased", 40, 1024,
    )  # fmt: skip


def total(arrays: list[StoredArray]) -> float:
    return float(sum(np.asarray(array, np.float64).sum() for array in arrays))


@pytest.mark.parametrize(
    ("layout", "start"), [("loose", "fork"), ("packed", "fork"), ("packed", "spawn"), ("released", "fork")]
)
def test_other_processes_read_them_too(tmp_path, layout, start):
    """As the workers of a data loader do, after this process has read from the same files."""
    store = open_features(WRITERS[layout](tmp_path / "features"), 2.0)
    arrays = [array for row in rows() for array in (store.video(row), store.text(row))]
    expected = total(arrays)
    assert total(pickle.loads(pickle.dumps(arrays))) == expected
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        assert list(pool.map(total, [arrays, arrays])) == [expected, expected]


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_no_features(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError) as caught:
            open_features(directory, 2.0)
        for part in (
            f"{directory}: no features there",
            "video/*.safetensors",
            "video-*.safetensors",
            "vid_feats/*.npz",
        ):
            assert part in str(caught.value)


def test_two_layouts_in_one_folder(tmp_path):
    pack_features(write_loose(tmp_path), tmp_path)
    with pytest.raises(InputError, match=r"more than one layout, loose .* and packed .*; keep one of them"):
        open_features(tmp_path, 2.0)


@LAYOUTS
def test_missing_features(tmp_path, layout):
    store = open_features(WRITERS[layout](tmp_path / "features"), 2.0)
    video, text = {
        "loose": ("v9.safetensors: no such feature file; extract", "text/[0-9a-f]{24}.safetensors: no such feature"),
        "packed": (f"{tmp_path}/features: no features of video v9", "no features of the sentence 'new' in its packed"),
        "released": ("vid_feats/v9.npz: no such feature file; fetch", "txt_feats/q-9.npz: no such feature file"),
    }[layout]
    with pytest.raises(InputError, match=video):
        store.video(row_of("v9"))
    with pytest.raises(InputError, match=text):
        store.text(row_of(query="new", qid="q-9"))


# --- contracts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("clip_s", 1.0), ("backbone_sha256", "f" * 64), ("mean", (0.1, 0.2, 0.3))]
)
def test_features_of_two_contracts(tmp_path, field, value):
    other = dataclasses.replace(SPEC, **{field: value})
    first = video_feature_path(write_loose(tmp_path), "half")
    video, text = write_video(tmp_path, "v1.0_1", spec=other), write_text(tmp_path, "one", spec=other)
    store = open_features(tmp_path, 2.0)
    np.testing.assert_array_equal(store.video(row_of("half")), video_of("half"))
    for path, read in ((video, lambda: store.video(row_of())), (text, lambda: store.text(row_of()))):
        with pytest.raises(ContractError, match=f"disagree on {field}") as caught:
            read()
        for part in (str(path), str(first), repr(value), repr(getattr(SPEC, field))):
            assert part in str(caught.value)
    with pytest.raises(ContractError, match=f"disagree on {field}"):
        pack_features(tmp_path, tmp_path / "packed")


def test_the_same_contract_in_other_words(tmp_path):
    """Only the values count, not how the JSON is spaced."""
    write_loose(tmp_path)
    path = video_feature_path(tmp_path, "v2.0_2")
    text = json.dumps(dataclasses.asdict(SPEC), indent=1)
    save_file({"features": video_of("v2.0_2")}, path, pack_header(spec=text, duration_s="9.5"))
    np.testing.assert_array_equal(open_features(tmp_path, 2.0).video(row_of("v2.0_2")), video_of("v2.0_2"))


def test_packed_files_of_two_contracts(tmp_path):
    write_packed(tmp_path / "packed")
    path = tmp_path / "packed/text-00001.safetensors"
    other = dataclasses.replace(SPEC, resize="bilinear")
    save_file({"a": text_of("one")}, path, pack_header(spec=other.to_json(), queries='{"a": "one"}'))
    with pytest.raises(
        ContractError, match=r"disagree on resize: .*text-00001.safetensors has 'bilinear', .*video-00000"
    ):
        open_features(tmp_path / "packed", 2.0)


# --- files that cannot be used ---------------------------------------------------------------------------------------

HEADER = {"spec": SPEC.to_json(), "duration_s": "9.5"}


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"features": np.zeros((4, K, V + 1), np.float32)}, HEADER, r"T K V of T x 3 x 6, got shape \(4, 3, 7\)"),
        ({"features": np.zeros((4, K - 1, V), np.float32)}, HEADER, r"got shape \(4, 2, 6\)"),
        ({"features": np.zeros((0, K, V), np.float32)}, HEADER, r"got shape \(0, 3, 6\)"),
        ({"features": np.zeros((4, V), np.float32)}, HEADER, r"got shape \(4, 6\)"),
        ({"features": np.zeros((4, K, V), np.float64)}, HEADER, "expected features in float16 or float32, got F64"),
        ({"other": np.zeros((4, K, V), np.float32)}, HEADER, "expected a tensor features, got other"),
        ({"features": np.zeros((4, K, V), np.float32)}, {"spec": SPEC.to_json()}, "its metadata lacks duration_s"),
        ({"features": np.zeros((4, K, V), np.float32)}, HEADER | {"spec": "{}"}, "contract does not parse: backbone"),
    ],
)
def test_loose_files_that_do_not_fit(tmp_path, tensors, header, message):
    path = video_feature_path(write_loose(tmp_path), "v3.0_3")
    save_file(tensors, path, pack_header(**header))
    with pytest.raises((InputError, ContractError), match=message) as caught:
        open_features(tmp_path, 2.0).video(row_of("v3.0_3"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_files(tmp_path, keep):
    path = video_feature_path(write_loose(tmp_path), "v3.0_3")
    whole = path.read_bytes()
    stored = open_features(tmp_path, 2.0).video(row_of("v3.0_3"))
    path.write_bytes(whole[:keep])
    store = open_features(tmp_path, 2.0)
    for read in (lambda: store.video(row_of("v3.0_3")), lambda: np.asarray(stored)):
        with pytest.raises(InputError, match="not a readable feature file") as caught:
            read()
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match=re.escape(str(path))):
        np.asarray(stored)


@pytest.mark.parametrize("header", [b"[]", b"{", b'{"features": {}}', b'{"features": 3}', b'{"__metadata__": 3}'])
def test_headers_that_are_none(tmp_path, header):
    path = video_feature_path(write_loose(tmp_path), "v3.0_3")
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InputError, match="not a readable feature file") as caught:
        open_features(tmp_path, 2.0).video(row_of("v3.0_3"))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@LAYOUTS
def test_values_that_are_not_finite(tmp_path, layout, dtype, bad):
    """Named when they are read, and only when they are read."""
    values = np.full((4, K, V), np.finfo(dtype).max, dtype)
    values[2, 0, 5] = bad
    directory = WRITERS[layout](tmp_path / "features")
    if layout == "loose":
        path = video_feature_path(directory, "v0.0_0")
        save_file({"features": values}, path, pack_header(**HEADER))
    elif layout == "packed":
        path = directory / "video-00000.safetensors"
        save_file({"v0.0_0": values}, path, pack_header(spec=SPEC.to_json(), durations_s='{"v0.0_0": 9.5}'))
    else:
        path = directory / "vid_feats/v0.0_0.npz"
        np.savez(path, visual_feats_interm_pooled=values)
    stored = open_features(directory, 2.0).video(row_of("v0.0_0"))
    np.testing.assert_array_equal(stored[:, 1:], values[:, 1:])
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        np.asarray(stored)
    assert str(path) in str(caught.value)


def test_a_file_of_another_sentence(tmp_path):
    write_loose(tmp_path)
    text_feature_path(tmp_path, "one").rename(text_feature_path(tmp_path, "uno"))
    with pytest.raises(InputError, match="holds the sentence 'one', expected 'uno'"):
        open_features(tmp_path, 2.0).text(row_of(query="uno"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "vid_feats/v1.0_1",
            {"visual_feats": np.zeros((4, K, V), np.float32)},
            "with an array visual_feats_interm_pooled",
        ),
        ("vid_feats/v1.0_1", {"visual_feats_interm_pooled": np.zeros((4, K, V + 1), np.float32)}, "of T x 3 x 6"),
        ("vid_feats/v1.0_1", {"visual_feats_interm_pooled": np.zeros((4, K, V))}, "float16 or float32, got float64"),
        ("txt_feats/q-1", {"text_feats": np.zeros((K + 1, 4, X), np.float32)}, "K L X of 3 x L x 5"),
        ("txt_feats/q-0", {"text_feats": np.zeros((4, X), np.float32)}, r"expected an array K L X, got shape \(4, 5\)"),
    ],
)
def test_released_files_that_do_not_fit(tmp_path, name, content, message):
    np.savez(write_released(tmp_path / "f") / f"{name}.npz", **content)
    with pytest.raises(InputError, match=message) as caught:
        read_all(open_features(tmp_path / "f", 2.0))
    assert name in str(caught.value)


def test_released_files_that_are_broken(tmp_path):
    path = write_released(tmp_path) / "vid_feats/v1.0_1.npz"
    store, whole = open_features(tmp_path, 2.0), path.read_bytes()
    stored = store.video(row_of())
    for content in (b"", whole[:100], b"no zip file at all"):
        path.write_bytes(content)
        for read in (lambda: store.video(row_of()), lambda: np.asarray(stored)):
            with pytest.raises(InputError, match=r"v1\.0_1\.npz: not a readable feature file"):
                read()
    path.write_bytes(whole[:80] + b"\0" * 20 + whole[100:])
    with pytest.raises(InputError, match=r"v1\.0_1\.npz: not a readable feature file"):
        np.asarray(stored)


def test_released_videos_without_their_text(tmp_path):
    for path in (write_released(tmp_path) / "txt_feats").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="txt_feats: no released text features there"):
        open_features(tmp_path, 2.0)


def read_all(store: FeatureStore) -> None:
    for row in rows():
        store.video(row)
        store.text(row)


# --- packing ---------------------------------------------------------------------------------------------------------


def test_shards(tmp_path):
    told: list[tuple[int, int]] = []
    pack_features(write_loose(tmp_path / "loose"), tmp_path / "a", 2, lambda done, all_: told.append((done, all_)))
    names = [f"text-0000{i}.safetensors" for i in range(2)] + [f"video-0000{i}.safetensors" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert told == [(2, 8), (4, 8), (5, 8), (7, 8), (8, 8)]
    pack_features(tmp_path / "loose", tmp_path / "b", 2)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    pack_features(tmp_path / "loose", tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_packing_again_takes_features_that_were_made_anew(tmp_path):
    loose, out = write_loose(tmp_path / "loose"), tmp_path / "packed"
    pack_features(loose, out)
    before = (out / "video-00000.safetensors").read_bytes()
    path = next((loose / "video").iterdir())
    video = read_video_features(path)
    write_video_features(path, dataclasses.replace(video, features=video.features + 1))
    os.utime(path, ns=(time.time_ns() + 10**9,) * 2)
    pack_features(loose, out)
    assert (out / "video-00000.safetensors").read_bytes() != before


def test_packing_goes_on_where_it_was(tmp_path):
    loose, out = write_loose(tmp_path / "loose"), tmp_path / "packed"
    pack_features(loose, out, 2)
    whole = {path: path.read_bytes() for path in out.iterdir()}
    for path in (*whole, *loose.rglob("*.safetensors")):
        os.utime(path, (1, 1))
    gone, broken = out / "video-00001.safetensors", out / "text-00000.safetensors"
    gone.unlink()
    broken.write_bytes(whole[broken][:-1])
    pack_features(loose, out, 2)
    for path, content in whole.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime == 1) == (path not in (gone, broken))  # the others were left alone
    write_text(loose, "new")
    pack_features(loose, out, 2)
    np.testing.assert_array_equal(open_features(out, 2.0).text(row_of(query="new")), text_of("new"))


def test_packing_what_cannot_be_packed(tmp_path):
    with pytest.raises(InputError, match=r"loose/video: no feature files there; extract"):
        pack_features(tmp_path / "loose", tmp_path / "out")
    loose = write_loose(tmp_path / "loose")
    with pytest.raises(InputError, match="per_shard: expected 1 or more, got 0"):
        pack_features(loose, tmp_path / "out", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        pack_features(loose, tmp_path / "file")
    path = video_feature_path(loose, "v3.0_3")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"v3\.0_3\.safetensors: not a readable feature file"):
        pack_features(loose, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_video_in_two_shards(tmp_path):
    pack_features(write_loose(tmp_path / "loose"), tmp_path / "out", 2)
    pack_features(tmp_path / "loose", tmp_path / "out", 3)
    with pytest.raises(InputError, match=r"both hold v\d.0_\d; pack the features again into an empty folder"):
        open_features(tmp_path / "out", 2.0)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ("[]", "expected an object in its queries, got list"),
        ("{", "its queries are not JSON"),
        ("{}", "the sentence None"),
    ],
)
def test_packed_sentences_that_cannot_be_told(tmp_path, queries, message):
    write_packed(tmp_path / "packed")
    for path in (tmp_path / "packed").glob("text-*"):
        path.unlink()
    path, digest = tmp_path / "packed/text-00000.safetensors", text_feature_path(tmp_path, "one").stem
    save_file({digest: text_of("one")}, path, pack_header(spec=SPEC.to_json(), queries=queries))
    with pytest.raises(InputError, match=message) as caught:
        open_features(tmp_path / "packed", 2.0).text(row_of())
    assert str(path) in str(caught.value)
