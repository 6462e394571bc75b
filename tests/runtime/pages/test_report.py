"""The HTML report: self-contained, escaped, and drawn to scale."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sdst_runtime.contracts import Grounding, Moment
from sdst_runtime.errors import InputError
from sdst_runtime.pages.panels import QueryPanel, VideoPanel, best_iou
from sdst_runtime.pages.report import Curve, MetricRow, Report, StageLatency, Table, render_report, write_report

JPEG = b"\xff\xd8\xff\xe0 not a whole picture, but told by its first bytes"
HOSTILE = "<script>alert('x')</script> \"&amp;' </title><img src=http://example.org/a.png onerror=alert(1)>"


class Page(HTMLParser):
    """Every start tag in order, with its attributes, and the text between tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.text += " " if tag == "td" else ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # neither style nor script
            self.text += data

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str]]:
        return [
            a for name, a in self.tags if name == tag and (not css_class or css_class in a.get("class", "").split())
        ]


def percent(text: str) -> float:
    assert text.endswith("%")
    return float(text[:-1])


def query(
    *moments: tuple[float, float, float],
    truth: tuple[tuple[float, float], ...] | None = None,
    saliency: list[float] | None = None,
    sentence: str = "a red circle",
) -> QueryPanel:
    values = np.array([-0.2, 0.1, 0.6, 0.0] if saliency is None else saliency, dtype=np.float32)
    return QueryPanel(Grounding(sentence, tuple(Moment(*moment) for moment in moments), values, clip_s=10.0), truth)


def video(*queries: QueryPanel, duration_s: float = 40.0, frames: tuple[float, ...] = (10.0, 30.0)) -> VideoPanel:
    return VideoPanel("clip.mp4", duration_s, tuple((time_s, JPEG) for time_s in frames), queries)


def full_report() -> Report:
    return Report(
        title=HOSTILE,
        subtitle=HOSTILE,
        videos=(
            VideoPanel(
                HOSTILE,
                40.0,
                ((20.0, JPEG),),
                (query((10, 20, 0.9), truth=((12, 22),), sentence=HOSTILE),),
                note=HOSTILE,
            ),
        ),
        latency=(StageLatency(HOSTILE, 12.5, 20, HOSTILE, clips=5), StageLatency("copy", None, 0)),
        machine=((HOSTILE, HOSTILE),),
        metrics=(MetricRow(HOSTILE, 82.4, 21.3), MetricRow("mAP", 55.0)),
        stages=((HOSTILE, 3.0), ("train", 9.0)),
        curves=(Curve(HOSTILE, ((1, {HOSTILE: 2.0}), (2, {HOSTILE: float("nan")}), (3, {HOSTILE: 1.0}))),),
        facts=((HOSTILE, HOSTILE),),
        tables=(Table(HOSTILE, (HOSTILE, "b"), ((HOSTILE, "1"),), HOSTILE), Table("t", ("a",), (("1",),), folded=True)),
        warnings=(HOSTILE,),
        notes=(HOSTILE,),
    )


def test_everything_from_outside_is_escaped() -> None:
    page = Page(render_report(full_report()))
    assert len(page.all("script")) == 1  # the page's own
    assert len(page.all("img")) == 1  # the key frame
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.text.count(HOSTILE) >= 17


def test_page_is_self_contained() -> None:
    html = render_report(full_report())
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    assert "@import" not in style[1]
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert "http" not in render_report(Report("plain", videos=(video(query((1, 2, 0.5))),))).replace("http-equiv", "")
    assert any("default-src 'none'" in a.get("content", "") for a in page.all("meta"))


def test_bars_are_drawn_to_scale() -> None:
    page = Page(render_report(Report("r", videos=(video(query((10, 20, 0.9), (30, 44, 0.2), truth=((5, 25),))),))))
    (truth,) = [a for a in page.all("rect", "truth") if "%" in a["width"]]
    assert percent(truth["x"]) == pytest.approx(12.5, abs=0.1)
    assert percent(truth["width"]) == pytest.approx(50, abs=0.1)
    best, second = page.all("rect", "moment")
    assert percent(best["x"]) == pytest.approx(25, abs=0.1)
    assert percent(best["width"]) == pytest.approx(25, abs=0.1)
    assert percent(second["x"]) == pytest.approx(75, abs=0.1)
    assert percent(second["width"]) == pytest.approx(25, abs=0.1)  # cut where the video ends
    assert float(best["fill-opacity"]) > float(second["fill-opacity"]) > 0
    assert "top-1 IoU 0.50" in page.text


def test_frames_tile_the_axis_around_their_times() -> None:
    html = render_report(Report("r", videos=(video(frames=(30.0, 6.0, 10.0)),)))
    widths = [float(width) for width in re.findall(r'<div style="width:([\d.]+)%"><img', html)]
    assert widths == pytest.approx([20, 30, 50], abs=0.1)  # 0..8, 8..20, 20..40 s
    marks = [percent(a["cx"]) for a in Page(html).all("circle", "at") if "%" in a["cx"]]
    assert marks == pytest.approx([15, 25, 75], abs=0.1)


def test_saliency_steps_stand_on_their_clips() -> None:
    page = Page(render_report(Report("r", videos=(video(query((10, 20, 0.9)), duration_s=35.0),))))
    line = page.all("path", "curve")[-1]["d"]
    points = [tuple(map(float, point.split(","))) for point in line.removeprefix("M").split()]
    assert [x for x, _ in points] == pytest.approx([0, 28.571, 28.571, 57.143, 57.143, 85.714, 85.714, 100], abs=0.01)
    # Scale -0.25..1: 0.6 is 40 % of 1.25 below the top.
    assert [y for _, y in points[::2]] == pytest.approx([96, 72, 32, 80], abs=0.1)
    (values,) = [a["data-values"] for a in page.all("svg") if "data-values" in a]
    assert values == "-0.200 0.100 0.600 0.000"
    (peak,) = page.all("circle", "peak")
    assert percent(peak["cx"]) == pytest.approx(71.43, abs=0.1)
    assert percent(peak["cy"]) == pytest.approx(32, abs=0.1)


