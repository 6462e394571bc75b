"""Which engine files TensorRTSession opens: the sidecar, the plan and the plugin library are checked before TensorRT.

As in test_tensorrt_session.py: the real bindings over the mock; `in_process_` functions run in a fresh process.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_files import PROFILES, message, plan_bytes, sidecar, write_engine
from host_device import HostDevice
from host_library import SOUND, compiled, stating, tells_when_loaded
from mocked_tensorrt import BINDINGS, MockedTensorRT, mocked_tensorrt

from sdst_runtime.files import sha256_file
from sdst_runtime.sessions.open import open_session
from sdst_runtime.sessions.plugin_library import LIBRARIES
from sdst_runtime.sessions.tensorrt import TensorRTSession
from sdst_runtime.sessions.tensorrt.sidecar import PluginRecord, sidecar_path


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return mocked_tensorrt(request.param)


class Opener:
    """Writes engine files, each in a folder of its own, and notes what opening them says."""

    def __init__(self, directory: str, version: str, plugin: str) -> None:
        self.directory, self.version, self.plugin = Path(directory), version, plugin
        self.said: dict[str, str] = {}

    def note(self, name: str, damage: Callable[[Path], object] = lambda plan: None, **changes: Any) -> None:
        """`changes` are fields of the sidecar, and `allowed`, the session's engine_host_code_allowed."""
        allowed = changes.pop("allowed", False)
        folder = self.directory / name.replace(" ", "-")
        folder.mkdir()
        plan, device = write_engine(folder, self.version, self.plugin, **changes), HostDevice()
        damage(plan)
        self.said[name] = message(
            lambda: TensorRTSession(plan, device=device, engine_host_code_allowed=allowed).close()
        )
        assert device.live == {}

    def machine(self, name: str, flags: dict[str, bool] | None = None, **changes: str) -> None:
        """As `note`, of an engine that was built on another machine."""
        usual = sidecar(plan_bytes(), self.version)
        machine, flag = dataclasses.replace(usual.machine, **changes), dataclasses.replace(usual.flags, **(flags or {}))
        self.note(name, machine=machine, flags=flag, allowed=True)


def in_process_other_machines(directory: str, version: str, plugin: str) -> dict[str, str]:
    opener = Opener(directory, version, plugin)
    major = version.split(".")[0]
    compatible = {"version_compatible": True}
    opener.machine("the same")
    opener.machine("other driver", driver="1.0", cuda="11.8")
    opener.machine("other TensorRT", tensorrt=f"{major}.99.1")
    opener.machine("older and compatible", compatible, tensorrt=f"{major}.0.1")
    opener.machine("newer and compatible", compatible, tensorrt=f"{major}.99.1")
    opener.machine("other major", compatible, tensorrt="9.0.0")
    opener.machine("other SM", sm="9.0")
    opener.machine("other GPU", gpu="NVIDIA H200")
    opener.machine("any Ampere", {"hardware_compatible": True}, sm="9.0", gpu="NVIDIA H200")
    return opener.said


OTHER_MACHINES = {
    "other TensorRT": ("ContractError", "TensorRT", ".99.1", "sdst build BUNDLE --out"),
    "newer and compatible": ("ContractError", "TensorRT", ".99.1", "sdst build"),
    "other major": ("ContractError", "TensorRT", "9.0.0", "sdst build"),
    "other SM": ("ContractError", "compute capability", "9.0", "8.7", "sdst build"),
    "other GPU": ("ContractError", "NVIDIA H200", "Mock GPU", "sdst build"),
}


def test_engines_of_other_machines_are_refused_with_both_values(tensorrt, tmp_path):
    said = tensorrt.call(in_process_other_machines, str(tmp_path), tensorrt.bindings.version, str(tensorrt.plugin))
    for name, words in OTHER_MACHINES.items():
        assert all(word in said[name] for word in words), (name, said[name])
    assert tensorrt.bindings.version in said["other TensorRT"]
    fitting = ("the same", "other driver", "older and compatible", "any Ampere")
    assert {said[name] for name in fitting} == {"nothing"}


