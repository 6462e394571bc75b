"""The page of `sdst serve` in a real browser: a video is chosen, asked and played."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import faults, visited
from processes import wait_until
from served import QUERY, Served, serving

from sdst_runtime.pages.panels import PRESENT, WEAK_SCORE
from sdst_runtime.serving.app import PAGE

OTHER = "a blue square blinks"
TOKEN = "s3cret"


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    with serving(exported.directory, tmp_path_factory.mktemp("served"), "--upload-mib", "1") as served:
        yield served


@contextmanager
def page(browser, server: Served, width: int = 1280, **options) -> Iterator:
    """The page; what its console complains of fails the test at the end."""
    said: list[str] = []
    with visited(browser, f"http://127.0.0.1:{server.port}/", width, **options) as tab:
        tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.reload()
        yield tab
        assert [line for line in said if "the server responded with a status of 4" not in line] == []


def until(tab, condition: str) -> None:
    """Wait for a condition in JavaScript; Playwright's own wait needs eval, which the page forbids."""
    wait_until(lambda: tab.evaluate(condition))


def choose(tab, video: Path) -> None:
    tab.set_input_files("#file", video)
    until(tab, "document.getElementById('state').textContent.includes('ready for sentences')")


def ask(tab, *sentences: str) -> None:
    tab.fill("#sentences", "\n".join(sentences))
    tab.click("#go")
    until(tab, f"document.querySelectorAll('article').length === {len(sentences)}")


def time_s(tab) -> float:
    until(tab, "!document.getElementById('video').seeking")
    return tab.evaluate("document.getElementById('video').currentTime")


def test_sentences_get_moments_that_play(browser, server, video):
    with page(browser, server) as tab:
        choose(tab, video)
        ask(tab, QUERY, OTHER)
        tab.evaluate("document.getElementById('video').play = () => Promise.resolve()")  # time stands where it is put
        titles = tab.eval_on_selector_all("h2", "list => list.map((e) => e.textContent)")
        button = tab.locator("article").nth(1).locator(".moments button").nth(1)
        minutes, seconds = re.match(r"(\d+):([\d.]+)", button.inner_text()).groups()
        button.click()
        at_moment = time_s(tab)
        line = tab.locator(".line").first
        box = line.bounding_box()
        line.click(position={"x": 0.75 * box["width"], "y": 10})
        at_click = time_s(tab)
        line.press("ArrowLeft")
        one_clip_back = time_s(tab)
        told = line.get_attribute("aria-valuetext")
        line.press("Home")

        assert titles == [QUERY, OTHER]
        assert tab.locator(".line polyline").count() == 2
        assert tab.locator(".line .bar").count() == tab.locator(".moments button").count() >= 3
        assert at_moment == pytest.approx(60 * int(minutes) + float(seconds), abs=0.06)
        assert at_click == pytest.approx(0.75 * 7.4, abs=0.05)
        assert one_clip_back == pytest.approx(at_click - 1, abs=0.01)
        assert re.fullmatch(r"0:04\.[56], saliency \u2212?\d\.\d\d", told)
        assert time_s(tab) == 0


def test_the_keyboard_alone(browser, server, video):
    with page(browser, server) as tab:
        choose(tab, video)
        tab.focus("#sentences")
        tab.keyboard.type(QUERY)
        tab.keyboard.press("Control+Enter")
        tab.wait_for_selector("article")
        reached = []
        for _ in range(12):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.className || document.activeElement.textContent"))
        tab.evaluate(
            "() => { window.plays = 0; document.getElementById('video').addEventListener('play', () => plays++); }"
        )
        tab.locator(".moments button").first.press("Enter")

        assert "line" in reached
        assert [what for what in reached if re.match(r"\d+:", what)]
        until(tab, "plays === 1")  # it may have come to its end by now


