"""RtxSession end to end: the double of TensorRT for RTX over the mocked TensorRT, and a double of the GPU.

What it shares with TensorRTSession is tested in test_tensorrt_session.py and the files beside it. Functions whose names
begin with `in_process_` run in a fresh process, the only place where the double can be imported, and return JSON.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_files import PROFILES, TOLERANCE, engine_inputs, message, plan_bytes, sidecar, worst
from host_device import HostDevice
from mocked_rtx import BUILT, MockedRtx, mocked_rtx, rtx_sidecar, write_rtx_engine

from sdst_runtime.sessions.open import open_session
from sdst_runtime.sessions.tensorrt import RtxSession, TensorRTSession
from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, sidecar_path

SHAPES = ((2, 8, 5), (1, 3, 2), (4, 24, 9))  # B, T, M


@pytest.fixture(scope="module")
def rtx() -> MockedRtx:
    return mocked_rtx()


def told() -> Any:
    return importlib.import_module("tensorrt_rtx")._Told


def warnings() -> list[str]:
    """A list to which this process's warnings come."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("sdst.tensorrt").addHandler(handler)
    return lines


def kept_files(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory, "cache", "rtx").glob("*"))


# ---------------------------------------------------------------- answers


def in_process_answers(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    plan, device = write_rtx_engine(directory), HostDevice()
    session = RtxSession(plan, device=device, workers=2)
    session.warm_up()
    errors = [worst(session, *shape, seed) for seed in range(3) for shape in SHAPES]
    arrays = session.run_on_device(engine_inputs(2, 8, 5))
    said = {
        "errors": errors,
        "on device": list(arrays["out"].shape),
        "captures": [call for call, _ in device.calls].count("capture"),
        "configs": [describe(config) for config in told().configs],
        "outside": message(lambda: session.run(engine_inputs(5, 8, 5))),
        "metadata": session.metadata["sdst.max_clips"],
    }
    del arrays
    session.close()
    session.close()
    said["closed"] = message(lambda: session.run(engine_inputs(1, 3, 2)))
    said["left"] = len(device.live)
    told().configs.clear()
    with RtxSession(plan, device=HostDevice(), cuda_graphs=False) as plain:
        said["plain"] = worst(plain, *SHAPES[0])
    return said | {"plain configs": [describe(config) for config in told().configs]}


def describe(config: Any) -> list[str]:
    strategies = (
        config.cuda_graph_strategy,
        config.dynamic_shapes_kernel_specialization_strategy,
        config.get_execution_context_allocation_strategy(),
    )
    return [strategy.name for strategy in strategies]


def test_answers_are_the_oracles_and_graphs_are_the_librarys_own(rtx, tmp_path):
    said = rtx.call(in_process_answers, str(tmp_path))
    assert max(said["errors"]) < TOLERANCE
    assert said["on device"] == [2, 5, 32]
    assert said["captures"] == 0
    assert said["configs"] == [["WHOLE_GRAPH_CAPTURE", "LAZY", "USER_MANAGED"]] * 2 * len(PROFILES)  # workers, profiles
    assert "lies outside every profile" in said["outside"]
    assert said["metadata"] == "24"
    assert said["closed"].startswith("SessionError")
    assert said["left"] == 0
    assert said["plain"] < TOLERANCE
    assert said["plain configs"] == [["DISABLED", "LAZY", "USER_MANAGED"]]


# ---------------------------------------------------------------- compiled kernels


def in_process_kernels(directory: str) -> dict[str, Any]:
    """Four starts: nothing is kept, the same shapes again, one more shape, and all of them by warm_up."""
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    plan, said, lines = write_rtx_engine(directory), {}, warnings()

    def start(name: str, shapes: tuple[tuple[int, int, int], ...]) -> None:
        before = len(told().compiled)
        with RtxSession(plan, device=HostDevice()) as session:
            errors = [worst(session, *shape) for shape in shapes]
            session.close()
        (kept,) = Path(directory, "cache", "rtx").glob("*")
        said[name] = [max(errors) < TOLERANCE, len(told().compiled) - before, kept.stat().st_mtime_ns]

    start("first", SHAPES)
    start("second", SHAPES)
    start("another shape", (*SHAPES, (1, 1, 1)))
    with RtxSession(plan, device=HostDevice()) as session:
        session.warm_up()
        (kept,) = Path(directory, "cache", "rtx").glob("*")
        said["warm"] = kept.stat().st_mtime_ns
    return said | {"files": kept_files(directory), "lines": lines, "left": said["warm"] == kept.stat().st_mtime_ns}


def test_kernels_are_compiled_once(rtx, tmp_path):
    said = rtx.call(in_process_kernels, str(tmp_path))
    assert said["first"][:2] == [True, len(SHAPES)]
    assert said["second"] == [True, 0, said["first"][2]]  # the file is not written again
    assert said["another shape"][:2] == [True, 1]
    assert len({said["first"][2], said["another shape"][2], said["warm"]}) == 3
    assert said["left"]  # closed with nothing new
    digest = rtx_sidecar().plan_sha256[:32]
    assert said["files"] == [f"{digest}-Mock-GPU-sm8.7-rtx{BUILT.tensorrt}-driver570.10.cache"]
    assert said["lines"] == []


def in_process_bad_caches(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    plan, said, lines = write_rtx_engine(directory), {}, warnings()
    run(plan)
    (kept,) = Path(directory, "cache", "rtx").glob("*")
    good = kept.read_bytes()

    def note(name: str, damage: Callable[[], object]) -> None:
        kept.write_bytes(good)
        damage()
        before = len(told().compiled)
        said[name] = [run(plan) < TOLERANCE, len(told().compiled) - before, [line.split(": ", 1)[-1] for line in lines]]
        lines.clear()

    note("good", lambda: None)
    note("altered", lambda: kept.write_bytes(good.replace(b"GPU A", b"GPU B")))
    note("cut short", lambda: kept.write_bytes(good[:-3]))
    note("empty", lambda: kept.write_bytes(b""))
    note("not ours", lambda: kept.write_bytes(b"\x00" * 100))
    told().machine = "GPU B, driver 1"
    note("of another machine", lambda: None)
    note("good again", lambda: kept.unlink())
    kept.unlink()
    kept.mkdir()
    said["a folder"] = [run(plan) < TOLERANCE, 0, list(lines)]
    return said


def run(plan: Path) -> float:
    with RtxSession(plan, device=HostDevice()) as session:
        return worst(session, *SHAPES[0])


def test_caches_that_do_not_fit_are_ignored_and_said_once(rtx, tmp_path):
    said = rtx.call(in_process_bad_caches, str(tmp_path))
    assert said["good"] == [True, 0, []]
    for name in ("altered", "cut short", "empty", "not ours"):
        assert said[name] == [True, 1, ["is damaged; kernels are compiled anew"]], name
    words = "TensorRT for RTX does not take it: of another version, GPU or driver; kernels are compiled anew"
    assert said["of another machine"] == [True, 1, [words]]
    assert said["good again"] == [True, 1, []]
    right, _, (read, written) = said["a folder"]
    assert right
    assert "cannot be read (Is a directory)" in read
    assert written.startswith("compiled kernels are not kept for the next start: cannot write")


# ---------------------------------------------------------------- engines that do not fit


def in_process_refusals(directory: str, version: str, plugin: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    said: dict[str, Any] = {}
    trt: Any = importlib.import_module("tensorrt_rtx")
    flags = trt.EngineInvalidityDiagnostics

    def note(name: str, damage: Callable[[Path], object] = lambda plan: None, **changes: Any) -> None:
        folder = Path(directory) / name.replace(" ", "-")
        folder.mkdir()
        plan, device = write_rtx_engine(folder, **changes), HostDevice()
        damage(plan)
        said[name] = message(lambda: RtxSession(plan, device=device).close())
        assert device.live == {}

    def invalid(name: str, *told_flags: Any) -> None:
        told().validity = (trt.EngineValidity.INVALID, sum(flag.value for flag in told_flags))
        note(name)
        told().validity = (trt.EngineValidity.VALID, 0)

    note("good")
    note("other version", machine=MachineRecord("1.6.0.10", "", "", "", ""))
    note("other capability", compute=("8.6", "8.9"))
    note("no capability", compute=())
    note("truncated", lambda plan: plan.write_bytes(plan.read_bytes()[:-7]))
    note("altered", lambda plan: plan.write_bytes(plan.read_bytes().replace(b"num_heads 2", b"num_heads 1")))
    note("no plan", lambda plan: plan.unlink())
    note("no sidecar", lambda plan: sidecar_path(plan).unlink())
    wrong = plan_bytes().replace(b"num_heads", b"num_heeds")
    digest = sidecar(wrong).plan_sha256
    note("not its own", lambda plan: plan.write_bytes(wrong), plan_bytes=len(wrong), plan_sha256=digest)
    note("profiles", profiles=PROFILES[:1])
    note("of TensorRT", target="tensorrt")
    note("of nobody", target="trt")
    invalid("invalid version", flags.VERSION_MISMATCH, flags.UNSUPPORTED_CC)
    invalid("invalid driver", flags.OLD_CUDA_DRIVER)
    invalid("invalid without a reason")
    lines = warnings()
    told().validity = (trt.EngineValidity.SUBOPTIMAL, flags.UNSUPPORTED_CC.value)
    note("suboptimal")
    said["warned"] = lines
    plan = Path(directory) / "good" / "head.plan"
    said["as TensorRT's"] = message(lambda: TensorRTSession(plan, device=HostDevice()))
    said["no GPU"] = message(lambda: open_session(plan))
    return said


REFUSALS = {
    "other version": ("ContractError", "built for 1.6.0.10, here is 1.7.1.116", "--target rtx --compute 8.6 8.7 --out"),
    "other capability": ("ContractError", "built for 8.6, 8.9, Mock GPU has 8.7", "--compute 8.6 8.9 8.7 --out"),
    "no capability": ("ContractError", "built for none, Mock GPU has 8.7", "--compute 8.7 --out"),
    "truncated": ("ContractError", "bytes", "copy it again or build it with  sdst build BUNDLE --target rtx"),
    "altered": ("ContractError", "sha256", "--target rtx"),
    "no plan": ("InputError", "No such file", "--target rtx"),
    "no sidecar": ("InputError", "head.plan.json"),
    "not its own": ("ContractError", "TensorRT for RTX cannot load it", "altered", "--target rtx"),
    "profiles": ("ContractError", "profiles", "--target rtx"),
    "of TensorRT": ("ContractError", "expected an engine of TensorRT for RTX, it is one of TensorRT"),
    "of nobody": ("ContractError", "does not parse: target"),
    "invalid version": ("ContractError", "not valid here: VERSION_MISMATCH, UNSUPPORTED_CC", "--target rtx"),
    "invalid driver": ("ContractError", "not valid here: OLD_CUDA_DRIVER; update the NVIDIA driver"),
    "invalid without a reason": ("ContractError", "not valid here: TensorRT logged no reason", "--target rtx"),
    "as TensorRT's": ("ContractError", "expected an engine of TensorRT, it is one of TensorRT for RTX", "open_session"),
    "no GPU": ("DependencyError", "pycuda", "pip install"),
}


def test_engines_that_do_not_fit_are_refused(rtx, tmp_path):
    said = rtx.call(in_process_refusals, str(tmp_path), rtx.bindings.version, str(rtx.plugin))
    for name, words in REFUSALS.items():
        assert all(word in said[name] for word in words), (name, said[name])
    assert (said["good"], said["suboptimal"]) == ("nothing", "nothing")
    (line,) = said["warned"]
    assert "slower here than it could be: UNSUPPORTED_CC; build it with" in line


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    said = message(lambda: open_session(write_rtx_engine(tmp_path)))
    assert said.startswith("DependencyError: TensorRT for RTX cannot be imported")
    assert "pip install '.[rtx]'" in said or "Linux x86-64 only" in said
