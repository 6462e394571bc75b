"""Extraction as commands: killed and gone on with, bad videos, two at once, a full disk. test_media.py holds which
frames are sampled, variable frame rates included."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from encoding import encode_clips

from sdst.cli import main
from sdst.demo import BACKBONE
from sdst.videos import find_videos
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.features import (
    read_text_features,
    read_video_features,
    text_feature_path,
    video_feature_path,
    write_video_features,
)
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import read_jsonl, write_jsonl
from sdst_runtime.media.clips import read_clips
from sdst_train.backbone.feature_run import extract_videos
from sdst_train.backbone.towers import Backbone, load_backbone

SENTENCES = ["a red circle moves to the left", "a ring grows", "a blue square"]


def write_noise(path: Path, frames: int, seed: int = 0, **options: str) -> Path:
    """Moving noise, 48 x 32 pixels, 10 frames a second."""
    picture = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 10)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 3 * i, axis=1), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """20 videos of one to five clips."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(20):
        write_noise(folder / f"v{i:02}.mp4", 12 + 23 * i % 90, seed=i)
    return folder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BACKBONE)


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory) -> Path:
    """The features of an extraction that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["features", "video", str(videos), "--backbone", str(BACKBONE), "--out", str(out)]) == 0
    return out


def command(videos: Path, out: Path, *options: object) -> list[str]:
    return ["features", "video", str(videos), "--backbone", str(BACKBONE), "--out", str(out), *map(str, options)]


def fails(capsys, code: int, *arguments: object) -> str:
    """The last line on stderr of a command that must fail."""
    capsys.readouterr()
    got = main([str(argument) for argument in arguments])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (got, line[:7]) == (code, "error: "), line
    return line


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "video").iterdir())}


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until_s, "waited five minutes for nothing"
        time.sleep(0.02)


class Stuck:
    """An extraction in a process of its own that cannot go beyond one video: a pipe that nobody writes to."""

    def __init__(self, videos: Path, folder: Path, out: Path) -> None:
        shutil.copytree(videos, folder)
        self.original, self.pipe, self.out = videos / "v07.mp4", folder / "v07.mp4", out
        self.pipe.unlink()
        os.mkfifo(self.pipe)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sdst", *command(folder, out, "--workers", 1, "--batch", 4)],
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> None:
        """Until it has made some files and stands still."""
        made = self.out / "video"
        wait_for(lambda: self.process.poll() is not None or len(list(made.glob("*.safetensors"))) >= 4)
        assert self.process.poll() is None

    def end(self) -> None:
        """Kill what still runs, let the process that waits for the pipe end, put the video in the pipe's place."""
        self.process.kill()
        self.process.wait()
        if self.pipe.is_fifo():
            with suppress(OSError):  # nobody waits any more
                os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))
            self.pipe.unlink()
            shutil.copy(self.original, self.pipe)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def decoder(self) -> int:
        """The id of the process that decodes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (pid,) = (int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return pid


@pytest.fixture
def stuck(videos: Path, tmp_path: Path) -> Iterator[Stuck]:
    started = Stuck(videos, tmp_path / "videos", tmp_path / "out")
    try:
        started.wait()
        yield started
    finally:
        started.end()


# ---- interrupted


def test_killed_and_gone_on_with(capsys, stuck, whole, tmp_path):
    """The same bytes as without the kill, nothing made twice, no leftovers; and nobody else may write meanwhile."""
    out = stuck.out
    line = fails(capsys, 2, *command(tmp_path / "videos", out))
    assert f"{out} is in use by another process" in line
    stuck.end()
    made = {path.name: path.stat().st_mtime_ns for path in (out / "video").glob("*.safetensors")}
    assert 4 <= len(made) < 20
    (out / "video" / ".v12.safetensors.123.tmp").write_bytes(b"half")

    assert main(command(tmp_path / "videos", out, "--workers", 2)) == 0
    assert f"videos: {20 - len(made)} made, {len(made)} kept, 0 failed" in capsys.readouterr().out
    assert {name: (out / "video" / name).stat().st_mtime_ns for name in made} == made
    assert contents(out) == contents(whole)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the decoding process in /proc")
def test_a_dead_decoder_is_one_clear_error(stuck):
    os.kill(stuck.decoder(), signal.SIGKILL)
    _, error = stuck.process.communicate(timeout=60)
    assert stuck.process.returncode == 2
    assert error.strip().splitlines() == [
        f"error: {stuck.pipe}: the process that decoded it died (exit code -9; -9 is often a lack of memory): run "
        "again with fewer workers, or without this video"
    ]


def test_broken_files_are_made_again_and_whole_ones_kept(capsys, videos, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    broken = out / "video" / "v03.safetensors"
    broken.write_bytes(broken.read_bytes()[:-50])
    before = {path: path.stat().st_mtime_ns for path in (out / "video").iterdir() if path != broken}
    assert main(command(videos, out, "--workers", 1)) == 0
    assert "videos: 1 made, 19 kept, 0 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(out) == contents(whole)


def test_features_of_another_contract_stay(capsys, videos, whole):
    before = contents(whole)
    line = fails(capsys, 2, *command(videos, whole, "--pool", "mean"))
    assert "feature contracts disagree on pool: " in line
    assert "has 'adaptive', what is made now needs 'mean'; choose another folder" in line
    assert contents(whole) == before


@pytest.mark.skipif(os.name != "posix", reason="limits the size of a file")
def test_a_full_disk_is_one_clear_error(capsys, videos, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        line = fails(capsys, 2, *command(videos, tmp_path / "out", "--workers", 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith(f"error: cannot write {tmp_path / 'out' / 'video'}")
    assert line.endswith("File too large; choose another place or free it")
    assert list((tmp_path / "out" / "video").iterdir()) == []


def test_features_of_a_replaced_video_are_made_again(capsys, videos, whole, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for name in ("v01.mp4", "v02.mp4"):
        shutil.copy(videos / name, folder)  # another time of change, the same content: kept
    shutil.copytree(whole, out)
    assert main(command(folder, out, "--workers", 1)) == 0
    assert "videos: 0 made, 2 kept, 0 failed" in capsys.readouterr().out
    shutil.copy(videos / "v05.mp4", folder / "v02.mp4")
    assert main(command(folder, out, "--workers", 1)) == 0
    said = capsys.readouterr()
    assert "videos: 1 made, 1 kept, 0 failed" in said.out
    assert f"{folder / 'v02.mp4'}: is another file than its features were made of: they are made again" in said.err
    assert contents(out)["v02.safetensors"] == contents(whole)["v05.safetensors"]


def test_features_without_their_source_are_kept_and_said_once(capsys, videos, whole, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for name in ("v01", "v02"):
        shutil.copy(videos / "v03.mp4", folder / f"{name}.mp4")
        old = read_video_features(video_feature_path(whole, name))
        write_video_features(video_feature_path(out, name), dataclasses.replace(old, source=""))
    assert main(command(folder, out, "--workers", 1)) == 0
    said = capsys.readouterr()
    assert "videos: 0 made, 2 kept, 0 failed" in said.out
    assert said.err.count("2 feature files do not say of which video files they were made, and are kept") == 1


# ---- what is in the files


def test_features_are_those_of_each_video_alone(videos, backbone, tmp_path):
    seen = []
    paths = {path.stem: path for path in sorted(videos.iterdir())[:7]}
    result = extract_videos(
        paths, backbone.vision, tmp_path, batch_size=5, workers=2, dtype="float32", on_progress=seen.append
    )
    total = 0
    for vid, path in paths.items():
        clips, duration_s = read_clips(path, backbone.spec)
        stored = read_video_features(video_feature_path(tmp_path, vid), backbone.spec)
        assert stored.features.dtype == np.float32
        assert stored.duration_s == duration_s
        np.testing.assert_allclose(stored.features, encode_clips(backbone.vision, clips, 1), rtol=0, atol=1e-5)
        total += len(clips)
    assert (result.made, result.kept, result.clips, result.failures) == (7, 0, total, ())
    assert [progress.done for progress in seen] == list(range(1, 8))
    assert dataclasses.astuple(seen[-1]) == (7, 7, total)


def test_half_precision_on_disk_and_in_the_model(capsys, videos, whole, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{videos / 'v04.mp4'}\n\n{videos / 'v09.mp4'}\n")
    out = tmp_path / "out"
    assert main(command(listed, out, "--precision", "bf16", "--dtype", "float32", "--device", "cpu")) == 0
    assert "videos: 2 made, 0 kept, 0 failed" in capsys.readouterr().out
    for vid in ("v04", "v09"):
        bf16 = read_video_features(video_feature_path(out, vid)).features
        fp32 = read_video_features(video_feature_path(whole, vid)).features
        assert (bf16.dtype, fp32.dtype) == (np.float32, np.float16)
        assert 1e-5 < np.abs(bf16 - fp32).max() < 0.1 * np.abs(fp32).max()


def test_values_that_do_not_fit_the_file_fail_the_video(videos, tmp_path):
    tower = load_backbone(BACKBONE).vision
    torch.nn.init.constant_(tower.encoder.clip_projector.cross_attn.proj.bias, 1e5)
    said = []
    paths = {"v00": videos / "v00.mp4"}
    result = extract_videos(paths, tower, tmp_path, workers=1, say=said.append)
    reason = f"{videos / 'v00.mp4'}: features hold NaN or infinity in float16; use --precision fp32 or --dtype float32"
    assert [failure.reason for failure in result.failures] == [reason]
    assert said == [f"failed: {reason}"]
    assert list((tmp_path / "video").glob("*")) == []
    assert extract_videos(paths, tower, tmp_path, workers=1, dtype="float32").failures == ()


# ---- bad videos


def test_failures_are_listed_and_all_others_done(capsys, videos, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    shutil.copy(videos / "v02.mp4", folder / "sound.mp4")
    (folder / "text.mp4").write_text("this is no video\n" * 40)
    (folder / "notes.md").write_text("not looked at")
    cut = write_noise(folder / "cut.mp4", 90, movflags="faststart")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])

    capsys.readouterr()
    assert main(command(folder, out, "--workers", 2)) == 1
    captured = capsys.readouterr()
    assert "videos: 2 made, 0 kept, 1 failed" in captured.out
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith(f"error: 1 of 3 videos failed, see {out / 'failures.jsonl'}")
    assert any(line.startswith(f"{cut}: its header promises 9.0 s") for line in lines)
    assert any(line.startswith(f"failed: {folder / 'text.mp4'}: not a video") for line in lines)
    (row,) = read_jsonl(out / "failures.jsonl")
    assert (row["vid"], row["path"]) == ("text", str(folder / "text.mp4"))
    assert row["reason"].startswith(f"{folder / 'text.mp4'}: not a video that can be read")
    assert sorted(contents(out)) == ["cut.safetensors", "sound.safetensors"]

    shutil.copy(videos / "v05.mp4", folder / "text.mp4")
    assert main(command(folder, out, "--workers", 1)) == 0
    assert sorted(contents(out)) == ["cut.safetensors", "sound.safetensors", "text.safetensors"]
    assert not (out / "failures.jsonl").exists()


def test_which_videos(tmp_path, videos):
    assert list(find_videos(videos).values()) == sorted(videos.iterdir())
    with pytest.raises(InputError, match=r"no videos there; expected files of \.3gp, \.avi"):
        find_videos(tmp_path)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.mkv").touch()
    with pytest.raises(InputError, match=r"a\.mkv and .*a\.mp4 are both video 'a'"):
        find_videos(tmp_path)
    for wrong in (tmp_path / "a.mp4", tmp_path / "none"):
        with pytest.raises(InputError, match=r"expected a folder of videos or a \.txt file"):
            find_videos(wrong)
    with pytest.raises(InputError, match="cannot read"):
        find_videos(tmp_path / "none.txt")


def test_suffixes_in_a_folder(capsys, tmp_path):
    videos = ["a.MTS", "b.m2ts", "c.asf", "d.vob", "e.divx", "f.F4V", "g.3g2", "h.gif", "i.Mp4"]
    for name in (*videos, *(f"n{i}.md" for i in range(7)), ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in find_videos(tmp_path).values()] == videos
    assert capsys.readouterr().err == (
        f"{tmp_path}: skipped 8 entries that are no videos by their names: folder.mp4/, n0.md, n1.md, n2.md, n3.md and "
        "3 more; list videos among them in a .txt file\n"
    )


def test_bad_options(capsys, videos, tmp_path):
    out = tmp_path / "out"
    assert "workers: expected at least 1, got 0" in fails(capsys, 2, *command(videos, out, "--workers", 0))
    assert "batch: expected at least 1" in fails(capsys, 2, *command(videos, out, "--batch", 0))
    if not torch.cuda.is_available():
        assert "expected a CUDA GPU" in fails(capsys, 2, *command(videos, out, "--device", "cuda"))
    assert list(out.glob("video/*")) == []


# ---- sentences


def write_annotations(folder: Path) -> list[Path]:
    """Three forms with three distinct sentences; no durations for Charades."""
    rows = [{"qid": i, "query": SENTENCES[i % 2], "vid": f"v{i}", "duration": 9.0} for i in range(4)]
    write_jsonl(folder / "q.jsonl", rows)
    (folder / "charades.txt").write_text(f"AO8RW 0.0 6.9##{SENTENCES[1]}\nAO8RX 1.0 2.0##{SENTENCES[2]}\n")
    tacos = {"s1.avi": {"timestamps": [[1, 9]], "sentences": [SENTENCES[0]], "fps": 10.0, "num_frames": 90}}
    (folder / "tacos.json").write_text(json.dumps(tacos))
    return [folder / name for name in ("q.jsonl", "charades.txt", "tacos.json")]


def test_each_sentence_once(capsys, backbone, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "features",
        "text",
        *map(str, write_annotations(tmp_path)),
        "--backbone",
        str(BACKBONE),
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    assert "distinct sentences of 7 queries: 3 made, 0 kept" in capsys.readouterr().out
    files = sorted((out / "text").iterdir())
    assert files == sorted(text_feature_path(out, sentence) for sentence in SENTENCES)
    for sentence in SENTENCES:
        stored = read_text_features(text_feature_path(out, sentence), backbone.spec)
        ids = backbone.tokenizer().encode(sentence, backbone.spec.max_tokens)[None]
        with torch.inference_mode():
            alone = backbone.text(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.bool))[0].numpy()
        assert (stored.query, stored.features.dtype) == (sentence, np.float16)
        np.testing.assert_allclose(stored.features, alone, rtol=1e-3, atol=1e-4)

    whole = {path: path.read_bytes() for path in files}
    files[1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in (files[0], files[2])}
    assert main(arguments) == 0
    assert ": 1 made, 2 kept" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in files} == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_bad_sentences_are_said_before_anything_is_made(capsys, tmp_path):
    rows = [
        {"qid": i, "query": query, "vid": "v"} for i, query in enumerate(["a ring grows", "ring " * 60, "circle " * 70])
    ]
    write_jsonl(tmp_path / "q.jsonl", rows)
    out = tmp_path / "out"
    arguments = ["--backbone", BACKBONE, "--out", out]
    line = fails(capsys, 2, "features", "text", tmp_path / "q.jsonl", *arguments)
    assert "2 sentences cannot be used; the first: query is too long: it has 6" in line
    assert list(out.glob("text/*")) == []
    write_jsonl(tmp_path / "q.jsonl", [{"qid": 5, "query": " ", "vid": "v"}])
    assert "q.jsonl, qid 5: query is empty" in fails(capsys, 2, "features", "text", tmp_path / "q.jsonl", *arguments)
    write_jsonl(tmp_path / "q.jsonl", [{"qid": 5, "vid": "v"}])
    assert "q.jsonl, qid 5: query: " in fails(capsys, 2, "features", "text", tmp_path / "q.jsonl", *arguments)
    assert "expected one annotation file or more" in fails(capsys, 2, "features", "text", *arguments)


def test_sentences_under_another_contract_stay(backbone, tmp_path):
    from sdst_train.backbone.feature_run import extract_sentences

    extract_sentences(SENTENCES, backbone, tmp_path)
    other = dataclasses.replace(backbone, spec=changed(backbone.spec))
    with pytest.raises(ContractError, match="disagree on clip_s"):
        extract_sentences(SENTENCES, other, tmp_path)


def changed(spec: FeatureSpec) -> FeatureSpec:
    return dataclasses.replace(spec, clip_s=1.0)


def test_names_of_any_bytes_and_lengths(capsys, videos, tmp_path):
    """A name that is not UTF-8 is listed, one too long for a feature file is refused, hidden files are left alone."""
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    shutil.copy(videos / "v00.mp4", folder / f"{'x' * 200}.mp4")
    (folder / "._v00.mp4").write_bytes(b"junk")
    (folder / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"junk")
    done = subprocess.run([sys.executable, "-m", "sdst", *command(folder, out)], capture_output=True)
    assert done.returncode == 1, done.stderr
    (row,) = read_jsonl(out / "failures.jsonl")
    assert row["vid"] == os.fsdecode(b"caf\xe9")
    assert [path.stem for path in (out / "video").iterdir()] == ["x" * 200]
    shutil.copy(videos / "v00.mp4", folder / f"{'y' * 201}.mp4")
    assert "longer than 200 bytes" in fails(capsys, 2, *command(folder, out))