@pytest.mark.parametrize("width", [390, 1280])
def test_the_presence_is_said_and_what_is_not_there_is_folded(browser, present, tmp_path, video, width):
    """The answers are changed on their way: one is there, one is not, and one had a threshold."""

    def changed(route) -> None:
        answer = route.fetch()
        body = answer.json()
        assert all(0 < result["presence"] < 1 for result in body["results"])
        for result, presence in zip(body["results"], (0.971, 0.031, 0.001)):
            result["presence"] = presence
        body["results"][2]["moments"] = []
        route.fulfill(response=answer, json=body)

    with serving(present.directory, tmp_path) as served, page(browser, served, width) as tab:
        choose(tab, video)
        tab.route("**/v1/ground", changed)
        ask(tab, QUERY, OTHER, "a ring grows")
        there, absent, cut = (tab.locator("article").nth(i) for i in range(3))

        said = tab.eval_on_selector_all(".presence", "list => list.map((e) => e.textContent)")
        assert said == ["presence 0.97", "Nothing found (presence 0.03).", "Nothing found (presence < 0.01)."]
        assert (there.locator(".bar").count() > 0, absent.locator(".bar").count(), cut.locator(".bar").count()) == (
            True, 0, 0,
        )  # fmt: skip
        assert there.locator(".moments button").first.is_visible()
        assert not absent.locator(".moments button").first.is_visible()
        absent.locator("summary").click()
        assert absent.locator(".moments button").first.is_visible()
        assert cut.locator("summary").count() == cut.locator(".moments").count() == 0
        assert faults(tab) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_everything_can_be_read(browser, server, video, width, scheme, tmp_path):
    with page(browser, server, width, color_scheme=scheme) as tab:
        choose(tab, video)
        ask(tab, QUERY, "a red " + "w" * 60 + " moves")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")

        assert faults(tab) == []
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 384) == (scheme == "light")
        assert "Not known, and left out: " + "w" * 60 in tab.inner_text("article >> nth=1")


def test_a_dropped_video(browser, server, video):
    with page(browser, server) as tab:
        data = tab.evaluate_handle(
            """(bytes) => {
              const data = new DataTransfer(), type = {type: "video/mp4"};
              data.items.add(new File([new Uint8Array(bytes)], "<b>dropped</b>.mp4", type));
              return data;
            }""",
            list(video.read_bytes()),
        )
        tab.dispatch_event("#drop", "drop", {"dataTransfer": data})
        until(tab, "document.getElementById('state').textContent.includes('ready')")

        assert "<b>dropped</b>.mp4" in tab.inner_text("#drop")
        assert tab.locator("b").count() == 0


def test_markup_in_a_sentence_stays_text(browser, server, video):
    sentence = "a red circle <img src=x onerror=document.title='hacked'>"
    with page(browser, server) as tab:
        choose(tab, video)
        ask(tab, sentence)

        assert tab.inner_text("h2") == sentence
        assert tab.locator("article img").count() == 0
        assert tab.title() == "Moments of a video"


