"""The report of a run: every number from its files, unfinished runs, and whose numbers stand beside it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.run_report import write_run_report
from sdst_train.presets import PRESETS

EPOCHS = 3
BRIEF = {
    "MR-full-R1@0.5": 70.25,
    "MR-full-R1@0.7": 55.5,
    "MR-full-mAP": 50.75,
    "HL-min-VeryGood-mAP": 41.0,
    "HL-min-VeryGood-Hit1": 66.5,
}
NOT_REPRODUCED = "the authors' numbers on QVHighlights val, not reproduced here"


class Text(HTMLParser):
    """The text of a page, and its tables as rows of cells by title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.title, self.inside = "", "", ""
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "summary"):
            self.title, self.inside = "", "title"
        elif tag == "tr":
            self.tables.setdefault(self.title, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.title][-1].append("")
            self.inside = "cell"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "summary", "td", "th"):
            self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside == "title":
            self.title += data
        elif self.inside == "cell":
            self.tables[self.title][-1][-1] += data


def epoch(number: int, metrics: dict[str, float]) -> dict:
    losses = {
        "focal": 4.0 / number,
        "l1": 2.0,
        "overlap": 1.0,
        "actionness": 0.5,
        "highlight": 0.25,
        "alignment": 0.125,
    }
    return {"epoch": number, "step": 7 * number, "seconds": 60.0 * number, "lr": 2e-4, **losses, "loss": 8.0, **metrics}


def length(mean_ap: float | None) -> dict:
    return {"MR-mAP": {"0.5": 60.0, "average": mean_ap}, "MR-R1": {"0.5": 30.5, "0.7": 20.25}}


def make_run(place: Path, config: TrainConfig, brief: dict[str, float] = BRIEF, *, finished: bool = True) -> Path:
    """A run folder as training leaves it; without `finished` it was stopped after its second epoch."""
    run = place / "night"
    end = {"reason": "all epochs", "best_epoch": 2, "seconds": 5400.0}
    write_json(run / "config.json", asdict(config))
    write_json(
        run / "run.json",
        {
            "started": "2026-01-02T03:04:05+00:00",
            "versions": {"torch": "2.8.0"},
            "machine": {"processor": "a Xeon", "GPU": "H200"},
            "parameters": 4_312_200,
            "train_queries": 7218,
            "val_queries": 1550,
            "repairs": ["train: 2 windows ended before they began: swapped; first: qid 7"],
            "world_size": 2,
            "finished": end if finished else None,
        },
    )
    logged = [epoch(n, {name: value - 10 + n for name, value in brief.items()}) for n in range(1, EPOCHS + finished)]
    write_jsonl(run / "metrics.jsonl", logged)
    if finished:
        lengths = {"full": length(50.75), "long": length(55.0), "middle": length(52.0), "short": length(None)}
        write_json(run / "val_metrics.json", {"brief": brief, **(lengths if "MR-full-mAP" in brief else {})})
    return run


def report_of(run: Path) -> tuple[dict, Text]:
    page = write_run_report(run)
    assert page == run / "report.html"
    return json.loads((run / "report.json").read_text()), Text(page.read_text(encoding="utf-8"))


def qvhighlights(**changes: object) -> TrainConfig:
    return replace(PRESETS["qvhighlights"], epochs=EPOCHS, **changes)


def test_the_charts_of_one_epoch_show_their_points(tmp_path):
    run = make_run(tmp_path, qvhighlights())
    write_jsonl(run / "metrics.jsonl", [epoch(1, {name: value - 9 for name, value in BRIEF.items()})])
    page = write_run_report(run).read_text(encoding="utf-8")
    dots = re.findall(r'<circle class="dot s(\d)" cx="50\.00%"', page)
    # The loss, its six parts in two charts, retrieval, highlights, and the learning rate.
    assert dots == ["0", *"0123", *"01", *"012", *"01", "0"]
    assert page.count(">epoch 1</text>") == 6


def test_a_finished_run(tmp_path):
    numbers, page = report_of(make_run(tmp_path, qvhighlights(seed=5)))

    shown = {"R1@0.5": 70.25, "R1@0.7": 55.5, "mAP": 50.75, "HD mAP": 41.0, "HIT@1": 66.5}
    assert numbers["headline"] == shown
    assert (numbers["run"], numbers["preset"], numbers["seed"]) == ("night", "qvhighlights", 5)
    assert numbers["finished"] == {"reason": "all epochs", "best_epoch": 2, "seconds": 5400.0}
    assert numbers["machine"] == {"processor": "a Xeon", "GPU": "H200"}
    assert [row[:2] for row in page.tables["Accuracy"]] == [
        ["metric", "value"],
        ["R1@0.5", "70.2"], ["R1@0.7", "55.5"], ["mAP", "50.8"], ["HD mAP", "41.0"], ["HIT@1", "66.5"],
    ]  # fmt: skip
    for words in ("7,218 training, 1,550 validation", "4,312,200", "90.0 min", "2 of 3", "5, one run"):
        assert words in page.text, words
    assert ["processor", "a Xeon"] in page.tables["Machine and versions"]
    assert ["torch", "2.8.0"] in page.tables["Machine and versions"]
    assert page.tables["Repairs of the data"][1:] == [
        ["train: 2 windows ended before they began: swapped; first: qid 7"]
    ]
    assert "unfinished" not in page.text


