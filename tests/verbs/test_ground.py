"""`sdst ground` on good and bad input: what it prints, and queries, videos and bundles that cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run

QUERY = "a red circle moves to the left"


def test_ground_prints_the_documented_json(capsys, exported, video):
    code, out, err = run(capsys, "ground", video, QUERY, "a blue ring grows", "--bundle", exported.directory, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer.keys() == {"video", "duration_s", "clip_s", "results"}
    assert answer["video"] == str(video)
    assert answer["duration_s"] == pytest.approx(7.4)
    assert answer["clip_s"] == 1.0
    assert [result["query"] for result in answer["results"]] == [QUERY, "a blue ring grows"]
    for result in answer["results"]:
        assert len(result["saliency"]) == 8
        assert len(result["moments"]) == 5
        scores = [moment["score"] for moment in result["moments"]]
        assert scores == sorted(scores, reverse=True)
        for moment in result["moments"]:
            assert moment.keys() == {"start_s", "end_s", "score"}
            assert 0 <= moment["start_s"] <= moment["end_s"] <= 7.4
            assert 0 <= moment["score"] <= 1


def test_ground_prints_a_table_and_writes_a_page(capsys, exported, video, tmp_path):
    page = tmp_path / "new" / "report.html"
    code, out, _ = run(capsys, "ground", video, QUERY, "--bundle", exported.directory, "--report", page, "--top", 2)
    assert code == 0
    assert QUERY in out
    assert out.count("│") >= 2 * 4
    assert QUERY in page.read_text()
    assert f'<video src="{video.as_uri()}"' in page.read_text()


def test_the_page_of_ground_plays_the_video_beside_it_and_shows_a_picture_a_moment(capsys, exported, video, tmp_path):
    name = ":smile: [bold]a <b>.mp4"
    shutil.copy(video, tmp_path / name)
    sentence = f"{QUERY} :smile: [red]"
    page = tmp_path / "report.html"
    code, out, _ = run(
        capsys, "ground", tmp_path / name, QUERY, sentence, "--bundle", exported.directory, "--report", page
    )  # fmt: skip
    assert code == 0
    html = page.read_text()
    assert '<video src="%3Asmile%3A%20%5Bbold%5Da%20%3Cb%3E.mp4"' in html
    assert "<h2>:smile: [bold]a &lt;b&gt;.mp4</h2>" in html
    assert f"<h3>{sentence}</h3>" in html
    code, out, _ = run(capsys, "ground", video, QUERY, "--bundle", exported.directory, "--json")
    moments = json.loads(out)["results"][0]["moments"]
    rows = html[html.index(f"<h3>{QUERY}</h3>") : html.index(f"<h3>{sentence}</h3>")]
    assert rows.count('class="row moment-row') == rows.count('alt="the middle of moment') == min(len(moments), 5)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "query is empty"),
        (" \t ", "query is empty"),
        (" ".join(["red"] * 600), "it has 602 tokens, at most 24 fit"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "not valid UTF-8"),
    ],
)
def test_bad_queries(capsys, exported, video, query, says, tmp_path):
    page = tmp_path / "report.html"
    assert says in fails(capsys, "ground", video, QUERY, query, "--bundle", exported.directory, "--report", page)
    assert not page.exists()


def test_no_query(capsys, exported, video):
    assert "no query given" in fails(capsys, "ground", video, "--bundle", exported.directory)


def bad_videos(folder: Path, video: Path) -> dict[str, tuple[Path, str]]:
    import av

    folder.mkdir(exist_ok=True)
    empty = folder / "empty"
    empty.mkdir()
    (folder / "broken.mp4").write_bytes(video.read_bytes()[:500])
    (folder / "text.mp4").write_text("not a video\n" * 50)
    with av.open(str(folder / "sound.m4a"), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(folder / "one.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return {
        "missing": (folder / "none.mp4", "no such video file"),
        "folder": (empty, "no videos there"),
        "broken": (folder / "broken.mp4", "not a video"),
        "text": (folder / "text.mp4", "text.mp4"),
        "audio only": (folder / "sound.m4a", "no video stream (only audio in it)"),
        "one frame": (folder / "one.mp4", "one frame only"),
    }


@pytest.mark.parametrize("case", ["missing", "folder", "broken", "text", "audio only", "one frame"])
def test_bad_videos(capsys, exported, video, tmp_path, case):
    path, says = bad_videos(tmp_path / "videos", video)[case]
    page = tmp_path / "report.html"
    line = fails(capsys, "ground", path, QUERY, "--bundle", exported.directory, "--json", "--report", page)
    assert says in line
    assert str(path) in line
    assert not page.exists()


@pytest.fixture
def bundle(exported, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(exported.directory, tmp_path / "bundle"))


@pytest.mark.parametrize("name", ["head.onnx", "projection.onnx", "vision.onnx", "text.onnx", "tokenizer.json"])
def test_bundle_with_a_missing_or_changed_file(capsys, bundle, video, name):
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    line = fails(capsys, "ground", video, QUERY, "--bundle", bundle)
    assert f"{name} has changed: sha256" in line
    (bundle / name).unlink()
    assert f"{name} is missing from the bundle" in fails(capsys, "ground", video, QUERY, "--bundle", bundle)


def test_not_a_bundle(capsys, bundle, video, tmp_path):
    assert "it has no bundle.json" in fails(capsys, "ground", video, QUERY, "--bundle", tmp_path / "none")
    (bundle / "bundle.json").write_text("{}")
    assert "bundle.json: does not parse" in fails(capsys, "ground", video, QUERY, "--bundle", bundle)


@pytest.mark.parametrize(
    ("field", "value"), [("mean", [0.5, 0.4, 0.31]), ("frames_per_clip", 4), ("clip_s", 2.0), ("resize", "area")]
)
def test_bundle_whose_contract_was_edited(capsys, bundle, video, field, value):
    manifest = json.loads((bundle / "bundle.json").read_text())
    before = manifest["spec"][field]
    manifest["spec"][field] = value
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    line = fails(capsys, "ground", video, QUERY, "--bundle", bundle)
    assert f"feature contracts disagree on {field}: " in line
    assert "bundle.json needs" in line
    for shown in (before, value):
        assert repr(tuple(shown) if isinstance(shown, list) else shown) in line
