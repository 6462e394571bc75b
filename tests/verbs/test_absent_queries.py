"""`sdst eval`, `score` and `submit` on data with absent queries, and queries of one window to three."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from random_split import QUERIES, annotation, write_features

from sdst_runtime.data.config import DataConfig
from sdst_runtime.files import read_jsonl, write_json, write_jsonl
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.grounding.scores import MomentLine, PresenceLine, Scores
from sdst_runtime.metrics.evaluator import evaluate
from sdst_runtime.metrics.presence import auroc
from sdst_train.config import TrainConfig

ABSENT = (1, 4, 7, 10)  # qids
SCORES = Scores(1, PresenceLine(0.5, 1.0), MomentLine(1.5, 0.25, -1.0), 90, 30)


@dataclass(frozen=True)
class World:
    """A data set and two models: one that says whether an event is there, and one that does not."""

    config: Path
    root: Path
    bundle: Path
    silent: Path

    def truth(self, split: str = "val") -> list[dict]:
        return read_jsonl(self.root / f"{split}.jsonl")


def rows_of(rng: np.random.Generator, split: str) -> list[dict]:
    """A third absent; of the others one has two windows and one has three. No two sentences share a word."""
    rows = [annotation(rng, qid, split) | {"query": f"{split}{qid} happens{qid}"} for qid in range(QUERIES)]
    for row in rows:
        if row["qid"] in ABSENT and split == "val":
            for name in ("relevant_windows", "relevant_clip_ids", "saliency_scores"):
                del row[name]
            row["absent"] = True
    rows[0]["relevant_windows"] = [[0, 4], [8, 12]]
    rows[2]["relevant_windows"] = [[0, 3], [6, 9], [12, 15]]
    return rows


@pytest.fixture(scope="module")
def world(exported, present, tmp_path_factory) -> World:
    root, rng = tmp_path_factory.mktemp("absent"), np.random.default_rng(0)
    data = DataConfig(root=str(root), train="", val="val.jsonl", test="test.jsonl", clip_s=1.0)
    spec = Bundle.open(exported.directory).manifest.spec
    for split in ("val", "test"):
        rows = rows_of(rng, split)
        write_jsonl(root / f"{split}.jsonl", rows)
        write_features(rows, root / "features", replace(spec, layers=3), rng)
    write_json(root / "config.json", asdict(TrainConfig(data=data)))
    return World(root / "config.json", root, present.directory, exported.directory)


def with_data(world: World, folder: Path, **changes) -> Path:
    """A config whose data differ."""
    config = json.loads(world.config.read_text())
    config["data"] |= changes
    write_json(folder / "config.json", config)
    return folder / "config.json"


def sdst(capsys, *arguments: object) -> tuple[str, str]:
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out, err


def cells(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


# ---------------------------------------------------------------- eval


def test_eval_measures_the_present_and_the_presence(capsys, world, tmp_path):
    file = tmp_path / "predictions.jsonl"
    out, err = sdst(capsys, "eval", world.bundle, "--data", world.config, "--json", "--predictions", file)
    result, rows = json.loads(out), read_jsonl(file)
    assert err == ""
    assert len(rows) == QUERIES
    there = [row for row in rows if row["qid"] not in ABSENT]
    truth = [row for row in world.truth() if row["qid"] not in ABSENT]
    official = evaluate(there, truth, clip_s=1.0)
    auc = auroc(np.array([row["pred_presence"] for row in rows]), np.array([r["qid"] not in ABSENT for r in rows]))
    assert result["presence"]["AUROC"] == pytest.approx(auc)
    assert (result["presence"]["queries"], result["presence"]["absent"]) == (QUERIES, len(ABSENT))
    assert result["brief"].pop("presence-AUROC") == pytest.approx(100 * auc)
    assert {name: result[name] for name in official} == official
    assert {name: group["queries"] for name, group in result["by_windows"].items()} == {"1": 6, "2": 1, "3 or more": 1}

    scored, _ = sdst(capsys, "score", file, world.root / "val.jsonl", "--clip-s", 1)
    told = json.loads(scored)
    assert told.pop("presence") == result["presence"]
    assert told == official


def test_eval_prints_three_tables(capsys, world):
    result = json.loads(sdst(capsys, "eval", world.bundle, "--data", world.config, "--json")[0])
    out, _ = sdst(capsys, "eval", world.bundle, "--data", world.config)
    found = cells(out)
    assert "val: 8 queries, percent" in out
    assert "12 queries, 4 of them absent" in out
    groups, presence = result["by_windows"], result["presence"]
    for name, group in groups.items():
        assert [name, str(group["queries"]), *(f"{group[m]:.2f}" for m in ("mAP", "R1@0.5", "R1@0.7"))] in found
    assert ["AUROC", f"{presence['AUROC']:.4f}"] in found
    assert ["refused", f"{presence['refused']:.2f}"] in found
    assert ["R1@0.7 with absent", f"{presence['R1@0.7 with absent']:.2f}"] in found
    assert not [row for row in found if row[0] == "presence-AUROC"]


def test_a_model_that_does_not_say_is_measured_on_the_present(capsys, world, tmp_path):
    file = tmp_path / "predictions.jsonl"
    out, err = sdst(capsys, "eval", world.silent, "--data", world.config, "--json", "--predictions", file)
    assert "4 absent queries are not measured: the model does not say" in err
    result = json.loads(out)
    assert "presence" not in result
    assert "presence-AUROC" not in result["brief"]
    told, _ = sdst(capsys, "score", file, world.root / "val.jsonl", "--clip-s", 1)
    assert "presence" not in json.loads(told)


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_gets_the_absent_queries_of_training(capsys, world, tmp_path, split):
    """Drawn where the data have none of their own, always the same, and for val alone."""
    config = with_data(world, tmp_path, val="test.jsonl", negatives=1 / 3)
    arguments = ("eval", world.bundle, "--data", config, "--split", split, "--json", "--predictions")
    result, again = (json.loads(sdst(capsys, *arguments, tmp_path / name)[0]) for name in ("a.jsonl", "b.jsonl"))
    assert result == again
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert rows == read_jsonl(tmp_path / "b.jsonl")
    assert len(rows) == (18 if split == "val" else 12)
    if split == "test":
        assert "presence" not in result
        return
    assert (result["presence"]["queries"], result["presence"]["absent"]) == (18, 6)
    assert [row["qid"] for row in rows] == list(range(18))
    own = {(row["vid"], row["query"]) for row in world.truth("test")}
    assert not own & {(row["vid"], row["query"]) for row in rows[12:]}
    present = json.loads(sdst(capsys, "eval", world.bundle, "--data", with_data(world, tmp_path, val="test.jsonl"),
                              "--json")[0])  # fmt: skip
    assert result["full"] == present["full"]


def test_a_calibrated_bundle_predicts_probabilities(capsys, world, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(world.bundle, bundle)
    write_json(bundle / "scores.json", dataclasses.asdict(SCORES))
    manifest = Bundle.open(world.bundle).manifest
    write_manifest(bundle, manifest.spec, manifest.models, manifest.sdst_version)
    results = {}
    for name, model in (("raw", world.bundle), ("told", bundle)):
        file = tmp_path / f"{name}.jsonl"
        results[name] = json.loads(
            sdst(capsys, "eval", model, "--data", world.config, "--json", "--predictions", file)[0]
        )
    for raw, told in zip(*(read_jsonl(tmp_path / f"{name}.jsonl") for name in results), strict=True):
        assert told["pred_presence"] == pytest.approx(SCORES.presence(raw["pred_presence"]), rel=1e-9)
        assert told["pred_relevant_windows"] == [
            [start, end, pytest.approx(SCORES.moment(score, raw["pred_presence"]), rel=1e-9)]
            for start, end, score in raw["pred_relevant_windows"]
        ]
    assert results["raw"]["full"] == results["told"]["full"]
    assert results["raw"]["presence"]["AUROC"] == results["told"]["presence"]["AUROC"]
    assert results["raw"]["presence"]["ECE"] != results["told"]["presence"]["ECE"]


# ---------------------------------------------------------------- score and submit


def test_score_without_absent_queries_is_as_it_was(capsys, world, tmp_path):
    """A presence in the predictions changes no byte of it."""
    truth = [row for row in world.truth() if row["qid"] not in ABSENT]
    write_jsonl(tmp_path / "truth.jsonl", truth)
    sdst(capsys, "eval", world.bundle, "--data", world.config, "--predictions", tmp_path / "all.jsonl")
    rows = [row for row in read_jsonl(tmp_path / "all.jsonl") if row["qid"] not in ABSENT]
    write_jsonl(tmp_path / "told.jsonl", rows)
    write_jsonl(tmp_path / "silent.jsonl", [{k: v for k, v in row.items() if k != "pred_presence"} for row in rows])
    told, silent = (
        sdst(capsys, "score", tmp_path / f"{name}.jsonl", tmp_path / "truth.jsonl", "--moments", "--clip-s", 1)[0]
        for name in ("told", "silent")
    )
    assert told == silent
    expected = evaluate(rows, truth, clip_s=1.0)
    assert list(json.loads(told)) == [*expected, "moments"]


def test_score_names_what_is_wrong(capsys, world, tmp_path):
    sdst(capsys, "eval", world.bundle, "--data", world.config, "--predictions", tmp_path / "all.jsonl")
    rows = read_jsonl(tmp_path / "all.jsonl")
    del rows[3]["pred_presence"]
    write_jsonl(tmp_path / "one.jsonl", rows)
    line = fails(capsys, "score", tmp_path / "one.jsonl", world.root / "val.jsonl", "--clip-s", 1)
    assert "prediction qid 3: expected pred_presence of 0 to 1, got None" in line
    write_jsonl(tmp_path / "truth.jsonl", [row | {"absent": True} for row in world.truth()])
    line = fails(capsys, "score", tmp_path / "all.jsonl", tmp_path / "truth.jsonl")
    assert "all 12 queries are absent, no moment to score" in line
    write_jsonl(tmp_path / "truth.jsonl", [{"absent": True}])
    assert "needs a qid" in fails(capsys, "score", tmp_path / "all.jsonl", tmp_path / "truth.jsonl")


def test_a_submission_has_no_absent_queries(capsys, world, tmp_path):
    line = fails(capsys, "submit", world.bundle, "--data", world.config, "--out", tmp_path / "s")
    assert "4 absent queries, first qid 1; a submission has none: leave the rows" in line
    assert not (tmp_path / "s").exists()
    config = with_data(world, tmp_path, val="test.jsonl", negatives=0.5)  # drawn ones are not submitted
    sdst(capsys, "submit", world.bundle, "--data", config, "--out", tmp_path / "s", "--round-s", 1)
    rows = read_jsonl(tmp_path / "s" / "hl_val_submission.jsonl")
    assert len(rows) == QUERIES
    assert all("pred_presence" not in row for row in rows)
