"""`make device-check` as far as it goes without a device: the steps are real, the engines are ONNX files."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
from parity_world import changed_bundle, plant
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import device_check  # pyright: ignore[reportMissingImports]
import device_parity  # pyright: ignore[reportMissingImports]

OUTPUTS = {
    "vision": ["features"],
    "text": ["features"],
    "projection": ["projected"],
    "head": ["spans", "scores", "saliency"],
    "sentence": ["sentence"],
}


@pytest.fixture
def steps(monkeypatch):
    """STEPS of the check, to be changed; the bench is short."""
    changed = dict(device_check.STEPS)
    monkeypatch.setattr(device_check, "STEPS", changed)
    bench = changed["bench"]
    short = ("--seconds", "0.01", "--warm-up", "0", "--clips", "12", "--queries", "1", "--streams", "1")
    changed["bench"] = dataclasses.replace(bench, commands=lambda check: [[*c, *short] for c in bench.commands(check)])
    return changed


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def checked(bundle: Path, out: Path) -> tuple[int, dict]:
    code = device_check.main([str(bundle), "--out", str(out)])
    return code, json.loads((out / "device-check.json").read_text())


def copying(bundle: Path):
    """The commands of a build that copies a bundle instead."""
    code = "import shutil, sys; shutil.copytree(*sys.argv[1:])"
    return lambda check: [[*python(code), str(bundle), str(check.engines)]]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="needs a machine without TensorRT")
def test_without_tensorrt_the_report_says_so_and_holds_the_rest(exported, steps, tmp_path):
    code, report = checked(exported.directory, tmp_path / "out")
    found = report["steps"]
    assert (code, report["passed"]) == (1, False)
    assert {name: step["status"] for name, step in found.items() if name != "plugin"} == {
        "doctor": "passed", "build": "failed", "engines": "not run", "parity": "not run", "ground": "not run",
        "bench": "passed",
    }  # fmt: skip
    assert found["build"]["message"].startswith("TensorRT cannot be imported (No module named 'tensorrt'): ")
    assert found["parity"]["message"] == f"needs the engines, and build did not pass: {found['build']['message']}"
    assert "absent" in {check["state"] for check in found["doctor"]["found"]["checks"]}
    assert {t["stage"] for t in found["bench"]["found"]["timings"] if t["p50_ms"]} == {
        "vision", "text", "projection", "head",
    }  # fmt: skip
    assert report["versions"]["numpy"]
    assert report["versions"]["tensorrt"] == ""
    assert set(report["bundle"]["files"]) >= {"head.onnx", "tokenizer.json"}


def test_the_report_of_a_check_that_passes(exported_fp16, steps, tmp_path):
    steps["plugin"] = dataclasses.replace(steps["plugin"], commands=lambda check: [python("print('device  cuda')")])
    steps["build"] = dataclasses.replace(steps["build"], commands=copying(exported_fp16))
    code, report = checked(exported_fp16, tmp_path / "out")
    assert {name: step["message"] for name, step in report["steps"].items()} == dict.fromkeys(device_check.STEPS, "")
    assert (code, report["passed"]) == (0, True)
    for result in report["steps"]["parity"]["found"]:
        assert list(result["outputs"]) == OUTPUTS[result["model"]]
        assert all(output["max_abs"] == 0 for output in result["outputs"].values())
    best = report["steps"]["ground"]["found"]
    assert best["ONNX Runtime"] == best["TensorRT"]
    assert set(best["TensorRT"]) == {"start_s", "end_s", "score"}


def test_parity_tells_how_far_each_output_is_off(exported, exported_fp16, tmp_path, capsys):
    assert device_parity.main(exported_fp16, exported_fp16) == 0
    capsys.readouterr()
    broken = changed_bundle(exported.directory, tmp_path / "broken", lambda graph: plant(graph, "classify", 2.0))
    assert device_parity.main(exported.directory, broken) == 1
    results = json.loads(capsys.readouterr().out)
    assert [result["model"] for result in results if not result["passed"]] == ["head"] * len(device_parity.SHAPES)
    scores = [result for result in results if result["model"] == "head"][-1]["outputs"]["scores"]
    assert not scores["passed"]
    assert scores["max_abs"] > 0.001
    assert scores["snr_db"] < scores["least_snr_db"] == 60
    assert device_parity.summary(results).startswith(f"head {device_parity.SHAPES[0]}: scores has ")


def test_a_model_that_cannot_be_opened_leaves_the_others(exported, tmp_path, capsys):
    broken = changed_bundle(exported.directory, tmp_path / "broken", lambda graph: graph.graph.ClearField("node"))
    assert device_parity.main(exported.directory, broken) == 1
    results = json.loads(capsys.readouterr().out)
    assert {result["model"] for result in results if "error" in result}
    assert {result["model"] for result in results} == set(OUTPUTS)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended by signal 11; its last line: no message"),
        (
            "import sys; print('working', file=sys.stderr, flush=True); import time; time.sleep(60)",
            "stopped after 1 s; its last line: working",
        ),
        ("import sys; print('error: no GPU\\nmore', file=sys.stderr); sys.exit(2)", "no GPU"),
        ("print('no JSON')", "its output could not be read: JSONDecodeError: "),
    ],
)
def test_a_step_that_ends_badly_is_one_line_of_the_report(exported, steps, code, message, tmp_path):
    failing = device_check.Step(lambda check: [python(code)], device_check.read_json, 1)
    passing = device_check.Step(lambda check: [python("print(7)")], device_check.read_json, 20)
    steps.clear()
    steps.update(first=failing, second=passing)
    start = time.monotonic()
    exit_code, report = checked(exported.directory, tmp_path / "out")
    assert time.monotonic() - start < 50
    assert exit_code == 1
    assert report["steps"]["first"]["status"] == "failed"
    assert report["steps"]["first"]["message"].startswith(message)
    assert (report["steps"]["second"]["status"], report["steps"]["second"]["found"]) == ("passed", 7)


def test_without_a_bundle_one_line_says_how_to_make_one(tmp_path, capsys):
    assert device_check.main([str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.startswith(
        f"device-check: {tmp_path / 'none'}: expected a bundle of ONNX files, there is none; make one"
    )
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_engines_that_are_of_no_earlier_check_are_left(exported, tmp_path, capsys):
    kept = tmp_path / "engines" / "head.plan"
    kept.parent.mkdir()
    kept.touch()
    assert device_check.main([str(exported.directory), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"device-check: --out {tmp_path}: holds a folder engines that is of no earlier check; choose another\n"
    )
    assert kept.is_file()


def test_what_was_not_measured_and_what_doctor_finds_are_faults():
    timings = [
        {"variant": "trt", "stage": "copy", "not measured": "usual"},
        {"variant": "trt", "stage": "head", "not measured": "outside every profile"},
    ]
    found = {"variants": {"onnxrt": "ONNX Runtime", "trt": "TensorRT"}, "timings": timings}
    assert device_check.bench_fault({**found, "timings": timings[:1]}) == ""
    assert device_check.bench_fault(found) == "trt: head: outside every profile"
    found["variants"]["trt"] = "not measured: no GPU"
    assert device_check.bench_fault(found) == "trt: not measured: no GPU"
    checks = [{"name": "GPU", "state": "absent", "found": "none"}, {"name": "head", "state": "fault", "found": "cut"}]
    assert device_check.doctor_fault({"checks": checks[:1]}) == ""
    assert device_check.doctor_fault({"checks": checks}) == "head: cut"
