"""The plugin in NVIDIA's own plugin registries of TensorRT 10 and 11, built with the headers of every version at hand.

Everything goes through compat.register_plugin, as in a session. Python cannot clone a plugin or read the fields of its
plan (the bindings say so): there the contract harness takes the creator that the registry finds. Functions whose names
begin with `in_process_` run in a fresh process, the only place where `tensorrt` can be imported, and return JSON.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_library import SOUND, build_host_library, compiled, require_tools, stating
from lean_tensorrt import LEAN, LeanTensorRT
from tensorrt_headers import HEADERS, MISSING, built, header_name, nearest_headers, require_build_tools

from sdst_runtime.errors import SdstError
from sdst_runtime.sessions.plugin_library import MOST_HEADS, MOST_POINTS, PluginInfo, RdsaLibrary
from sdst_runtime.sessions.tensorrt.compat import PLUGIN, load_tensorrt, register_plugin

NVCC = shutil.which("nvcc") or os.environ.get("CUDACXX")
ONE_ARCHITECTURE = ("-DSDST_CUDA=ON", "-DSDST_TESTS=OFF", "-DCMAKE_CUDA_ARCHITECTURES=75-real")
PHASES = ("BUILD", "RUNTIME")


@pytest.fixture(scope="module", params=LEAN, ids=str)
def lean(request) -> LeanTensorRT:
    return request.param


@pytest.fixture(scope="module", params=HEADERS or [None], ids=lambda folder: header_name(folder) if folder else "")
def headers(request) -> Path:
    if request.param is None:
        pytest.skip(MISSING)
    require_build_tools()
    return request.param


@pytest.fixture(scope="module")
def plugin(headers) -> Path:
    """The host build with these headers."""
    return built(headers, "sdst_plugins_host") / "libsdst_plugins_host.so"


def info(path: str | Path) -> PluginInfo:
    return RdsaLibrary(Path(path)).info


def refusal(plugin: str) -> list[str]:
    """[class, message] of the error that opening and registering it raises; fails when there is none of ours."""
    try:
        register_plugin(load_tensorrt(), info(plugin))
    except SdstError as error:
        return [type(error).__name__, str(error)]
    raise AssertionError(f"{plugin} was taken")


def fields(trt: Any, *named: tuple[str, Any]) -> Any:
    """A collection of fields; INT32 for int32 arrays."""
    kinds = {"int32": "INT32", "float32": "FLOAT32", "int64": "INT64"}
    return trt.PluginFieldCollection(
        [trt.PluginField(name, data, getattr(trt.PluginFieldType, kinds[data.dtype.name])) for name, data in named]
    )


# ---------------------------------------------------------------- what the registry gets


def in_process_describe(plugin: str) -> dict[str, Any]:
    trt = load_tensorrt()
    before = trt.get_plugin_registry().get_creator(*PLUGIN)
    register_plugin(trt, info(plugin))
    creator = trt.get_plugin_registry().get_creator(*PLUGIN)
    made = {}
    for phase in PHASES:
        given = fields(trt, ("num_heads", np.array([4], np.int32)), ("num_points", np.array([2], np.int32)))
        made[phase] = creator.create_plugin("step_1", given, getattr(trt.TensorRTPhase, phase))
    kinds = trt.PluginCapabilityType
    core, build = (made["BUILD"].get_capability_interface(kind) for kind in (kinds.CORE, kinds.BUILD))
    return {
        "version": trt.__version__,
        "before": before is None,
        "creator": [creator.name, creator.plugin_version, creator.plugin_namespace],
        "fields": [[field.name, field.type.name, field.size] for field in creator.field_names],
        "made": [phase for phase, plugin in made.items() if plugin is not None],
        "interfaces": [
            [one.interface_info.kind, one.interface_info.major, one.interface_info.minor]
            for plugin in made.values()
            for one in (plugin, *map(plugin.get_capability_interface, (kinds.CORE, kinds.BUILD, kinds.RUNTIME)))
        ],
        "core": [core.plugin_name, core.plugin_version, core.plugin_namespace],
        "build": [build.num_outputs, build.timing_cache_id],
    }


@pytest.mark.parametrize("device", ["host", "cuda"])
def test_the_registry_finds_the_creator_and_makes_plugins_in_both_phases(lean, headers, device):
    if device == "cuda" and not NVCC:
        pytest.skip("needs nvcc")
    target, options = ("sdst_plugins", ONE_ARCHITECTURE) if device == "cuda" else ("sdst_plugins_host", ())
    said = lean.call(in_process_describe, built(headers, target, *options) / f"lib{target}.so")
    kinds = ("PLUGIN", "PLUGIN_V3ONE_CORE", "PLUGIN_V3ONE_BUILD", "PLUGIN_V3ONE_RUNTIME")
    assert said == {
        "version": lean.version,
        "before": True,
        "creator": ["RDSA", "1", "sdst"],
        "fields": [["num_heads", "INT32", 1], ["num_points", "INT32", 1]],
        "made": [*PHASES],
        "interfaces": [[kind, 1, 0] for _ in PHASES for kind in kinds],
        "core": ["RDSA", "1", "sdst"],
        "build": [1, "num_heads=4 num_points=2"],
    }


def test_the_contract_holds_for_the_creator_that_the_registry_finds(lean, plugin):
    """Cloned, serialised and made again, attached to a context, run: plugins/tests/contract."""
    harness = built(nearest_headers(lean.version), "contract_test") / "contract_test"
    done = subprocess.run([harness, plugin, lean.library()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok the registry finds the creator\n")
    assert done.stdout.count("\nok ") > 200


# ---------------------------------------------------------------- wrong and missing attributes


def in_process_make_badly(plugin: str) -> dict[str, list[Any]]:
    """By case and phase: whether a plugin was made, and the library's message."""
    trt, library = load_tensorrt(), RdsaLibrary(Path(plugin))
    register_plugin(trt, library.info)
    creator = trt.get_plugin_registry().get_creator(*PLUGIN)

    def number(*values: int, kind: type = np.int32) -> Any:
        return np.array(values, kind)

    heads, points, other = ("num_heads", number(4)), ("num_points", number(2)), ("axis", number(1))
    cases = {
        "nothing": (),
        "no points": (heads,),
        "no heads": (points, other),
        "heads twice": (heads, heads, points),
        "float": (("num_heads", number(4, kind=np.float32)), points),
        "int64": (heads, ("num_points", number(2, kind=np.int64))),
        "two numbers": (heads, ("num_points", number(2, 2))),
        "no heads at all": (("num_heads", number(0)), points),
        "minus one": (heads, ("num_points", number(-1))),
        "too many heads": (("num_heads", number(MOST_HEADS + 1)), points),
        "too many points": (heads, ("num_points", number(MOST_POINTS + 1))),
        "one more field": (heads, points, other),
    }
    said = {}
    for name, given in cases.items():
        for phase in PHASES:
            made = creator.create_plugin("step_1", fields(trt, *given), getattr(trt.TensorRTPhase, phase))
            said[f"{name}, {phase}"] = [made is not None, library._last_error().decode()]
    return said


