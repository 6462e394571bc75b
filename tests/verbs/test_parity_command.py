"""`sdst parity`: its report, its exit codes, and what it refuses before it compares."""

from __future__ import annotations

import dataclasses
import json
import math
import runpy
import shutil
from html import escape
from pathlib import Path

import onnx
import pytest
from browser import faults, opened
from parity_world import World, changed_bundle, make_world, plant, with_spec, write_data

from sdst.cli import main
from sdst_calib.parity.tolerances import DEFAULTS
from sdst_runtime.files import read_jsonl, write_jsonl
from sdst_runtime.grounding.bundle import Bundle, write_manifest


@pytest.fixture(scope="module")
def world(exported, exported_fp16, tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("parity")
    return make_world(exported.checkpoint_path, exported.directory, exported_fp16, root)


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main(["parity", *map(str, arguments), "--threads", "1"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def comparing_forbidden(monkeypatch):
    """What is refused before anything is compared never asks for a comparison."""
    monkeypatch.setattr("sdst.parity.measure_parity", None)


def test_the_verb_writes_json_and_a_page(world, tmp_path, capsys):
    code, said, err = run(
        capsys, world.fp32, world.fp16, "--reference", world.checkpoint, "--data", world.config, "--layers",
        "--out", tmp_path, "--points", 20, "--top-iou", 0.5, "--rank", 0.5, "--top-clip", 0.5, "--snr-db", 10,
        "--layer-snr-db=-20",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert said.count("within tolerance") == 2
    told = json.loads((tmp_path / "parity.json").read_text())
    assert [copy["precision"] for copy in told["candidates"]] == ["fp32", "fp16"]
    assert all(copy["passed"] for copy in told["candidates"])
    assert told["layers"]["fp16"]["first"] is None
    assert told["reference_precision"] == "torch"
    assert "Parity with" in (tmp_path / "parity.html").read_text()


def test_exit_code_1_beyond_a_tolerance_and_the_report_is_written(world, tmp_path, capsys):
    broken = changed_bundle(world.fp32, tmp_path / "broken", lambda graph: plant(graph, "dense.cross.query", 3.0))
    code, _, err = run(capsys, world.fp32, broken, "--data", world.config, "--layers", "--out", tmp_path / "out")
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith("error: beyond tolerance: broken: spans snr_db is ")
    told = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert told["layers"]["broken"]["first"]["node"].startswith("dense.cross.query/MatMul_")


def test_the_page_has_names_as_they_are_and_is_readable_on_a_phone(browser, world, tmp_path, capsys):
    name = ":smile: [bold]broken <b>" + "x" * 60
    broken = changed_bundle(world.fp32, tmp_path / name, lambda graph: plant(graph, "dense.cross.query", 3.0))
    code, _, _ = run(capsys, world.fp32, broken, "--data", world.config, "--layers", "--out", tmp_path)
    assert code == 1
    page = (tmp_path / "parity.html").read_text()
    told = json.loads((tmp_path / "parity.json").read_text())["layers"][name]
    assert f"<h3>{escape(name)}</h3>" in page
    listed = page[page.index(f"All {len(told['layers'])} tensors") :]
    for layer in told["layers"]:  # what a pointer reads from the bars, for those who have none
        assert f'<td class="name">{escape(layer["node"])}</td><td>{escape(layer["tensor"])}</td>' in listed
    for width in (390, 800, 1280):
        with opened(browser, tmp_path / "parity.html", width) as tab:
            assert faults(tab) == []


def test_the_coarsest_precision_of_a_bundle_counts(world, tmp_path, capsys):
    only = changed_bundle(world.fp32, tmp_path / "only", state("sdst.precision", "int8"), model="projection")
    half = changed_bundle(world.fp32, tmp_path / "half", state("sdst.precision", "fp16"))
    out, script = tmp_path / "out", tmp_path / "check.py"
    code, _, _ = run(
        capsys, world.fp32, only, half, "--data", world.config, "--out", out, "--polygraphy-script", script
    )  # fmt: skip
    assert code == 0
    told = json.loads((out / "parity.json").read_text())
    limits = {copy["name"]: {check["limit"] for check in copy["checks"]} for copy in told["candidates"]}
    assert [copy["precision"] for copy in told["candidates"]] == ["int8", "fp16"]
    assert DEFAULTS["int8"].snr_db in limits["only"]
    assert DEFAULTS["fp16"].snr_db in limits["half"]
    bundles = runpy.run_path(str(script))["BUNDLES"]
    assert [(name, limit) for name, _, limit in bundles] == [("only", 0.5), ("half", 0.02)]


def test_a_copy_that_is_not_finite_does_not_shift_the_others(world, tmp_path, capsys):
    broken = changed_bundle(world.fp32, tmp_path / "broken", lambda graph: plant(graph, "classify", math.nan))
    code, said, _ = run(capsys, world.fp32, broken, world.fp16, "--data", world.config)
    assert code == 1
    (row,) = (line for line in said.splitlines() if "MR-full-mAP" in line)
    assert [cell.strip() for cell in row.split("│")[1:3]] == ["MR-full-mAP", ""]
    (row,) = (line for line in said.splitlines() if "task" in line)
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["not measured, not finite", "12 of 12 queries"]


def without_windows(world, folder: Path) -> Path:
    """The data as a test split that says nothing of what is right."""
    shutil.copytree(world.config.parent, folder)
    rows = read_jsonl(folder / "val.jsonl")
    write_jsonl(folder / "test.jsonl", [{key: row[key] for key in ("qid", "query", "vid", "duration")} for row in rows])
    config = json.loads((folder / "config.json").read_text())
    config["data"] |= {"root": str(folder), "test": "test.jsonl"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "config.json"


def test_a_split_without_windows_says_so(world, tmp_path, capsys):
    config, out = without_windows(world, tmp_path / "data"), tmp_path / "out"
    code, said, err = run(
        capsys, world.fp32, world.fp16, "--data", config, "--split", "test", "--out", out, "--top-clip", 0.5
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "not measured, no windows" in said
    assert "not measured, no windows" in (out / "parity.html").read_text()
    told = json.loads((out / "parity.json").read_text())
    assert (told["queries"], told["labelled"], told["candidates"][0]["metrics"]) == (12, 0, [])


def test_points_without_windows_are_refused(world, tmp_path, capsys, comparing_forbidden):
    config, out = without_windows(world, tmp_path / "data"), tmp_path / "out"
    code, _, err = run(
        capsys, world.fp32, world.fp16, "--data", config, "--split", "test", "--points", 1, "--out", out
    )  # fmt: skip
    assert (code, err.count("\n"), out.exists()) == (2, 1, False)
    assert err.startswith("error: --points 1: ")
    assert "test.jsonl holds no windows" in err


def test_places_that_cannot_be_written_are_refused_first(world, tmp_path, capsys, comparing_forbidden):
    occupied = tmp_path / "file"
    occupied.write_text("here first")
    for arguments, words in (
        (["--out", occupied], f"cannot write {occupied}: "),
        (["--polygraphy-script", occupied / "check.py"], f"cannot write {occupied}: "),
        (["--polygraphy-script", tmp_path], "which ends in .py, got a directory"),
        (["--polygraphy-script", tmp_path / "check"], "which ends in .py, got a name that ends in ''"),
    ):
        code, _, err = run(capsys, world.fp32, world.fp16, "--data", world.config, *arguments)
        assert (code, err.count("\n"), words in err) == (2, 1, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert occupied.read_text() == "here first"


def test_the_report_is_there_before_the_script(world, tmp_path, capsys):
    (tmp_path / "check.inputs.json").mkdir()
    code, _, err = run(
        capsys, world.fp32, world.fp16, "--data", world.config,
        "--out", tmp_path / "out", "--polygraphy-script", tmp_path / "check.py",
    )  # fmt: skip
    assert (code, err.count("\n"), "cannot write" in err) == (2, 1, True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"parity.json", "parity.html"}
    assert not (tmp_path / "check.py").exists()


def test_tensors_without_a_twin_are_counted(world, tmp_path, capsys):
    def rename(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name.startswith("classify/") and n.op_type in ("MatMul", "Gemm"))
        node.name = f"elsewhere/{node.op_type}_1"

    other = changed_bundle(world.fp32, tmp_path / "other", rename)
    code, said, _ = run(capsys, world.fp32, other, "--data", world.config, "--layers", "--out", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "parity.json").read_text())["layers"]["other"]
    count = len(told["unmatched"])
    assert code == 0
    assert count > 0
    assert {name.split(": ")[0] for name in told["unmatched"]} == {"head"}
    assert f"{count} without a twin, not compared" in said
    assert f"Not compared: {count} tensor" in (tmp_path / "out" / "parity.html").read_text()


def drop(key: str):
    def change(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.metadata_props if entry.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    return change


def state(key: str, value: str):
    def change(model: onnx.ModelProto) -> None:
        next(entry for entry in model.metadata_props if entry.key == key).value = value

    return change


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-abs", "nan"], "tolerance max_abs: expected a number of at least 0, got nan"),
        (["--points", "-1"], "tolerance points: expected a number of at least 0, got -1.0"),
        (["--cosine", "1.5"], "tolerance cosine: expected a number from -1 to 1, got 1.5"),
        (["--snr-db", "inf"], "tolerance snr_db: expected a number, got inf"),
    ],
)
def test_tolerances_that_are_no_numbers(world, capsys, arguments, words):
    code, _, err = run(capsys, world.fp32, world.fp16, "--data", world.config, *arguments)
    assert (code, err) == (2, f"error: {words}\n")


def test_a_tolerance_in_words_is_refused_by_the_parser(world, capsys):
    with pytest.raises(SystemExit) as caught:
        run(capsys, world.fp32, world.fp16, "--data", world.config, "--points", "few")
    assert caught.value.code == 2
    assert "few" in capsys.readouterr().err


def test_bundles_that_cannot_be_compared(world, tmp_path, capsys):
    no_steps = changed_bundle(world.fp16, tmp_path / "no_steps", drop("sdst.steps"))
    code, _, err = run(capsys, world.fp32, no_steps, "--data", world.config)
    assert code == 2
    assert "lacks the checkpoint's step count (sdst.steps is '')" in err
    no_precision = changed_bundle(world.fp16, tmp_path / "no_precision", drop("sdst.precision"))
    code, _, err = run(capsys, world.fp32, no_precision, "--data", world.config)
    assert (code, "precision: expected one of fp32, fp16, int8, got ''" in err) == (2, True)
    assert f"{no_precision}: head's precision" in err
    for arguments, words in (
        ([world.fp32], "two bundles, of which the first is the reference"),
        ([world.fp32, world.fp32], "expected different models"),
        ([world.fp32, world.checkpoint], "a checkpoint can be the --reference only"),
        ([world.fp32, world.fp16 / "nothing"], "nothing"),
    ):
        code, _, err = run(capsys, *arguments, "--data", world.config)
        assert (code, words in err, err.count("\n")) == (2, True, 1)


def test_another_contract_is_refused(world, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(world.fp16, other)
    manifest = Bundle.open(other).manifest
    for name in manifest.models.values():
        model = onnx.load(other / name)
        with_spec(model, clip_s=3.0)
        onnx.save(model, other / name)
    spec = dataclasses.replace(manifest.spec, clip_s=3.0)
    write_manifest(other, spec, manifest.models, manifest.sdst_version)
    code, _, err = run(capsys, world.fp32, other, "--data", world.config)
    assert (code, f"disagree on clip_s: {other} has 3.0" in err) == (2, True)
    config = write_data(tmp_path / "data", dataclasses.replace(manifest.spec, frames_per_clip=9))
    code, _, err = run(capsys, world.fp32, world.fp16, "--data", config)
    assert (code, "frames_per_clip" in err) == (2, True)


def test_a_split_without_queries_is_refused(world, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(world.config.parent, data)
    (data / "val.jsonl").write_text("")
    code, _, err = run(capsys, world.fp32, world.fp16, "--data", world.config, "--root", data)
    assert (code, err.count("\n"), "val.jsonl" in err) == (2, 1, True)