def test_curves(tmp_path):
    numbers, page = report_of(make_run(tmp_path, qvhighlights()))

    curves = {curve["title"]: curve["points"] for curve in numbers["curves"]}
    assert list(curves) == [
        "Loss",
        "Parts of the loss, 1",
        "Parts of the loss, 2",
        "Validation, percent",
        "Validation of highlights, percent",
        "Learning rate",
    ]
    assert curves["Loss"] == [[1, {"loss": 8.0}], [2, {"loss": 8.0}], [3, {"loss": 8.0}]]
    assert curves["Parts of the loss, 1"][1] == [2, {"focal": 2.0, "l1": 2.0, "overlap": 1.0, "actionness": 0.5}]
    assert curves["Parts of the loss, 2"][0] == [1, {"highlight": 0.25, "alignment": 0.125}]
    assert curves["Validation, percent"][2] == [3, {"R1@0.5": 63.25, "R1@0.7": 48.5, "mAP": 43.75}]
    assert curves["Validation of highlights, percent"][0] == [1, {"HD mAP": 32.0, "HIT@1": 57.5}]
    assert curves["Learning rate"][0] == [1, {"rate": 2e-4}]
    for title in curves:
        assert title in page.text


def test_published_numbers_stand_beside_the_run(tmp_path):
    numbers, page = report_of(make_run(tmp_path, qvhighlights()))

    assert page.tables["Beside published numbers, QVHighlights"] == [
        ["method", "R1@0.5", "R1@0.7", "mAP", "HD mAP", "HIT@1", "trained parameters, M"],
        ["this run", "70.25", "55.50", "50.75", "41.00", "66.50", "4.3"],
        ["SDST (paper)", "73.68", "60.90", "55.60", "44.00", "72.00", "4.1"],
        ["SG-DETR (as the SDST paper lists it)", "", "", "55.64", "43.91", "71.47", "15.0"],
        ["R2-Tuning (as the SDST paper lists it)", "68.71", "52.06", "47.59", "40.59", "64.32", "2.7"],
        ["Sim-DETR on the same features (third party)", "74.71", "60.77", "53.87", "43.80", "71.87", "12.2"],
    ]
    assert NOT_REPRODUCED in page.text
    assert numbers["published"]["rows"][0]["mAP"] == 50.75


@pytest.mark.parametrize("preset", ["demo", ""])
def test_no_published_numbers_for_other_data(tmp_path, preset):
    numbers, page = report_of(make_run(tmp_path, qvhighlights(preset=preset)))

    assert numbers["published"] is None
    assert not [title for title in page.tables if "published" in title]
    assert "73.68" not in page.text


@pytest.mark.parametrize(("preset", "theirs"), [("charades", ["52.60", "61.20"]), ("tacos", ["32.30", "42.20"])])
def test_moment_metrics(tmp_path, preset, theirs):
    brief = {"R1@0.3": 71.5, "R1@0.5": 60.0, "R1@0.7": 40.0, "mIoU": 50.5}
    numbers, page = report_of(make_run(tmp_path, replace(PRESETS[preset], epochs=EPOCHS), brief))

    assert numbers["headline"] == brief
    assert numbers["by_length"] == []
    assert "By length of the window" not in page.tables
    (name,) = [title for title in page.tables if "published" in title]
    assert page.tables[name] == [
        ["method", "R1@0.7", "mIoU", "trained parameters, M"],
        ["this run", "40.00", "50.50", "4.3"],
        ["SDST (paper)", *theirs, ""],
    ]
    validation = next(c["points"] for c in numbers["curves"] if c["title"] == "Validation, percent")
    assert validation[0] == [1, {"R1@0.3": 62.5, "R1@0.5": 51.0, "R1@0.7": 31.0, "mIoU": 41.5}]
    assert "mIoU" not in {name for c in numbers["curves"] if "loss" in c["title"] for _, v in c["points"] for name in v}


def test_by_length_of_the_window(tmp_path):
    _, page = report_of(make_run(tmp_path, qvhighlights()))

    assert page.tables["By length of the window"] == [
        ["length", "seconds", "mAP", "R1@0.5", "R1@0.7"],
        ["short", "above 0, up to 10", "", "30.50", "20.25"],
        ["middle", "above 10, up to 30", "52.00", "30.50", "20.25"],
        ["long", "above 30, up to 150", "55.00", "30.50", "20.25"],
    ]