def in_process_bad_files(directory: str, version: str, plugin: str) -> dict[str, str]:
    opener = Opener(directory, version, plugin)
    usual, wrong = sidecar(plan_bytes(), version), plan_bytes().replace(b"num_heads", b"num_heeds")
    embeds = dataclasses.replace(usual.flags, embed_plugin=True)
    opener.note("other plugin", plugin=PluginRecord("1", "3" * 64))
    opener.note("other plugin version", plugin=PluginRecord("2", sha256_file(Path(plugin))))
    opener.note("host code", flags=embeds)
    opener.note("truncated", lambda plan: plan.write_bytes(plan.read_bytes()[:-7]))
    opener.note("altered", lambda plan: plan.write_bytes(plan.read_bytes().replace(b"num_heads 2", b"num_heads 1")))
    opener.note("no plan", lambda plan: plan.unlink())
    opener.note("no sidecar", lambda plan: sidecar_path(plan).unlink())
    opener.note("half a sidecar", lambda plan: sidecar_path(plan).write_text(sidecar_path(plan).read_text()[:50]))
    opener.note("format", format=2)
    opener.note("inputs", inputs=usual.inputs | {"value": usual.inputs["length"]})
    opener.note("profiles", profiles=PROFILES[:1])
    digest = sidecar(wrong).plan_sha256
    opener.note("not TensorRT's", lambda p: p.write_bytes(wrong), plan_bytes=len(wrong), plan_sha256=digest)
    opener.note("good")
    os.environ["SDST_PLUGINS"] = str(Path(directory) / "absent.so")
    opener.note("no plugin")
    opener.note("plugin inside", flags=embeds, allowed=True)  # looks for none; RDSA is known since "good"
    good = Path(directory) / "good" / "head.plan"
    opener.said["workers"] = message(lambda: TensorRTSession(good, workers=0))
    opener.said["no GPU"] = message(lambda: open_session(good))
    return opener.said


BAD_FILES = {
    "other plugin": ("ContractError", "plugin sha256", "333333333333", "sdst build"),
    "other plugin version": ("ContractError", "plugin version", "built for 2, here is 1"),
    "host code": ("ContractError", "engine_host_code_allowed", "SDST_ENGINE_HOST_CODE"),
    "truncated": ("ContractError", "bytes", "sdst build"),
    "altered": ("ContractError", "sha256", "sdst build"),
    "no plan": ("InputError", "head.plan", "No such file"),
    "no sidecar": ("InputError", "head.plan.json", "sdst build"),
    "half a sidecar": ("ContractError", "head.plan.json", "does not parse"),
    "format": ("ContractError", "format 2", "reads 1"),
    "inputs": ("ContractError", "input value", "int32 [B]", "float32 [-1, -1, 32]"),
    "profiles": ("ContractError", "profiles"),
    "not TensorRT's": ("ContractError", "cannot load it", "altered"),
    "no plugin": ("InputError", "SDST_PLUGINS", "absent.so"),
    "workers": ("InputError", "at least 1, got 0"),
    "no GPU": ("DependencyError", "pycuda", "pip install"),
}


def test_damaged_and_foreign_files_are_refused(tensorrt, tmp_path):
    said = tensorrt.call(in_process_bad_files, str(tmp_path), tensorrt.bindings.version, str(tensorrt.plugin))
    for name, words in BAD_FILES.items():
        assert all(word in said[name] for word in words), (name, said[name])
    assert (said["good"], said["plugin inside"]) == ("nothing", "nothing")


def in_process_foreign_library(directory: str, version: str, foreign: str, word: str) -> str:
    """The foreign library lies beside the plan, and the sidecar of the plan names it."""
    os.environ.pop("SDST_PLUGINS", None)
    plan = write_engine(directory, version, foreign)
    shutil.copyfile(foreign, plan.parent / LIBRARIES["host"])
    return message(lambda: TensorRTSession(plan, device=HostDevice(), engine_host_code_allowed=word == "yes"))


def test_a_library_beside_a_plan_is_not_loaded_without_the_users_word(tensorrt, tmp_path):
    loaded = tmp_path / "loaded"
    foreign = compiled(tmp_path, tells_when_loaded(loaded))
    arguments = (str(tmp_path), tensorrt.bindings.version, str(foreign))
    said = tensorrt.call(in_process_foreign_library, *arguments, "no")
    assert said.startswith("ContractError: ")
    assert "SDST_ENGINE_HOST_CODE=1" in said
    assert not loaded.exists()
    tensorrt.call(in_process_foreign_library, *arguments, "yes")
    assert loaded.exists()


def in_process_useless_plugin(directory: str, version: str, plugin: str) -> str:
    plan = write_engine(directory, version, plugin)
    return message(lambda: TensorRTSession(plan, device=HostDevice()))


def test_a_library_without_the_tensorrt_plugin_is_named(tensorrt, tmp_path):
    library = compiled(tmp_path, stating(SOUND.replace("10.3.0", "")))
    process = dataclasses.replace(tensorrt, plugin=library)
    said = process.call(in_process_useless_plugin, str(tmp_path), tensorrt.bindings.version, str(library))
    assert said.startswith(f"DependencyError: {library}: TensorRT {tensorrt.bindings.version} cannot use it")
    assert "no TensorRT headers" in said
    assert "sdst plugins build" in said


def test_without_tensorrt_the_error_says_what_to_install(tmp_path):
    plan = write_engine(tmp_path, "10.3.0", Path(__file__))
    said = message(lambda: open_session(plan))
    assert said.startswith("DependencyError: TensorRT cannot be imported")
    assert "pip install" in said or "jetpack" in said