def test_videos_of_the_server(browser, exported, tmp_path, video):
    """Chosen by name, in a folder too; they play, and no byte is sent up."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    for name in ("a.mp4", "inner/b <i>.mp4"):
        shutil.copy(video, root / name)
    with serving(exported.directory, tmp_path / "tmp", "--root", str(root)) as served, page(browser, served) as tab:
        names = tab.locator("#names button")
        names.nth(1).click()
        until(tab, "document.querySelector('#names button')?.textContent === 'b <i>.mp4'")
        assert tab.inner_text("#place span") == "inner/"
        names.first.click()
        until(tab, "document.getElementById('state').textContent.includes('ready for sentences')")
        ask(tab, QUERY)
        tab.locator(".moments button").first.click()

        until(tab, "document.getElementById('video').readyState > 1")
        assert tab.evaluate("document.getElementById('video').duration") == pytest.approx(7.4, abs=0.05)
        assert "inner/b <i>.mp4" not in tab.inner_text("#drop")
        assert not tab.evaluate("document.getElementById('shelf').open")
        assert served.metric('sdst_requests_total{method="GET",route="/v1/file",status="206"}') >= 1
        tab.click("summary")
        tab.click("#up")
        until(tab, "document.querySelector('#names button')?.textContent === 'a.mp4'")
        assert faults(tab) == []


def test_a_token_for_the_videos_of_the_server(browser, exported, tmp_path, video):
    """A player sends no token: the page fetches the file for it."""
    (tmp_path / "root").mkdir()
    shutil.copy(video, tmp_path / "root" / "a.mp4")
    environment = {"SDST_SERVE_TOKEN": TOKEN}
    options = ("--root", str(tmp_path / "root"))
    with (
        serving(exported.directory, tmp_path / "tmp", *options, environment=environment) as served,
        page(browser, served) as tab,
    ):
        tab.wait_for_selector("#token")
        assert tab.inner_text("#fault") == ""
        tab.fill("#token", "another")
        tab.press("#token", "Enter")
        until(tab, "document.getElementById('fault').textContent.includes('not the server')")
        tab.fill("#token", TOKEN)
        tab.press("#token", "Enter")
        tab.click("#names button")
        assert tab.inner_text("#fault") == ""
        assert not tab.is_visible("#token")
        ask(tab, QUERY)

        until(tab, "document.getElementById('video').readyState > 0")
        assert tab.evaluate("document.getElementById('video').src").startswith("blob:")


def test_refusals_are_shown(browser, server, video, tmp_path):
    junk, large = tmp_path / "junk.mp4", tmp_path / "large.mp4"
    junk.write_bytes(b"junk" * 100)
    large.write_bytes(b"x" * 1_200_000)
    with page(browser, server) as tab:
        tab.click("#go")
        assert tab.inner_text("#fault") == "Choose a video first."
        for path, said in ((junk, "not a video that can be read"), (large, "expected at most 1 MiB")):
            tab.set_input_files("#file", path)
            until(tab, f"document.getElementById('fault').textContent.includes('{said}')")
        choose(tab, video)
        tab.click("#go")
        assert tab.inner_text("#fault") == "Write a sentence first."
        tab.fill("#sentences", "zzz")
        tab.click("#go")
        until(tab, "document.getElementById('fault').textContent.includes('no word that the model knows')")
        ask(tab, QUERY)
        assert tab.inner_text("#fault") == ""


def test_a_video_that_expired_is_sent_again(browser, exported, tmp_path, video):
    """The first question is changed on its way to one about a video that is no longer there."""

    def about_another(route) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "video": "gone"}))

    with serving(exported.directory, tmp_path) as served, page(browser, served) as tab:
        choose(tab, video)
        tab.route("**/v1/ground", about_another, times=1)
        ask(tab, QUERY)

        assert served.metric('sdst_requests_total{method="POST",route="/v1/ground",status="404"}') == 1
        assert served.metric('sdst_requests_total{method="POST",route="/v1/videos",status="201"}') == 2


def test_a_token_is_asked_for(browser, exported, tmp_path, video):
    with (
        serving(exported.directory, tmp_path, environment={"SDST_SERVE_TOKEN": TOKEN}) as served,
        page(browser, served) as tab,
    ):
        tab.set_input_files("#file", video)
        tab.wait_for_selector("#token")
        tab.fill("#token", TOKEN)
        ask(tab, QUERY)

        assert tab.locator("article").count() == 1


def test_when_nothing_stands_out_is_the_reports_rule():
    text = (PAGE / "page.js").read_text()
    assert f"const WEAK_SCORE = {WEAK_SCORE};" in text
    assert f"const PRESENT = {PRESENT};" in text


def test_the_page_needs_no_network_and_no_inline_code():
    text = {path.name: path.read_text() for path in PAGE.iterdir()}

    assert set(text) == {"index.html", "page.js", "page.css", "icon.svg"}
    joined = "".join(text.values())
    assert set(re.findall(r"\w+://[\w./]+", joined)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<style|<script>|\son\w+=|style=|innerHTML|insertAdjacentHTML|eval\(", joined)
