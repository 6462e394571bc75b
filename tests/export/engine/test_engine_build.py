"""Whole builds of engines: the real bindings of three versions over the mock of libnvinfer, and a double of the GPU.

The mock's parser takes the text of an engine from the ONNX file's metadata and refuses functions. Functions whose names
begin with `in_process_` run in a fresh process, the only place where `tensorrt` can be imported, and return JSON.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import SPEC, F, engine_inputs, engine_oracle, message
from engine_models import M, mock_text, write_head
from host_device import HostDevice
from mocked_tensorrt import BINDINGS, MockedTensorRT, building_tensorrt
from onnx import TensorProto
from rich.console import Console
from rich.progress import Progress

from sdst_export.engine.build import build_engine
from sdst_export.engine.cache import timing_cache_path
from sdst_export.engine.engine_bundle import build_bundle
from sdst_export.engine.options import EngineOptions
from sdst_export.engine.profiles import Bucket
from sdst_runtime.grounding.bundle import MODELS, Bundle, write_manifest
from sdst_runtime.sessions.tensorrt import TensorRTSession
from sdst_runtime.sessions.tensorrt.sidecar import PluginRecord, read_sidecar, sidecar_path

BUCKETS = (Bucket(8, 2), Bucket(24, 4))


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return building_tensorrt(request.param)


def silent_bar() -> Progress:
    return Progress(console=Console(quiet=True))


def notes(plan: Path) -> list[str]:
    return [line[5:] for line in plan.read_text().splitlines() if line.startswith("note ")]


def in_process_build(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    place, device = Path(directory), HostDevice()
    path, out = write_head(place / "head.onnx", text=mock_text()), place / "engines" / "head.plan"
    built = build_engine(path, out, BUCKETS, EngineOptions(), device, silent_bar())
    with TensorRTSession(out, device=device) as session:
        errors = []
        for sizes in ((1, 8, M), (2, 8, M), (4, 24, M)):
            inputs = engine_inputs(*sizes)
            errors.append(float(np.abs(session.run(inputs)["out"] - engine_oracle(inputs)).max()))
        outside = message(lambda: session.run(engine_inputs(5, 8, M)))
    timings = timing_cache_path(built.machine).read_text()
    again = build_engine(path, place / "again" / "head.plan", BUCKETS, EngineOptions(), device, silent_bar())
    options = EngineOptions(64, 5, place / "own.cache", True, True, True)
    other = build_engine(path, place / "other" / "head.plan", BUCKETS, options, device, silent_bar())
    embedding = EngineOptions(timing_cache=place / "other.cache", embed_plugin=True)
    own_timings = []
    for index, text in enumerate(("of another GPU", "damaged")):
        (place / "other.cache").write_text(text)
        embedded = place / f"embedded_{index}" / "head.plan"
        build_engine(path, embedded, BUCKETS[index : index + 1], embedding, device, silent_bar())
        own_timings.append((place / "other.cache").read_text())
    return {
        "errors": errors,
        "outside": outside,
        "notes": notes(out),
        "profiles": [profile["value"].max for profile in built.profiles],
        "limits": built.limits,
        "plugin": built.plugin == PluginRecord("1", (built.plugin or PluginRecord("", "")).sha256),
        "timings": timings,
        "timings_after_the_cache_hit": timing_cache_path(built.machine).read_text(),
        "same": again == built and again == read_sidecar(place / "again" / "head.plan"),
        "other_notes": notes(place / "other" / "head.plan"),
        "other_flags": dataclasses.asdict(other.flags),
        "own_timings": [(place / "own.cache").read_text(), *own_timings],
        "embedded_notes": notes(embedded),
        "embedded_is_version_compatible": read_sidecar(embedded).flags.version_compatible,
        "files": sorted(path.name for path in (place / "engines").iterdir()),
    }


def test_a_build_gives_an_engine_that_a_session_runs(tensorrt, tmp_path):
    said = tensorrt.call(in_process_build, str(tmp_path))
    assert max(said["errors"]) < 2e-5
    assert "lies outside every profile" in said["outside"]
    assert said["notes"] == ["no tf32", "detailed", "level 3"]
    assert said["profiles"] == [[1, 8, F], [2, 8, F], [1, 24, F], [4, 24, F]]
    assert said["limits"] == {"max_clips": 24, "max_batch": 2, "usual_clips": 40, "longest_clips": 60}
    assert said["plugin"]
    assert said["timings"] == "sdst-mock-timings 1"
    assert said["timings_after_the_cache_hit"] == "sdst-mock-timings 1"
    assert said["same"]
    expected = [
        "no tf32",
        "detailed",
        "level 5",
        "pool 0 67108864",
        "version compatible",
        "ampere plus",
        f"serializes {tensorrt.plugin}",
    ]
    assert said["other_notes"] == expected
    assert said["other_flags"] == {
        "workspace_mib": 64, "level": 5, "version_compatible": True, "hardware_compatible": True, "embed_plugin": True,
    }  # fmt: skip
    assert said["own_timings"] == ["sdst-mock-timings 1"] * 3
    embedded = ["no tf32", "detailed", "level 3", "version compatible", f"serializes {tensorrt.plugin}"]
    assert said["embedded_notes"] == embedded
    assert said["embedded_is_version_compatible"]
    assert said["files"] == ["head.plan", "head.plan.json"]


def in_process_without_caches(directory: str) -> dict[str, Any]:
    """The cache folder is a file, and the timings lie below a file, so neither can be written."""
    place = Path(directory)
    (place / "cache").write_text("")
    os.environ["SDST_CACHE"] = str(place / "cache")
    warned: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warned.append(record.getMessage())
    logging.getLogger("sdst.engine").addHandler(handler)
    path, out = write_head(place / "head.onnx", text=mock_text()), place / "head.plan"
    built = build_engine(path, out, BUCKETS, EngineOptions(), HostDevice(), silent_bar())
    return {"bytes": out.stat().st_size == built.plan_bytes > 0, "warned": warned}


def test_caches_that_cannot_be_written_cost_a_warning_not_the_engine(tensorrt, tmp_path):
    said = tensorrt.call(in_process_without_caches, str(tmp_path))
    assert said["bytes"]
    assert [line.split(": ")[0] for line in said["warned"][-2:]] == [
        "timings not kept for later builds", "engine not kept for later builds",
    ]  # fmt: skip
    assert all("cannot write" in line for line in said["warned"][-2:])


def in_process_failures(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    place, out = Path(directory), Path(directory) / "out" / "head.plan"

    def build(path: Path, options: EngineOptions | None = None) -> str:
        return message(lambda: build_engine(path, out, BUCKETS, options or EngineOptions(), HostDevice(), silent_bar()))

    said = {
        "no text": build(write_head(place / "a.onnx")),
        "one node": build(write_head(place / "b.onnx", text=mock_text(), nodes=1)),
        "half": build(write_head(place / "c.onnx", text=mock_text(), dtype=TensorProto.FLOAT16)),
        "level": build(place / "b.onnx", EngineOptions(level=6)),
        "workspace": build(place / "b.onnx", EngineOptions(workspace_mib=0)),
        "cache": build(place / "b.onnx", EngineOptions(timing_cache=place)),
    }
    os.environ["SDST_PLUGINS"] = str(place / "absent.so")
    said["plugin"] = build(place / "a.onnx")
    return {"said": said, "left": [str(path) for path in place.rglob("*") if path.suffix in (".plan", ".tmp")]}


FAILURES = {
    "no text": (
        "EngineError: a.onnx: TensorRT cannot read it",
        "no metadata entry sdst.mock",
        "(node node_of_the_mock, OpOfTheMock)",
    ),
    "one node": ("EngineError: b.onnx: expected 1 plugin layers", "made 2"),
    "half": ("EngineError: c.onnx: the graph is 50% half, the engine 0%",),
    "level": ("InputError: level: expected 0 to 5, got 6",),
    "workspace": ("InputError: workspace",),
    "cache": ("InputError: timing cache: expected a file",),
    "plugin": ("InputError: SDST_PLUGINS",),
}


def test_failed_builds_say_why_and_leave_nothing(tensorrt, tmp_path):
    said = tensorrt.call(in_process_failures, str(tmp_path))
    for name, words in FAILURES.items():
        assert all(word in said["said"][name] for word in words), (name, said["said"][name])
    assert said["left"] == []


def in_process_interrupt(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    place, steps = Path(directory), []
    path = write_head(place / "head.onnx", text=mock_text())

    class Interrupted(Progress):
        """Ctrl-C comes at the third step; each step takes long enough for it to be heard."""

        def update(self, *arguments: Any, **options: Any) -> None:
            steps.append(options["completed"])
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            if len(steps) >= 3:
                time.sleep(0.1)

    try:
        bar = Interrupted(console=Console(quiet=True))
        build_engine(path, place / "head.plan", BUCKETS, EngineOptions(), HostDevice(), bar)
        ended = "built"
    except KeyboardInterrupt:
        ended = "interrupted"
    return {"ended": ended, "steps": len(steps), "left": sorted(p.name for p in place.rglob("*") if p.is_file())}


def test_ctrl_c_ends_a_build_and_leaves_nothing(tensorrt, tmp_path):
    said = tensorrt.call(in_process_interrupt, str(tmp_path))
    assert said["ended"] == "interrupted"
    assert 3 <= said["steps"] < 40  # of 20 steps in two phases
    assert said["left"] == ["head.onnx"]


def in_process_bundle(directory: str) -> dict[str, Any]:
    """A bundle whose models are all the head, which is all that the mock can build."""
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    source, out = Path(directory) / "bundle", Path(directory) / "engines"
    source.mkdir()
    for name in MODELS:
        write_head(source / f"{name}.onnx", text=mock_text())
    (source / "tokenizer.json").write_text("{}")
    bundle = write_manifest(source, SPEC, {name: f"{name}.onnx" for name in MODELS}, "0.1.0")
    lines: list[str] = []
    build_bundle(bundle, out, BUCKETS, EngineOptions(), HostDevice(), silent_bar(), lines.append)
    opened = Bundle.open(out)
    device = HostDevice()
    with TensorRTSession(opened.path("head"), device=device) as session:
        inputs = engine_inputs(2, 8, M)
        error = float(np.abs(session.run(inputs)["out"] - engine_oracle(inputs)).max())
    sidecar_path(opened.path("text")).write_text("{}")
    return {
        "files": sorted(opened.manifest.files),
        "lines": len(lines),
        "error": error,
        "altered": message(lambda: Bundle.open(out)),
        "same place": message(lambda: build_bundle(bundle, source, BUCKETS, EngineOptions(), device, silent_bar())),
        "engines": message(lambda: build_bundle(opened, source / "x", BUCKETS, EngineOptions(), device, silent_bar())),
    }


def test_a_bundle_of_engines_holds_sidecars_and_the_plugin(tensorrt, tmp_path):
    said = tensorrt.call(in_process_bundle, str(tmp_path))
    plans = [f"{name}.plan{suffix}" for name in MODELS for suffix in ("", ".json")]
    assert said["files"] == sorted([*plans, "libsdst_plugins_host.so", "tokenizer.json"])
    assert said["lines"] == 2 * len(MODELS)
    assert said["error"] < 2e-5
    assert "text.plan.json has changed" in said["altered"]
    assert said["same place"].startswith("InputError: --out: expected another directory")
    assert "expected a bundle of ONNX files, it has vision.plan" in said["engines"]
