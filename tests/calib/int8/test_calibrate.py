"""`sdst calibrate ranges` and `sdst calibrate audit` on a small data set, with videos for the vision model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from parity_world import LENGTHS, changed_bundle, plant, write_data

from sdst.cli import main
from sdst_calib.audit.ranges import read_ranges
from sdst_calib.feeds import QueryFeeds
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import load_split
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.media.clips import read_clips
from sdst_runtime.sessions.base import GROUNDER_MODELS

QUERIES = 4


@pytest.fixture(scope="module")
def data(exported, video, tmp_path_factory) -> Path:
    """The config of a data set of four queries, each about a video of its own."""
    root = tmp_path_factory.mktemp("data")
    config = write_data(root, Bundle.open(exported.directory).manifest.spec, QUERIES)
    (root / "videos").mkdir()
    for number in range(QUERIES):
        shutil.copy(video, root / "videos" / f"v{number}.mp4")
    return config


def run(capsys, *arguments) -> tuple[int, str, list[str]]:
    code = main(["calibrate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, [line for line in captured.err.splitlines() if not line.startswith("next:  ")]


def feeds_of(exported, data: Path) -> QueryFeeds:
    config = json.loads(data.read_text())["data"]
    videos = {f"v{number}": data.parent / "videos" / f"v{number}.mp4" for number in range(QUERIES)}
    return QueryFeeds(Bundle.open(exported.directory), load_split(DataConfig(**config), "val").samples, videos)


def test_the_clip_is_that_of_the_middle_of_the_moment(exported, data):
    feeds = feeds_of(exported, data)
    clips, _ = read_clips(feeds.videos["v0"], feeds.bundle.manifest.spec)
    fed, samples = [inputs["clips"] for inputs in feeds.of("vision")()], feeds.samples
    middles = [int(sum(sample.row["relevant_windows"][0]) / 2) for sample in samples]
    assert len(set(middles)) > 2
    for clip, middle in zip(fed, middles, strict=True):  # the video is shorter than its annotation says
        np.testing.assert_array_equal(clip, clips[[min(middle, len(clips) - 1)]])


def test_ranges_of_all_models_are_written_once(exported, data, tmp_path, capsys):
    command = ("ranges", exported.directory, "--data", data, "--out", tmp_path)
    code, _, said = run(capsys, *command, "--videos", data.parent / "videos")
    assert code == 0
    assert [line.split(": ")[0] for line in said] == [
        str(tmp_path / f"{model}.ranges.json") for model in GROUNDER_MODELS
    ]
    pixels = read_ranges(tmp_path / "vision.ranges.json").tensors["clips"]
    assert pixels.values == QUERIES * 2 * 28 * 28 * 3
    fed = np.concatenate([inputs["clips"] for inputs in feeds_of(exported, data).of("vision")()])
    assert (pixels.min, pixels.max) == (fed.min(), fed.max())
    assert read_ranges(tmp_path / "head.ranges.json").feeds == QUERIES
    assert read_ranges(tmp_path / "projection.ranges.json").tensors["video"].values == sum(LENGTHS) * 2 * 12

    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    code, _, said = run(capsys, *command)
    assert (code, len(said)) == (0, 3)
    assert all(line.endswith("of the same model and data, kept") for line in said)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    code, _, said = run(capsys, *command, "--queries", 2)
    assert not any("kept" in line for line in said)
    assert read_ranges(tmp_path / "head.ranges.json").feeds == 2


def test_another_model_is_measured_anew(exported, data, tmp_path, capsys):
    assert run(capsys, "ranges", exported.directory, "--data", data, "--out", tmp_path)[0] == 0
    other = changed_bundle(Path(exported.directory), tmp_path / "other", lambda graph: plant(graph, "classify", 2.0))
    code, _, said = run(capsys, "ranges", other, "--data", data, "--out", tmp_path)
    assert code == 0
    assert [line.endswith("kept") for line in said] == [True, True, False]  # text, projection, head


def test_an_audit_of_a_sound_bundle_names_nothing(exported, exported_fp16, data, tmp_path, capsys):
    videos = data.parent / "videos"
    code, out, said = run(
        capsys, "audit", exported.directory, exported_fp16, "--data", data, "--out", tmp_path, "--videos", videos
    )
    assert (code, out.strip()) == (0, str(tmp_path / "audit.html"))
    assert said == ["nothing needs to stay float32 beyond what an fp16 bundle keeps"]
    told = json.loads((tmp_path / "audit.json").read_text())
    assert [model["model"] for model in told["models"]] == list(GROUNDER_MODELS)
    assert [model["unmatched"] for model in told["models"]] == [[]] * 4
    assert all(sum(tensor["half"] for tensor in model["tensors"]) > 5 for model in told["models"])
    assert [line for line in (tmp_path / "keep-fp32.txt").read_text().splitlines() if not line.startswith("#")] == [""]


def test_what_cannot_be_calibrated_is_one_line(exported, exported_fp16, data, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    shutil.copy(data.parent / "videos" / "v0.mp4", tmp_path / "one")
    for arguments, words in (
        (("ranges", exported_fp16), "expected an fp32 bundle, got fp16; export the checkpoint in fp32"),
        (("ranges", exported.directory, "--queries", 0), "queries: expected at least 1, got 0"),
        (
            ("ranges", exported.directory, "--videos", tmp_path / "one"),
            "video 'v1': expected it among the 1 of --videos",
        ),
        (("audit", exported_fp16, exported.directory), "expected an fp32 bundle, got fp16"),
        (("ranges", exported.directory, "--out", data), "cannot write"),
    ):
        place = () if "--out" in arguments else ("--out", tmp_path / "out")
        code, _, said = run(capsys, *arguments, "--data", data, *place)
        assert code == 2
        assert words in said[-1]
        assert said[-1].startswith("error: ")
