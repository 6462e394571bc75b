"""`sdst ground`: what is a video and what a sentence, several videos, and videos that are kept."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sdst.asked import looks_like_path, videos_and_sentences
from sdst.cli import main
from sdst_runtime.errors import InputError

QUERY = "a red circle moves to the left"
OTHER = "a ring grows"


@pytest.fixture
def folder(video, tmp_path, monkeypatch) -> Path:
    """Two videos in a folder of the working directory, and a list of them."""
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(video, tmp_path / "clips" / name)
    (tmp_path / "list.txt").write_text("clips/b.mp4\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ground(capsys, exported, *words: object) -> tuple[int, str, str]:
    code = main(["ground", *map(str, words), "--bundle", str(exported.directory), "--threads", "1"])
    return code, *capsys.readouterr()


A, B = Path("clips/a.mp4"), Path("clips/b.mp4")


@pytest.mark.parametrize(
    ("words", "videos", "sentences", "many"),
    [
        (["clips/a.mp4", QUERY], [A], [QUERY], False),
        (["clips/a.mp4", "clips/b.mp4", QUERY, OTHER], [A, B], [QUERY, OTHER], True),
        ([QUERY, "clips/a.mp4", OTHER], [A], [QUERY, OTHER], False),
        (["clips", QUERY], [A, B], [QUERY], True),
        (["clips/*.mp4", QUERY], [A, B], [QUERY], True),
        (["clips/b*", QUERY], [B], [QUERY], False),
        (["list.txt", QUERY], [B], [QUERY], True),
        (["clips/a.mp4", "does she jump?"], [A], ["does she jump?"], False),
        (["clips/a.mp4", "a man in no. 4 runs."], [A], ["a man in no. 4 runs."], False),
        (["clips/a.mp4", ""], [A], [""], False),
    ],
)
def test_words_are_videos_where_they_name_files(folder, words, videos, sentences, many):
    assert videos_and_sentences(words) == (videos, sentences, many)


@pytest.mark.parametrize("word", ["none.mp4", "NONE.MKV", "clips/none", "clips/*.mkv", "none.txt", "left/right"])
def test_what_looks_like_a_path_is_never_a_sentence(folder, word):
    assert looks_like_path(word)
    with pytest.raises(InputError, match="check the path, or give it with --query if it is a sentence") as raised:
        videos_and_sentences(["clips/a.mp4", word])
    assert str(raised.value).startswith(f"{word}: ")


def test_a_file_named_like_a_sentence_is_a_video(capsys, folder, exported):
    shutil.copy(A, folder / OTHER)
    code, out, err = ground(capsys, exported, OTHER, QUERY, "--json")
    assert (code, err) == (0, "")
    assert (json.loads(out)["video"], [r["query"] for r in json.loads(out)["results"]]) == (OTHER, [QUERY])


def test_a_sentence_of_any_look(capsys, folder, exported):
    code, out, _ = ground(capsys, exported, A, "--query", "a ring grows/shrinks", "--query", OTHER, "--json")
    assert code == 0
    assert [result["query"] for result in json.loads(out)["results"]] == ["a ring grows/shrinks", OTHER]


def test_several_videos_are_a_line_of_json_each(capsys, folder, exported):
    code, out, err = ground(capsys, exported, "clips", QUERY, OTHER, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    alone = json.loads(ground(capsys, exported, A, QUERY, OTHER, "--json")[1])

    assert (code, err) == (0, "")
    assert [answer["video"] for answer in answers] == [str(A), str(B)]
    for answer in answers:
        for one, other in zip(answer["results"], alone["results"], strict=True):
            assert one["query"] == other["query"]
            assert one["saliency"] == pytest.approx(other["saliency"], abs=1e-5)
            for mine, theirs in zip(one["moments"], other["moments"], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-4)


def test_several_videos_are_a_table_each(capsys, folder, exported):
    code, out, _ = ground(capsys, exported, A, B, QUERY)
    assert code == 0
    assert (out.count(QUERY), out.count("start s")) == (2, 2)
    assert out.index(str(A)) < out.index(str(B))


def test_one_of_several_fails_and_the_rest_is_done(capsys, folder, exported):
    Path("clips/broken.mp4").write_bytes(A.read_bytes()[:300])
    code, out, err = ground(capsys, exported, "clips", QUERY, "--json")
    assert code == 1
    assert [json.loads(line)["video"] for line in out.splitlines()] == [str(A), str(B)]
    assert "failed: clips/broken.mp4: not a video" in err
    assert err.splitlines()[-1].startswith("error: 1 of 3 videos failed")


def test_nothing_to_ask_about(capsys, folder, exported):
    code, out, err = ground(capsys, exported, QUERY)
    assert (code, out) == (2, "")
    assert err.startswith("error: no video given: expected sdst ground VIDEO")
    assert QUERY in err


@pytest.mark.parametrize("words", [[A], [A, B]])
def test_a_kept_video_is_not_encoded_again(capsys, folder, exported, monkeypatch, words):
    first = ground(capsys, exported, *words, QUERY, "--json", "--cache", "kept")
    files = sorted(Path("kept").iterdir())
    plain = ground(capsys, exported, *words, QUERY, "--json")
    monkeypatch.setattr("sdst_runtime.grounding.grounder.Grounder.decode", None)  # decoding would fail
    again = ground(capsys, exported, *words, QUERY, "--json", "--cache", "kept")

    assert first == again == plain
    assert first[0] == 0
    assert [path.suffix for path in files] == [".safetensors"]  # both videos have the same content
    assert sorted(Path("kept").iterdir()) == files


def test_a_changed_video_is_encoded_again(capsys, folder, exported):
    import av

    before = ground(capsys, exported, A, QUERY, "--json", "--cache", "kept")[1]
    told = os.stat(A)
    with av.open(str(A), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for i in range(50):
            frame = av.VideoFrame(40, 32, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([3 * i]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.utime(A, ns=(told.st_atime_ns, told.st_mtime_ns))
    after = ground(capsys, exported, A, QUERY, "--json", "--cache", "kept")[1]

    assert json.loads(before)["duration_s"] == pytest.approx(7.4)
    assert json.loads(after)["duration_s"] == pytest.approx(5.0)
    assert after == ground(capsys, exported, A, QUERY, "--json")[1]
    assert len(list(Path("kept").iterdir())) == 2


# ---------------------------------------------------------------- presence

ASKED = (QUERY, OTHER, "a blue square blinks", "a green star spins")


def presences(out: str) -> list[float | None]:
    return [result["presence"] for result in json.loads(out)["results"]]


def test_the_presence_of_every_answer(capsys, folder, exported, present):
    code, out, _ = ground(capsys, present, A, *ASKED)
    known = presences(ground(capsys, present, A, *ASKED, "--json")[1])
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("presence")] == [f"presence {p:.2f}" for p in known]
    assert out.count("start s") == len(ASKED)
    assert presences(ground(capsys, exported, A, QUERY, "--json")[1]) == [None]
    assert "presence" not in ground(capsys, exported, A, QUERY)[1]


@pytest.mark.parametrize("videos", [[A], [A, B]])
def test_below_the_threshold_nothing_is_found(capsys, folder, present, videos):
    known = presences(ground(capsys, present, A, *ASKED, "--json")[1])
    limit = sum(sorted(known)[1:3]) / 2
    code, out, _ = ground(capsys, present, *videos, *ASKED, "--threshold", limit)
    assert code == 0
    said = [f"presence {p:.2f}" if p >= limit else f"nothing found (presence {p:.2f})" for p in known]
    assert [line for line in out.splitlines() if "presence" in line] == said * len(videos)
    assert out.count("start s") == 2 * len(videos)
    _, out, _ = ground(capsys, present, *videos, *ASKED, "--threshold", limit, "--json")
    for line in out.splitlines():
        results = json.loads(line)["results"]
        assert [bool(result["moments"]) for result in results] == [p >= limit for p in known]
        assert all(len(result["saliency"]) == 8 for result in results)


def test_a_threshold_that_cannot_be(capsys, folder, exported, present):
    code, out, err = ground(capsys, exported, A, QUERY, "--threshold", "0.5")
    assert (code, out) == (2, "")
    assert err == (
        f"error: threshold: {exported.directory} does not say whether an event is there; "
        "train with --data.negatives 0.33 and export again\n"
    )
    code, out, err = ground(capsys, present, A, QUERY, "--threshold", "1.5")
    assert (code, err) == (2, "error: threshold: expected a probability of 0 to 1, got 1.5\n")


def test_the_report_says_that_nothing_was_found(capsys, folder, present):
    assert ground(capsys, present, A, QUERY, "--threshold", "1", "--report", "page.html")[0] == 0
    page = Path("page.html").read_text()
    assert "Nothing found: the video does not seem to show this." in page
    assert 'class="row moment-row' not in page
