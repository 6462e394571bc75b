"""Streams of videos: decoding, vision and head at work at once, against one video at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest

from sdst.cli import main
from sdst_runtime import FailedVideo, GroundedVideo, Grounder, Job, ground_videos
from sdst_runtime.errors import SessionError

QUERIES = ("a red circle moves to the left", "a ring grows")


@pytest.fixture(scope="module")
def grounder(exported) -> Grounder:
    return Grounder.load(exported.directory, threads=1)


@pytest.fixture(scope="module")
def files(video, tmp_path_factory) -> dict[str, Path]:
    """The same 8 clips twice, a longer video of 40, and two that cannot be used."""
    import av

    folder = tmp_path_factory.mktemp("videos")
    shutil.copy(video, folder / "short.mp4")
    with av.open(str(folder / "long.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(80):
            picture = np.full((32, 32, 3), 3 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes(video.read_bytes()[:500])
    names = {name: folder / f"{name}.mp4" for name in ("short", "long", "broken", "missing")}
    return {"noise": video, **names}


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("sdst")]


def test_a_stream_of_videos_equals_one_at_a_time(grounder, files):
    jobs = [Job(files["noise"], QUERIES), Job(files["long"], QUERIES[:1]), Job(files["short"]), Job(files["long"])]
    found = list(ground_videos(grounder, jobs))
    assert [done.path for done in found] == [job.path for job in jobs]
    for job, done in zip(jobs, found, strict=True):
        assert isinstance(done, GroundedVideo)
        encoded = grounder.encode(job.path)
        assert np.abs(done.video.features - encoded.features).max() < 1e-5
        assert (done.video.duration_s, done.video.windows) == (encoded.duration_s, encoded.windows)
        assert [answer.query for answer in done.groundings] == list(job.queries)
        for query, answer in zip(job.queries, done.groundings, strict=True):
            alone = grounder.ground(encoded, query)
            assert np.abs(alone.saliency - answer.saliency).max() < 1e-4
            for one, other in zip(alone.moments, answer.moments, strict=True):
                assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-4)
    assert [len(done.video.features) for done in found if isinstance(done, GroundedVideo)] == [8, 40, 8, 40]
    assert threads() == []


def test_a_bad_video_or_query_is_reported_and_the_rest_goes_on(grounder, files):
    jobs = [
        Job(files["broken"], QUERIES), Job(files["noise"], QUERIES), Job(files["missing"], QUERIES),
        Job(files["short"], [" "]), Job(files["long"], QUERIES),
    ]  # fmt: skip
    found = list(ground_videos(grounder, jobs))
    assert [type(done) for done in found] == [FailedVideo, GroundedVideo, FailedVideo, FailedVideo, GroundedVideo]
    reasons = [done.reason for done in found if isinstance(done, FailedVideo)]
    assert "broken.mp4: not a video that can be read" in reasons[0]
    assert reasons[1] == f"{files['missing']}: no such video file; check the path"
    assert "query is empty" in reasons[2]


def test_warnings_come_with_their_video(grounder, files, tmp_path):
    cut = tmp_path / "cut.mkv"
    import av

    with av.open(str(files["noise"])) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    first, second = ground_videos(grounder, [Job(cut), Job(files["noise"])])
    assert isinstance(first, GroundedVideo)
    assert isinstance(second, GroundedVideo)
    assert any("header promises" in warning for warning in first.video.warnings)
    assert second.video.warnings == ()


def test_an_endless_stream_is_read_as_it_is_used_and_leaves_nothing_behind(grounder, files):
    read = []
    jobs = (read.append(job) or job for job in cycle([Job(files["noise"], QUERIES)]))
    stream = ground_videos(grounder, jobs)
    found = list(islice(stream, 3))
    assert all(isinstance(done, GroundedVideo) for done in found)
    stream.close()
    # 3 taken; behind them at most 2 that wait, 1 at the vision model, 2 pieces that wait and 1 that is decoded
    assert 3 <= len(read) <= 3 + 6
    assert threads() == []


def test_jobs_that_never_come_hold_nobody(grounder, files, monkeypatch):
    monkeypatch.setattr("sdst_runtime.grounding.pipeline._LEAVE_S", 0.1)
    comes = threading.Event()

    def jobs():
        yield Job(files["noise"])
        comes.wait()
        yield Job(files["noise"])

    stream = ground_videos(grounder, jobs())
    assert isinstance(next(stream), GroundedVideo)
    (decoder,) = [thread for thread in threading.enumerate() if thread.name == "sdst decode"]
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(30)
    try:
        assert not closing.is_alive()
        assert threads() == ["sdst decode"]
    finally:
        comes.set()
    decoder.join(30)
    assert threads() == []


def test_ctrl_c_leaves_nothing_behind(grounder, files):
    def jobs():
        yield Job(files["noise"], QUERIES)
        os.kill(os.getpid(), signal.SIGINT)
        yield from cycle([Job(files["noise"])])

    with pytest.raises(KeyboardInterrupt):
        for _ in ground_videos(grounder, jobs()):
            pass
    assert threads() == []


def test_an_error_of_a_thread_reaches_the_caller(grounder, files):
    def jobs():
        yield Job(files["noise"])
        raise RuntimeError("the list broke off")

    stream = ground_videos(grounder, jobs())
    assert isinstance(next(stream), GroundedVideo)
    with pytest.raises(RuntimeError, match="the list broke off"):
        next(stream)
    assert threads() == []


def test_a_model_that_fails_ends_the_run_and_a_bad_video_does_not(files, exported):
    jobs = [Job(files["noise"], QUERIES), Job(files["broken"], QUERIES), Job(files["short"], QUERIES)]
    for model in ("vision", "text", "grounding_model"):
        with Grounder.load(exported.directory, threads=1) as grounder:
            found = [type(done) for done in ground_videos(grounder, jobs)]
            assert found == [GroundedVideo, FailedVideo, GroundedVideo]
            getattr(grounder, model).close()
            with pytest.raises(SessionError, match=r"\.onnx: the session is closed; open the model again"):
                list(ground_videos(grounder, jobs))
        assert threads() == []


def test_a_run_that_onnx_runtime_refuses_is_no_bad_video(files, exported, monkeypatch):
    with Grounder.load(exported.directory, threads=1) as grounder:
        outside = (np.full((1, 3), 10**6), np.ones((1, 3), bool))  # token ids that the text model does not know
        monkeypatch.setattr(grounder.tokenizer, "encode_batch", lambda *_: outside)
        with pytest.raises(SessionError, match=r"text\.onnx: ONNX Runtime failed on token_ids \[1, 3\]"):
            list(ground_videos(grounder, [Job(files["short"], QUERIES[:1])]))


# ---------------------------------------------------------------- the command


def test_a_list_of_videos_becomes_lines_of_json(capsys, exported, files, tmp_path):
    listed = tmp_path / "videos.txt"
    listed.write_text("".join(f"{files[name]}\n" for name in ("noise", "missing", "long")))
    code = main(["ground", str(listed), *QUERIES, "--bundle", str(exported.directory), "--json"])
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert err.splitlines() == [
        f"failed: {files['missing']}: no such video file; check the path",
        "error: 1 of 3 videos failed, as said above; the others are done",
    ]
    assert [answer["video"] for answer in answers] == [str(files["noise"]), str(files["long"])]
    for answer in answers:
        assert main(["ground", answer["video"], *QUERIES, "--bundle", str(exported.directory), "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert answer["duration_s"] == alone["duration_s"]
        for one, other in zip(answer["results"], alone["results"], strict=True):
            assert one["query"] == other["query"]
            assert one["saliency"] == pytest.approx(other["saliency"], abs=1e-4)


def test_the_window_reaches_the_grounder(capsys, exported, files):
    command = ["ground", str(files["long"]), QUERIES[0], "--bundle", str(exported.directory), "--json", "--window"]
    assert main([*command, "16"]) == 0
    cut = json.loads(capsys.readouterr().out)["results"][0]
    grounder = Grounder.load(exported.directory, window_clips=16)
    answer = grounder.ground(grounder.encode(files["long"]), QUERIES[0])
    assert cut["saliency"] == pytest.approx(answer.saliency, abs=1e-4)
    assert len(cut["saliency"]) == 40
    assert main([*command, "7"]) == 2
    assert "window: expected at least 8 clips, got 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("\n", (), "no videos in it; expected the path of one on each line"),
        (None, (), "no such video file or folder; check the path"),
        ("a.mp4\n", ("--report", "page.html"), "--report: expected one video, got a list, a folder or several (1)"),
    ],
)
def test_bad_lists(capsys, exported, tmp_path, text, more, says):
    listed = tmp_path / "videos.txt"
    if text is not None:
        listed.write_text(text)
    code = main(["ground", str(listed), QUERIES[0], "--bundle", str(exported.directory), *more])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in err