def test_best_moments_first_and_the_rest_in_one_row() -> None:
    moments = [(float(i), float(i + 2), 0.1 * (i + 1)) for i in range(8)]
    page = Page(render_report(Report("r", videos=(video(query(*moments)),))))
    labels = [a["aria-label"] for a in page.all("svg") if a.get("aria-label", "").startswith("moment ")]
    assert [label.split("score ")[1] for label in labels] == ["0.80", "0.70", "0.60", "0.50", "0.40"]
    assert labels[0] == "moment 1: 7.0–9.0 s, score 0.80"
    assert len(page.all("rect", "moment")) == 8
    assert "6–8" in page.text


def test_optional_parts_leave_no_trace() -> None:
    text = Page(render_report(Report("r", videos=(video(query((10, 20, 0.9)), frames=()),)))).text
    for word in ("truth", "IoU", "Accuracy", "Latency", "Training", "Stages of the run", "Notes", "shuffled"):
        assert word not in text, word
    assert "no moment found" in Page(render_report(Report("r", videos=(video(query()),)))).text
    assert "no moment of this video" in Page(render_report(Report("r", videos=(video(query(truth=())),)))).text
    assert "saliency of each clip" not in Page(render_report(Report("r"))).text


def test_latency_metrics_and_stages() -> None:
    rows = (
        StageLatency("vision", 800.0, 20, clips=40),
        StageLatency("copy", None, 0),
        StageLatency("Total", 1600.0, 20),
    )
    page = Page(
        render_report(
            Report("r", latency=rows, metrics=(MetricRow("R1@0.5", 80, 90.25),), stages=(("a", 3.0), ("b", 9.0)))
        )
    )
    cells = page.text.split()
    assert cells[cells.index("vision") :][:4] == ["vision", "800", "20.0", "20"]
    assert "not measured" in page.text
    assert "1,600" in cells
    assert "−10.2" in cells  # the gap may be negative
    widths = [percent(a["width"]) for a in page.all("rect", "fill")]
    assert widths == pytest.approx([80, 50, 0, 100, 25, 75], abs=0.1)
    assert percent(page.all("rect", "fill")[-1]["x"]) == pytest.approx(25, abs=0.1)


def test_curve_breaks_at_nan() -> None:
    points = tuple((epoch, {"loss": value}) for epoch, value in enumerate([4.0, 3.0, float("nan"), 1.0, 0.0]))
    (path,) = [a["d"] for a in Page(render_report(Report("r", curves=(Curve("loss", points),)))).all("path", "s0")][1:]
    assert path == "M0.00,0.00 L25.00,25.00 M75.00,75.00 L100.00,100.00"


def test_tables() -> None:
    table = Table("Others", ("method", "mAP"), (("ours", "50.25"), ("theirs, 2024", "")), note="not reproduced here")
    folded = Table("Settings", ("field", "value"), (("a", "1"), ("b", "step")), folded=True)
    html = render_report(Report("r", tables=(table, folded, Table("Empty", ("a",), ()))))
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    assert rows == [
        "<th>method</th><th class=n>mAP</th>",
        "<td>ours</td><td class=n>50.25</td>",
        "<td>theirs, 2024</td><td class=n></td>",
        "<th>field</th><th>value</th>",
        "<td>a</td><td>1</td>",
        "<td>b</td><td>step</td>",
    ]
    assert "<h2>Others</h2>" in html
    assert "<summary>Settings</summary>" in html
    assert "not reproduced here" in html
    assert "Empty" not in html


def test_warnings_come_before_the_numbers() -> None:
    text = Page(render_report(Report("r", warnings=("chosen on test",), metrics=(MetricRow("mAP", 50),)))).text
    assert text.index("chosen on test") < text.index("mAP")
    assert "shuffled" not in text  # no control, no column for it


def test_iou() -> None:
    assert best_iou(Moment(10, 20, 1.0), [(30, 40), (15, 25)]) == pytest.approx(1 / 3)
    assert best_iou(Moment(10, 20, 1.0), []) == 0.0
    assert best_iou(Moment(10, 10, 1.0), [(10, 10)]) == 0.0


def test_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, Report("caf\udce9.mp4"))  # a file name that is not UTF-8
    assert "caf?.mp4" in path.read_text(encoding="utf-8")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", Report("r"))
    with pytest.raises(InputError, match="cannot write"):
        write_report(tmp_path / "new", Report("r"))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "new", "report.html"]


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (video(duration_s=0.0), "duration above 0 s, got 0.0"),
        (video(duration_s=float("nan")), "duration above 0 s, got nan"),
        (VideoPanel("v", 4.0, ((1.0, b"GIF89a"),), ()), "JPEG or PNG"),
        (video(query(saliency=[0.1, float("nan")])), "saliency has NaN"),
    ],
)
def test_bad_input_is_named(panel: VideoPanel, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_report(tmp_path / "report.html", Report("r", videos=(panel,)))
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_does_not_fit_its_table_is_named(tmp_path: Path) -> None:
    table = Table("Others", ("method", "mAP"), (("ours", "50"), ("theirs",)))
    with pytest.raises(InputError, match=r"table 'Others': expected 2 cells a row, got 1: \('theirs',\)"):
        write_report(tmp_path / "report.html", Report("r", tables=(table,)))
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = "import sys, sdst_runtime.pages.report; print(sorted({'jinja2', 'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
