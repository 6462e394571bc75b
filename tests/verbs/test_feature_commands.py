"""pack, verify and convert: round trips through all layouts, and every planted fault found and named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from feature_files import CLIP_S, SPEC, K, V, X, text_of, video_of, write_text, write_video
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sdst.cli import main
from sdst_runtime.contracts import VideoFeatures
from sdst_runtime.data.annotations import Query, read_queries
from sdst_runtime.data.features import (
    read_text_features,
    read_video_features,
    text_feature_path,
    video_feature_path,
    write_video_features,
)
from sdst_runtime.data.released import convert_released
from sdst_runtime.data.stores import open_features, released_spec
from sdst_runtime.data.verification import verify_features
from sdst_runtime.errors import InputError
from sdst_runtime.files import pack_header, write_jsonl

VIDEOS = ["half", "v0.0_1", "v1.0_1", "v2"]
QUERIES = ["one", "two words", "zwölf kleine Vögel"]


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    for vid in VIDEOS:
        write_video(tmp_path / "loose", vid)
    for query in QUERIES:
        write_text(tmp_path / "loose", query)
    return tmp_path / "loose"


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    rows = [{"qid": f"q-{i}", "query": query, "vid": VIDEOS[i]} for i, query in enumerate(QUERIES)]
    write_jsonl(tmp_path / "q.jsonl", rows)
    return tmp_path / "q.jsonl"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def problems(directory: Path) -> list[str]:
    return verify_features(directory).problems


# ---- pack and verify


def test_packed_features_are_the_loose_ones_and_both_are_sound(capsys, loose, annotated, tmp_path):
    packed = tmp_path / "packed"
    code, out, _ = run(capsys, "features", "pack", loose, "--out", packed, "--per-shard", 2)
    assert (code, out) == (0, f"{packed}: 2 files of videos, 2 of sentences\n")
    store = open_features(packed, CLIP_S)
    for vid in VIDEOS:
        np.testing.assert_array_equal(store.video({"vid": vid}), video_of(vid))
    for directory in (loose, packed):
        code, out, err = run(capsys, "features", "verify", directory, "--annotations", annotated)
        assert (code, err) == (0, f"next:  sdst train CONFIG --data.features {directory}\n")
        assert out.splitlines() == [
            f"{directory}: 4 videos, 40 clips, 3 sentences are sound",
            f"contract: {SPEC.to_json()}",
            "videos decoded by: a decoder that is not told (4)",
        ]


def plant_nan(loose: Path) -> None:
    path = video_feature_path(loose, "v2")
    features = load_file(path)["features"]
    features[3, 1, 2] = np.nan
    save_file({"features": features}, path, pack_header(spec=SPEC.to_json(), duration_s="20.0"))


def plant_count(loose: Path) -> None:
    write_video(loose, "v2", clips=9)


def plant_contract(loose: Path) -> None:  # in the first file: the contract of most is the one that counts
    write_video(loose, "half", spec=dataclasses.replace(SPEC, backbone_sha256="1" * 64))


def plant_shape(loose: Path) -> None:
    metadata = pack_header(spec=SPEC.to_json(), duration_s="20.0")
    save_file({"features": np.zeros((10, K, V + 1), np.float32)}, video_feature_path(loose, "v2"), metadata)


def plant_type(loose: Path) -> None:
    metadata = pack_header(spec=SPEC.to_json(), duration_s="20.0")
    save_file({"features": np.zeros((10, K, V))}, video_feature_path(loose, "v2"), metadata)


def plant_duration(loose: Path) -> None:
    metadata = pack_header(spec=SPEC.to_json(), duration_s="long")
    save_file({"features": video_of("v2")}, video_feature_path(loose, "v2"), metadata)


def plant_cut(loose: Path) -> None:
    path = video_feature_path(loose, "v2")
    path.write_bytes(path.read_bytes()[:-1])


def plant_sentence(loose: Path) -> None:
    write_text(loose, "one").rename(text_feature_path(loose, "two words"))


def plant_tokens(loose: Path) -> None:
    metadata = pack_header(spec=SPEC.to_json(), query="one")
    save_file({"features": np.zeros((K, 9, X), np.float16)}, text_feature_path(loose, "one"), metadata)


@pytest.mark.parametrize(
    ("plant", "name", "message"),
    [
        (plant_nan, "v2", "contains NaN or infinity; extract it again"),
        (plant_count, "v2", "holds 9 clips, its 20.0 s have 10; extract it again"),
        (plant_contract, "half", "feature contracts disagree on backbone_sha256: "),
        (plant_shape, "v2", "expected features T K V of T x 3 x 6, got shape (10, 3, 7); extract it again"),
        (plant_type, "v2", "expected features in float16 or float32, got F64; extract it again"),
        (plant_duration, "v2", "expected a duration in seconds, got 'long'; extract it again"),
        (plant_cut, "v2", "not a readable feature file"),
    ],
)
def test_a_fault_of_a_video_is_found(capsys, loose, plant, name, message):
    plant(loose)
    (line,) = problems(loose)
    assert line.count(str(video_feature_path(loose, name))) == 1
    assert message in line
    code, out, err = run(capsys, "features", "verify", loose)
    assert (code, out.splitlines()[0]) == (2, line)
    assert "3 videos, 30 clips, 3 sentences are sound" in out
    assert err.startswith(f"error: 1 problem in {loose}, listed on stdout")


@pytest.mark.parametrize(
    ("plant", "query", "message"),
    [
        (plant_sentence, "two words", "holds the sentence 'one', whose digest is another"),
        (plant_tokens, "one", "holds 9 tokens, the contract allows 8"),
    ],
)
def test_a_fault_of_a_sentence_is_found(loose, plant, query, message):
    plant(loose)
    (line,) = problems(loose)
    assert line.startswith(f"{text_feature_path(loose, query)}: {message}")


def test_faults_of_packed_features_are_found(loose, tmp_path):
    packed = tmp_path / "packed"
    assert main(["features", "pack", str(loose), "--out", str(packed)]) == 0
    path = packed / "video-00000.safetensors"
    tensors = load_file(path)
    tensors["v2"] = tensors["v2"][:9]
    tensors["v1.0_1"] = np.full_like(tensors["v1.0_1"], np.inf)
    durations = '{"half": 20.0, "v1.0_1": 20.0, "v2": 20.0}'
    save_file(tensors, path, pack_header(spec=SPEC.to_json(), durations_s=durations))
    assert sorted(problems(packed)) == [
        f"{path}, v0.0_1: expected a duration in seconds, got None; extract it again",
        f"{path}, v1.0_1: contains NaN or infinity; extract it again",
        f"{path}, v2: holds 9 clips, its 20.0 s have 10; extract it again",
    ]


def test_what_annotations_need_is_looked_for(capsys, loose, annotated):
    plant_nan(loose)
    write_jsonl(
        annotated,
        [
            {"qid": 1, "query": "one", "vid": "v2"},
            {"qid": 2, "query": "never said", "vid": "half"},
            {"qid": 3, "query": "one", "vid": "v9"},
            {"qid": 4, "query": "two words", "vid": "v9"},
        ],
    )
    code, out, err = run(capsys, "features", "verify", loose, "--annotations", annotated)
    assert code == 2
    assert out.splitlines()[1:4] == [
        f"{loose}: no sound features of video v2",
        f"{loose}: no sound features of the sentence 'never said'",
        f"{loose}: no sound features of video v9",
    ]
    assert "4 problems" in err


def test_folders_that_cannot_be_verified(loose, tmp_path):
    with pytest.raises(InputError, match="no feature files there; expected video/ and text/"):
        verify_features(tmp_path)
    write_video(loose, "v").rename(loose / "video-00000.safetensors")
    with pytest.raises(InputError, match="loose and packed features side by side"):
        verify_features(loose)
    for path in loose.rglob("*.safetensors"):
        path.write_bytes(b"")
    (loose / "video-00000.safetensors").unlink()
    found = verify_features(loose)
    assert (found.spec, found.videos, len(found.problems)) == (None, 0, 7)


# ---- convert


@pytest.fixture
def released(tmp_path: Path) -> Path:
    for folder in ("vid_feats", "txt_feats"):
        (tmp_path / "released" / folder).mkdir(parents=True)
    for vid in VIDEOS:
        np.savez_compressed(tmp_path / f"released/vid_feats/{vid}.npz", visual_feats_interm_pooled=video_of(vid))
    for i, query in enumerate([*QUERIES, "one"]):
        np.savez(tmp_path / f"released/txt_feats/q-{i}.npz", text_feats=text_of(query))
    return tmp_path / "released"


def test_released_features_become_ours(capsys, released, annotated, tmp_path):
    out = tmp_path / "out"
    arguments = ("features", "convert", released, "--annotations", annotated, "--out", out, "--clip-s", 2.0)
    code, printed, _ = run(capsys, *arguments)
    assert code == 0
    assert printed.splitlines() == [
        f"{out}: 4 videos, 3 sentences",
        "text files of no annotation, left out: 1 (first: qid q-3)",
    ]
    spec = released_spec(K, 2.0, V, X)
    for vid in VIDEOS:
        stored = read_video_features(video_feature_path(out, vid), spec)
        np.testing.assert_array_equal(stored.features, video_of(vid))
        assert stored.features.dtype == video_of(vid).dtype
        assert stored.duration_s == 20.0
    for query in QUERIES:
        stored = read_text_features(text_feature_path(out, query), spec)
        np.testing.assert_array_equal(stored.features, text_of(query))
        assert stored.query == query
    assert verify_features(out, read_queries(annotated)).problems == []

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert run(capsys, *arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_conversions_that_cannot_be(released, loose, tmp_path):
    with pytest.raises(InputError, match="expected the released features, vid_feats"):
        convert_released(loose, [], tmp_path / "out")
    twice = [Query(0, "one", "v"), Query(0, "two words", "w")]
    with pytest.raises(InputError, match="qid 0 has two sentences, 'one' and 'two words': convert files"):
        convert_released(released, twice, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_features_of_two_annotations_of_one_sentence_are_one_file(released, tmp_path):
    queries = [Query("q-0", "one", "v"), Query("q-3", "one", "w"), Query("q-1", "two words", "v")]
    done = convert_released(released, queries, tmp_path / "out")
    assert (done.videos, done.sentences, done.unknown) == (4, 2, ("q-2",))


# ---- sentences of annotations


def test_queries_of_every_form(tmp_path):
    (tmp_path / "c.txt").write_text("AO8RW 0.0 6.9## a person sits.\n\nAO8RX 1.0 2.0##she eats\n")
    assert read_queries(tmp_path / "c.txt") == [Query(0, "a person sits.", "AO8RW"), Query(2, "she eats", "AO8RX")]
    (tmp_path / "t.json").write_text(
        '{"s1.avi": {"timestamps": [[1, 9]], "sentences": ["He peels."], "fps": 10.0, "num_frames": 90}}'
    )
    assert read_queries(tmp_path / "t.json") == [Query("s1_0", "He peels.", "s1")]
    write_jsonl(tmp_path / "q.jsonl", [{"qid": 7, "query": "q", "vid": "v", "more": 1}])
    assert read_queries(tmp_path / "q.jsonl") == [Query(7, "q", "v")]
    (tmp_path / "c.txt").write_text("\n")
    with pytest.raises(InputError, match="no annotations in it"):
        read_queries(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_text("AO8RW 0.0 6.9##\n")
    with pytest.raises(InputError, match="qid 0: query is empty"):
        read_queries(tmp_path / "c.txt")


@pytest.mark.parametrize("clip_s", [0, -1, float("nan")])
def test_convert_refuses_a_clip_length_that_is_none(tmp_path, clip_s):
    with pytest.raises(InputError, match=r"clip_s: expected (at least )?0\.01 .*seconds"):
        convert_released(tmp_path, [], tmp_path / "out", clip_s)


# ---- the decoder: a fact that is told and never compared


def test_which_decoder_made_a_video_goes_with_its_features(tmp_path, capsys):
    loose, packed = tmp_path / "loose", tmp_path / "packed"
    for vid, decoder in (("a", "libavcodec 62"), ("b", "libavcodec 63"), ("old", "")):
        features = VideoFeatures(video_of(vid), 20.0, SPEC, decoder=decoder)
        write_video_features(video_feature_path(loose, vid), features)
    write_text(loose, "one")

    assert read_video_features(video_feature_path(loose, "b"), SPEC).decoder == "libavcodec 63"
    assert read_video_features(video_feature_path(loose, "old"), SPEC).decoder == ""
    assert run(capsys, "features", "pack", loose, "--out", packed)[0] == 0
    for folder in (loose, packed):
        code, out, _ = run(capsys, "features", "verify", folder)
        assert code == 0
        assert "videos decoded by: a decoder that is not told (1), libavcodec 62 (1), libavcodec 63 (1)\n" in out
        row = {"qid": 1, "query": "one", "vid": "b"}
        np.testing.assert_array_equal(np.asarray(open_features(folder, CLIP_S).video(row)), video_of("b"))


def test_a_file_that_tells_no_decoder_is_as_before(tmp_path):
    """The same bytes as before there was such a word."""
    path = write_video(tmp_path, "v2")
    with safe_open(path, "numpy") as stored:
        told = json.loads(stored.metadata()["sdst"])
    assert told == {"spec": SPEC.to_json(), "duration_s": "20.0"}


def test_decoders_of_two_machines_are_no_reason_to_refuse():
    ours, theirs = (VideoFeatures(video_of("a"), 20.0, SPEC, decoder=f"libavcodec {n}") for n in (62, 63))
    ours.spec.require(theirs.spec, have="ours", need="theirs", exact=True)
    assert "decoder" not in ours.spec.to_json()