WINDOWS = {
    "1": {"queries": 9, "mAP": 61.25, "R1@0.5": 70.0, "R1@0.7": 50.0},
    "3 or more": {"queries": 4, "mAP": 30.5, "R1@0.5": 75.0, "R1@0.7": 25.0},
}
PRESENCE = {"queries": 20, "absent": 7, "AUROC": 0.9625, "ECE": 0.0412, "threshold": 0.5, "precision": 92.5}


def absent_run(place: Path) -> Path:
    """A run on data with absent queries."""
    run = make_run(place, qvhighlights(), {**BRIEF, "presence-AUROC": 96.25})
    metrics = json.loads((run / "val_metrics.json").read_text())
    write_json(run / "val_metrics.json", {**metrics, "by_windows": WINDOWS, "presence": PRESENCE})
    return run


def test_by_number_of_windows_and_presence(tmp_path):
    numbers, page = report_of(absent_run(tmp_path))

    assert page.tables["By number of windows"] == [
        ["windows", "queries", "mAP", "R1@0.5", "R1@0.7"],
        ["1", "9", "61.25", "70.00", "50.00"],
        ["3 or more", "4", "30.50", "75.00", "25.00"],
    ]
    assert page.tables["Whether the event is there"] == [
        ["presence", "value"], ["queries", "20"], ["absent", "7"], ["AUROC", "0.963"], ["ECE", "0.041"],
        ["threshold", "0.500"], ["precision", "92.500"],
    ]  # fmt: skip
    assert (numbers["presence"], numbers["by_windows"][1]["queries"]) == (PRESENCE, 4)
    assert numbers["headline"]["presence AUROC"] == 96.25
    curves = {curve["title"]: curve["points"] for curve in numbers["curves"]}
    assert curves["Validation of presence, percent"][0] == [1, {"presence AUROC": 87.25}]
    assert "presence AUROC" not in curves["Validation, percent"][0][1]
    assert not [title for title in curves if "presence-AUROC" in str(curves[title])]


@pytest.mark.parametrize(
    "changes", [{"by_windows": {"1": {"queries": 3}}}, {"by_windows": [1]}, {"presence": 3}, {"presence": {"ECE": "x"}}]
)
def test_metrics_of_another_form_are_refused(tmp_path, changes):
    run = absent_run(tmp_path)
    metrics = json.loads((run / "val_metrics.json").read_text())
    write_json(run / "val_metrics.json", {**metrics, **changes})
    with pytest.raises(InputError, match=r"val_metrics\.json: expected .*give the folder of a run"):
        write_run_report(run)


def test_settings_that_differ_come_first(tmp_path):
    config = TrainConfig(epochs=EPOCHS, learning_rate=1e-4, model=ModelConfig(queries=10))
    numbers, page = report_of(make_run(tmp_path, config))

    assert numbers["config"]["changed"] == {"epochs": EPOCHS, "learning_rate": 1e-4, "model.queries": 10}
    assert ["model.queries", "10"] in page.tables["Settings that differ from the defaults"]
    assert numbers["config"]["default"]["model.heads"] == 8
    assert ["model.heads", "8"] in page.tables["Settings left at their defaults"]


def test_the_split_that_chose_the_epoch_is_said(tmp_path):
    numbers, page = report_of(make_run(tmp_path / "a", qvhighlights()))
    assert numbers["warnings"] == [
        "The best epoch is chosen by MR-full-mAP on the val split, which these numbers are measured on: they are a "
        "little optimistic."
    ]
    assert numbers["warnings"][0] in page.text

    brief = {"R1@0.3": 71.5, "R1@0.5": 60.0, "R1@0.7": 40.0, "mIoU": 50.5}
    numbers, page = report_of(make_run(tmp_path / "b", PRESETS["charades"], brief))
    assert "The best epoch is chosen by mIoU on the split that is also the test split" in page.text


def test_an_unfinished_run_has_a_report(tmp_path):
    numbers, page = report_of(make_run(tmp_path, qvhighlights(), finished=False))

    assert numbers["finished"] is None
    assert numbers["epochs_logged"] == 2
    assert numbers["headline"]["mAP"] == 42.75
    assert "This run is unfinished: 2 of 3 epochs are logged" in page.text
    assert "By length of the window" not in page.tables


def test_a_run_without_an_epoch_has_a_report(tmp_path):
    run = make_run(tmp_path, qvhighlights(), finished=False)
    (run / "metrics.jsonl").unlink()

    numbers, page = report_of(run)

    assert (numbers["headline"], numbers["curves"]) == ({}, [])
    assert "0 of 3 epochs" in page.text


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: .*give the folder of a run"):
        write_run_report(tmp_path)

    run = make_run(tmp_path, qvhighlights())
    write_json(run / "run.json", {"started": "now"})
    with pytest.raises(InputError, match=r"run\.json: expected it to hold finished, parameters, "):
        write_run_report(run)
    assert not (run / "report.html").exists()
