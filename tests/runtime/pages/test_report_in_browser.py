"""The moments report in Chromium: it plays and seeks, by mouse, finger and keyboard, and is readable when narrow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from browser import faults, opened

from sdst_runtime.contracts import Grounding, Moment
from sdst_runtime.media.clips import key_frames
from sdst_runtime.pages.panels import QueryPanel, VideoPanel, shown_moments
from sdst_runtime.pages.report import (
    Curve,
    MetricRow,
    Report,
    StageLatency,
    Table,
    write_report,
)

DURATION_S = 12.0
MOMENTS = ((6.0, 9.0, 0.9), (2.0, 4.0, 0.5), *((0.5 * i, 0.5 * i + 1, 0.15 - 0.01 * i) for i in range(6)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Twelve seconds of H.264, a frame every 0.1 s, under a name that a URL must escape."""
    path = tmp_path_factory.mktemp("page") / "below here" / "50% #1?.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(int(10 * DURATION_S)):
            picture = np.full((48, 64, 3), 2 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def panel(file: Path | None, clip: Path, sentence: str = "a grey square grows brighter") -> VideoPanel:
    saliency = np.linspace(-0.004, 0.9, 6, dtype=np.float32)
    grounding = Grounding(sentence, tuple(Moment(*moment) for moment in MOMENTS), saliency, clip_s=2.0)
    middles = [(moment.start_s + moment.end_s) / 2 for moment in shown_moments(grounding)]
    strip = [1.2 * i + 0.6 for i in range(10)]
    pictures = key_frames(clip, [*strip, *middles], 72)
    query = QueryPanel(grounding, ((5.5, 9.0), (1.0, 2.0)), tuple(pictures[10:]))
    return VideoPanel(clip.name, DURATION_S, tuple(zip(strip, pictures)), (query,), file=file)


@pytest.fixture(scope="module")
def page(clip) -> Path:
    path = clip.parent.parent / "report.html"
    write_report(path, Report("Moments", videos=(panel(clip, clip),)))
    return path


def settled(tab, at_s: float) -> None:
    """Wait until the video plays, or has played to its end, having been sent to `at_s`."""
    tab.wait_for_function(
        f"() => Math.abs(sought.at(-1) - {at_s}) < 0.05 && (!player.paused || player.ended) && !player.error"
    )


def ready(tab) -> None:
    """Wait until the video can be played, and write down from then on where it is sent to."""
    tab.wait_for_function("() => { const v = document.querySelector('video'); return v.readyState > 0 || v.error; }")
    if tab.evaluate("() => document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.42E01E\"')") == "":
        pytest.skip("this Chromium does not play H.264")
    tab.evaluate(
        """() => {
            window.player = document.querySelector("video");
            window.sought = [];
            player.addEventListener("seeking", () => sought.push(player.currentTime));
        }"""
    )
    assert tab.evaluate("() => [player.currentTime, player.paused, player.error]") == [0, True, None]


def test_a_click_on_a_row_or_a_bar_seeks_and_plays(browser, page):
    with opened(browser, page) as tab:
        ready(tab)
        tab.locator(".moment-row").nth(1).locator(".told").click()
        settled(tab, 2.0)
        tab.locator(".moment-row").nth(0).locator("rect.moment").click()
        settled(tab, 6.0)
        tab.locator("summary", has_text="6–8").click()
        tab.locator(".rest li a", has_text="0.11").click()
        settled(tab, 2.0)  # the moment of 2.0 to 3.0 s
        tab.locator(".frames a").nth(7).click()
        settled(tab, 9.0)
        assert tab.url == page.as_uri()  # no link was followed


def test_keys_seek_play_and_read_out(browser, page):
    with opened(browser, page) as tab:
        ready(tab)
        first, second = (tab.locator(".moment-row").nth(i) for i in (0, 1))
        first.focus()
        tab.keyboard.press("Enter")
        settled(tab, 6.0)
        tab.keyboard.press("Tab")
        assert second.evaluate("e => e === document.activeElement && e.matches(':focus-visible')")
        assert second.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        tab.keyboard.press("Space")
        settled(tab, 2.0)

        curve = tab.locator("[role=slider]")
        curve.focus()
        shown = tab.locator(".query output")
        assert shown.inner_text() == "0.0 s, saliency 0.00"  # -0.004, and no minus zero
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("ArrowRight")
        assert shown.inner_text() == "4.0 s, saliency 0.36"
        assert curve.get_attribute("aria-valuetext") == "4.0 s, saliency 0.36"
        tab.keyboard.press("Enter")
        settled(tab, 4.0)


def test_times_of_a_long_video_are_read_out_as_its_axis_has_them(browser, tmp_path):
    grounding = Grounding("hours", (), np.full(20, -0.5, np.float32), clip_s=450.0)
    truth = ((0.0, 600.0), (700.0, 800.0), (4000.0, 4100.0))
    panel = VideoPanel("long.mp4", 9000.0, (), (QueryPanel(grounding, truth),))
    write_report(tmp_path / "report.html", Report("Moments", videos=(panel,)))
    with opened(browser, tmp_path / "report.html") as tab:
        tab.locator("[role=slider]").focus()
        shown = tab.locator("output")
        for key, told in (
            ("Home", "0:00.0"), ("ArrowRight", "7:30.0"), ("PageUp", "1:22:30.0"), ("End", "2:30:00.0"),
        ):  # fmt: skip
            tab.keyboard.press(key)
            assert shown.inner_text() == f"{told}, saliency −0.50"
        tab.locator("summary", has_text="truth, 3 windows").press("Enter")
        assert tab.locator(".rest li").all_inner_texts() == [
            "0:00.0–10:00.0", "11:40.0–13:20.0", "1:06:40.0–1:08:20.0",
        ]  # fmt: skip


def test_a_finger_seeks_and_reads_out(browser, page):
    with opened(browser, page, 390, has_touch=True) as tab:
        ready(tab)
        tab.locator(".moment-row").nth(0).tap()
        settled(tab, 6.0)
        tab.locator(".curve-plot").tap()  # its middle
        assert tab.locator(".query output").is_visible()
        assert re.fullmatch(r"[56]\.\d s, saliency 0\.\d\d", tab.locator(".query output").inner_text())


def test_a_video_elsewhere_plays_and_one_that_is_gone_is_said(browser, page, clip, tmp_path):
    elsewhere = tmp_path / "pages" / "report.html"
    write_report(elsewhere, Report("Moments", videos=(panel(clip, clip),)))
    with opened(browser, elsewhere) as tab:
        ready(tab)
        tab.locator(".moment-row").nth(0).click()
        settled(tab, 6.0)
        assert not tab.locator(".unplayable").is_visible()
    gone = tmp_path / "gone.html"
    write_report(gone, Report("Moments", videos=(panel(tmp_path / "gone.mp4", clip),)))
    with opened(browser, gone) as tab:
        tab.wait_for_selector(".unplayable", state="visible")
        assert "cannot play gone.mp4" in tab.locator(".unplayable").inner_text()


def test_everything_is_there_without_a_script(browser, page):
    with opened(browser, page, java_script_enabled=False) as tab:
        text = tab.locator("main").inner_text()
        for told in ("a grey square grows brighter", "0.90", "6.0–9.0 s", "0.50", "2.0–4.0 s"):
            assert told in text, told
        assert tab.locator("video").get_attribute("controls") is not None
        assert tab.locator(".moment-row").nth(0).get_attribute("href") == "below%20here/50%25%20%231%3F.mp4#t=6.00,9.00"


def test_no_script_of_the_users_runs(browser, clip, tmp_path):
    """The page's policy names its own script and no other, should one ever get past the escaping."""
    page, script = tmp_path / "report.html", "<script>window.theirs = 1</script>"
    write_report(page, Report("Moments", videos=(panel(None, clip, script),)))
    escaped = "&lt;script&gt;window.theirs = 1&lt;/script&gt;"
    assert escaped in page.read_text()
    page.write_text(page.read_text().replace(escaped, script))
    with opened(browser, page) as tab:
        assert tab.evaluate("window.theirs") is None
        assert tab.locator(".query output").count() == 1  # the page's own ran


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_nothing_is_cut_and_no_labels_collide(browser, clip, tmp_path, width):
    long = "a sentence of many words, and a Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamter"
    hours = Grounding(long, tuple(Moment(800.0 * i, 800.0 * i + 700, 0.9 - 0.1 * i) for i in range(9)),
                      np.linspace(-0.6, 0.3, 300, dtype=np.float32), clip_s=30.0, presence=0.974)  # fmt: skip
    frames = tuple((900.0 * i + 450, picture) for i, picture in enumerate(key_frames(clip, [1.0] * 10, 72)))
    weak = QueryPanel(Grounding("weak", (Moment(1.0, 2.0, 0.1),), np.full(300, -0.3, np.float32), clip_s=30.0), ())
    guess = QueryPanel(replace(hours, query="a guess", presence=0.31), ())
    absent = QueryPanel(replace(hours, query=long, moments=(), presence=0.031))
    report = Report(
        "Moments of a_file_with_a_very_long_name_without_a_single_space_in_it.mp4",
        subtitle="x" * 70,
        videos=(
            panel(clip, clip, long),
            VideoPanel("v" * 60, 9000.0, frames, (QueryPanel(hours, ((8000.0, 9000.0),)), weak, guess, absent)),
        ),
        latency=(StageLatency("decode", 12345.6, 1, "a video", 75), StageLatency("total", 2.0, 1, "sum of medians")),
        machine=(("instructions", "avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 amx_int8 amx_bf16"),),
        metrics=tuple(MetricRow(name, 100.0, 12.5) for name in ("R1@0.5", "R1@0.7", "mAP", "top_clip_in_window")),
        stages=(("render", 1.0), ("extract", 1000.0)),
        curves=(Curve("Loss", tuple((epoch, {"training": 1000.0 - epoch, "val": 0.1}) for epoch in range(1, 201))),),
        facts=(("bundle", "/a/path" * 12),),
        tables=(Table("Settings", ("field", "value"), (("data.root", "/a/path" * 12),)),),
        warnings=("9.0 processes wanted 2 cores when this began: times mean little",),
    )  # fmt: skip
    write_report(tmp_path / "report.html", report)
    with opened(browser, tmp_path / "report.html", width) as tab:
        assert faults(tab) == []
