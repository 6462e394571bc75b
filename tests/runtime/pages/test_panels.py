"""What stands beside a moment on the page: its picture, its link, and in words that nothing stands out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdst_runtime.contracts import Grounding, Moment
from sdst_runtime.errors import InputError
from sdst_runtime.pages.charts import fixed, line_chart, short, time_ticks
from sdst_runtime.pages.panels import QueryPanel, VideoPanel, shown_moments, video_url
from sdst_runtime.pages.report import Curve, MetricRow, Report, render_report

JPEG = b"\xff\xd8\xff\xe0 picture "


def grounding(*scores: float, sentence: str = "a red circle", saliency: float = 0.5) -> Grounding:
    moments = tuple(Moment(10.0 * i, 10.0 * i + 5, score) for i, score in enumerate(scores))
    return Grounding(sentence, moments, np.full(10, saliency, np.float32), clip_s=10.0)


def page_of(query: QueryPanel, file: Path | None = None, folder: Path | None = None) -> str:
    return render_report(Report("r", videos=(VideoPanel("clip", 100.0, (), (query,), file=file),)), folder)


@pytest.mark.parametrize(
    ("file", "folder", "url"),
    [
        ("/out/videos/a b.mp4", "/out", "videos/a%20b.mp4"),
        ("/out/clip.mp4", "/out", "clip.mp4"),
        ("/out/javascript:alert(1).mp4", "/out", "javascript%3Aalert%281%29.mp4"),
        ("/out/50% #1?.mp4", "/out", "50%25%20%231%3F.mp4"),
        ("/out/caf\udce9.mp4", "/out", "caf%E9.mp4"),
        ("/outer/clip.mp4", "/out", "file:///outer/clip.mp4"),
        ("/out/../else/a b.mp4", "/out", "file:///else/a%20b.mp4"),
        ("/out/clip.mp4", None, "file:///out/clip.mp4"),
    ],
)
def test_a_video_in_the_folder_is_found_from_there_and_others_by_url(file, folder, url):
    assert video_url(Path(file), Path(folder) if folder else None) == url


def test_relative_paths_are_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert video_url(Path("videos/a.mp4"), Path(".")) == "videos/a.mp4"
    assert video_url(Path("a.mp4"), Path("out")) == f"{tmp_path.as_uri()}/a.mp4"
    assert video_url(Path(os.path.relpath("/b.mp4")), tmp_path) == "file:///b.mp4"


def test_the_page_plays_the_file_and_a_moment_links_into_it():
    page = page_of(QueryPanel(grounding(0.3, 0.9)), Path("/out/a.mp4"), Path("/out"))
    assert '<video src="a.mp4" controls playsinline preload="metadata"' in page
    assert '<a class="row moment-row" href="a.mp4#t=10.00,15.00" data-start="10.00">' in page  # the best
    assert "media-src" in page
    without = page_of(QueryPanel(grounding(0.3, 0.9)))
    assert "<video" not in without
    assert "media-src" not in without
    assert " href=" not in without


def test_a_picture_for_each_shown_moment():
    scores = [0.1 * i for i in range(1, 9)]
    assert [round(m.score, 1) for m in shown_moments(grounding(*scores))] == [0.8, 0.7, 0.6, 0.5, 0.4]
    pictures = tuple(JPEG + bytes([i]) for i in range(5))
    assert page_of(QueryPanel(grounding(*scores), pictures=pictures)).count('alt="the middle of moment') == 5
    with pytest.raises(InputError, match="expected a picture for each of its 5 shown moments, got 4"):
        page_of(QueryPanel(grounding(*scores), pictures=pictures[:4]))


@pytest.mark.parametrize(
    ("scores", "said"),
    [((0.19, 0.1), "the best score is 0.19 of 1, below 0.2"), ((0.21, 0.1), None), ((0.2,), None), ((), None)],
)
def test_nothing_stands_out_is_said_when_all_scores_are_weak(scores, said):
    page = page_of(QueryPanel(grounding(*scores)))
    assert ("Nothing stands out" in page) == (said is not None)
    assert said is None or said in page


@pytest.mark.parametrize(
    ("scores", "presence", "said"),
    [
        ((0.1,), 0.5, None),  # a presence decides, not the score
        ((0.9,), 0.49, "The video probably does not show this: its presence is below 0.5."),
        ((), 0.9, "Nothing found: the video does not seem to show this."),
    ],
)
def test_a_presence_decides_what_is_said(scores, presence, said):
    page = page_of(QueryPanel(replace(grounding(*scores), presence=presence)))
    assert f'<span class="presence">presence <b>{presence:.2f}</b></span>' in page
    assert "presence: how likely the video shows it at all" in page  # the legend
    assert ('class="quiet"' in page) == (said is not None)
    assert said is None or said in page
    assert "no moment found" not in page


def test_without_a_presence_the_page_does_not_speak_of_it():
    page = page_of(QueryPanel(grounding(0.9)))
    assert "presence" not in page.replace(".presence", "")


def test_what_rounds_to_nothing_has_no_sign():
    assert [fixed(v, 2) for v in (-0.004, -0.0, 0.004, -0.006)] == ["0.00", "0.00", "0.00", "-0.01"]
    assert [fixed(v, 1, plus=True) for v in (-0.04, 0.0, -0.06)] == ["+0.0", "+0.0", "-0.1"]
    assert short(-0.0) == "0"
    query = QueryPanel(Grounding("q", (Moment(-0.04, 5.0, -0.001),), np.array([-0.004, -0.0004]), clip_s=50.0))
    report = Report("r", videos=(VideoPanel("clip", 100.0, (), (query,)),), metrics=(MetricRow("mAP", 50.0, 50.04),))
    page = render_report(report)
    for minus in "-\u2212":
        for zero in (">0.0", ">0.00"):
            assert zero.replace("0", f"{minus}0", 1) not in page
    assert 'data-values="-0.004 0.000"' in page
    assert "<b>0.00</b>" in page
    assert "0.0–5.0 s" in page


def test_a_point_without_neighbours_is_a_dot():
    (one,) = line_chart("t", [(7, {"a": 2.0})])["series"]
    assert one["dots"] == [{"x_pct": 50.0, "y_pct": pytest.approx(0.0)}]
    points = [(x, {"a": y}) for x, y in enumerate([1.0, float("nan"), 3.0, float("nan"), 5.0, 5.0], 1)]
    (broken,) = line_chart("t", points)["series"]
    assert [dot["x_pct"] for dot in broken["dots"]] == [0.0, 40.0]
    (line,) = line_chart("t", [(1, {"a": 1.0}), (2, {"a": 2.0})])["series"]
    assert line["dots"] == []
    assert '<circle class="dot s0" cx="50.00%"' in render_report(Report("r", curves=(Curve("t", ((7, {"a": 2.0}),)),)))


def test_epochs_are_whole():
    def ticks(*xs: float) -> list[str]:
        return [tick["label"] for tick in line_chart("t", [(x, {"a": 1.0}) for x in xs])["x_ticks"]]

    assert ticks(7) == ["7"]
    assert ticks(1, 2) == ["1", "2"]
    assert ticks(1, 2, 3) == ["1", "2", "3"]
    assert ticks(0.0, 0.5) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]


def test_a_narrow_page_has_room_for_five_times():
    for duration_s in (0.8, 10.0, 99.8, 150.0, 3599.0, 9000.0, 360000.0):
        ticks = time_ticks(duration_s)
        assert not ticks[0]["fine"]
        assert 1 <= sum(not tick["fine"] for tick in ticks) <= 5, duration_s


def test_names_and_sentences_stand_as_they_are():
    text = ":smile: [bold]loud[/bold] <b>bold</b> &amp; {{ 7 * 7 }}"
    shown = ":smile: [bold]loud[/bold] &lt;b&gt;bold&lt;/b&gt; &amp;amp; {{ 7 * 7 }}"
    query = QueryPanel(grounding(0.9, sentence=text))
    panel = VideoPanel(text, 100.0, (), (query,), file=Path("/x") / "<b>:x:.mp4")
    page = render_report(Report(text, videos=(panel,)))
    assert page.count(shown) == 5  # title twice, the video's name twice, the sentence
    assert "loud</" not in page
    assert "<b>bold" not in page
    assert "%3Cb%3E%3Ax%3A.mp4#t=" in page