def test_wrong_and_missing_attributes_are_refused_with_a_message(lean, plugin):
    said = lean.call(in_process_make_badly, plugin)
    for phase in PHASES:
        assert said.pop(f"one more field, {phase}")[0]
        for name, message in {
            "nothing": "num_heads: expected one, got none",
            "no points": "num_points: expected one, got none",
            "no heads": "num_heads: expected one, got none",
            "heads twice": "num_heads: expected one, got two",
            "float": "num_heads: expected one INT32 number, got 1 of PluginFieldType 1",
            "int64": "num_points: expected one INT32 number, got 1 of PluginFieldType 10",
            "two numbers": "num_points: expected one INT32 number, got 2 of PluginFieldType 5",
            "no heads at all": f"num_heads: expected 1 to {MOST_HEADS}, got 0",
            "minus one": f"num_points: expected 1 to {MOST_POINTS}, got -1",
            "too many heads": f"num_heads: expected 1 to {MOST_HEADS}, got {MOST_HEADS + 1}",
            "too many points": f"num_points: expected 1 to {MOST_POINTS}, got {MOST_POINTS + 1}",
        }.items():
            assert said.pop(f"{name}, {phase}") == [False, f"RDSA: field {message}"]
    assert said == {}


# ---------------------------------------------------------------- one library a process


def in_process_register_two(plugin: str, other: str) -> list[str]:
    trt = load_tensorrt()
    first = info(plugin)
    trt.get_plugin_registry().load_library(plugin)  # by somebody else
    register_plugin(trt, first)
    register_plugin(trt, first)
    said = refusal(other)
    creators = [one.name for one in trt.get_plugin_registry().all_creators]
    return [*said, str(creators.count("RDSA"))]


def test_a_second_library_in_the_process_is_refused(lean, plugin, tmp_path):
    other = tmp_path / "libother.so"
    other.write_bytes(plugin.read_bytes() + b"\0")  # it loads, and has another digest
    kind, message, creators = lean.call(in_process_register_two, plugin, other)
    assert (kind, creators) == ("ContractError", "1")
    assert message.startswith(f"sdst::RDSA of {plugin} (sha256 {info(plugin).sha256[:12]}) is loaded in this process")
    assert message.endswith("; use one library a process")


# ---------------------------------------------------------------- files that cannot be registered


def in_process_register_bad(plugin: str) -> list[str]:
    return refusal(plugin)


def test_a_library_without_the_plugin_is_refused(lean, tmp_path):
    library = build_host_library(tmp_path)
    kind, message = lean.call(in_process_register_bad, library)
    assert kind == "DependencyError"
    assert message.startswith(
        f"{library}: TensorRT {lean.version} cannot use it (it was built with no TensorRT headers)"
    )


LOGGERS = 'extern "C" void setLoggerFinder(void*) {}'
NO_CREATOR = 'extern "C" void* const* getCreators(int& count) { count = 0; return nullptr; }'
BAD = {
    "no entry points": stating(SOUND),
    "no creator": "\n".join((stating(SOUND), LOGGERS, NO_CREATOR)),
    "one entry point": "\n".join((stating(SOUND), LOGGERS)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_library_of_something_else_is_refused(lean, name, tmp_path):
    require_tools()
    library = compiled(tmp_path, BAD[name])
    kind, message = lean.call(in_process_register_bad, library)
    assert kind == "DependencyError"
    assert message.startswith(f"{library}: TensorRT {lean.version} cannot use it (it was built with headers of 10.3.0)")


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_library_cut_short_is_refused(lean, plugin, keep, tmp_path):
    """Before the registry sees it: three of these would end the process there, the others would be taken."""
    whole, library = plugin.read_bytes(), tmp_path / "libplugin.so"
    library.write_bytes(whole[: int(keep * len(whole))])
    message = f"{library}: the library is cut short at {library.stat().st_size} bytes; run  sdst plugins build"
    assert lean.call(in_process_register_bad, library) == ["InputError", message]


def test_an_altered_library_is_refused(lean, plugin, tmp_path):
    library = tmp_path / "libplugin.so"
    library.write_bytes(plugin.read_bytes().replace(b"getCreators\0", b"gotCreators\0"))
    kind, message = lean.call(in_process_register_bad, library)
    assert kind == "DependencyError"
    assert message.startswith(f"{library}: TensorRT {lean.version} cannot use it (it was built with headers of ")
