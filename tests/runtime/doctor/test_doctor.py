"""`sdst doctor`: each part is found out by using it; what is missing or broken is said with what mends it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import doctor_assets
import numpy as np
import pytest
from host_device import HostDevice
from host_library import SOUND, compiled, stating, tells_when_loaded

from sdst.cli import main
from sdst_runtime.data.annotations import read_annotations
from sdst_runtime.doctor.examine import check_bundle, check_disk, examine, random_inputs
from sdst_runtime.doctor.gpu import (
    check_driver,
    check_plugin,
    check_pycuda,
    check_tensorrt,
    require_right,
    run_on_device,
)
from sdst_runtime.doctor.installation import ASSETS, WEIGHTS, check_annotations, check_onnxruntime, check_video
from sdst_runtime.doctor.rdsa_oracle import CHECK_HEADS, CHECK_POINTS, check_inputs, rdsa_oracle
from sdst_runtime.errors import ContractError
from sdst_runtime.files import sha256_file
from sdst_runtime.media.clips import read_clips
from sdst_runtime.sessions.base import MODELS, TensorInfo
from sdst_runtime.sessions.plugin_library import HOST_CODE, VARIABLE, RdsaLibrary


def test_a_result_that_is_off_is_refused():
    expected = rdsa_oracle(**check_inputs(), num_heads=CHECK_HEADS, num_points=CHECK_POINTS)
    assert require_right(expected.astype(np.float32)).startswith("ran, ")
    wrong = expected.copy()
    wrong[2, 3, 5] += 1e-3
    with pytest.raises(ContractError, match=r"its result is 1\.0e-03 away from the oracle, expected at most 1e-05"):
        require_right(wrong)
    wrong[2, 3, 5] = np.nan
    with pytest.raises(ContractError, match="its result is nan away"):
        require_right(wrong)


def test_the_host_library_runs(host_library_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(host_library_path))
    check = check_plugin("host")
    assert (check.state, check.mend, check.needed) == ("fine", "", False)
    assert check.found.startswith(f"{host_library_path}, for this CPU, ran, ")
    other = check_plugin("cuda")
    assert other.state == "fault"
    assert "expected a library for cuda, this one is for host" in other.found


def test_a_library_runs_in_the_memory_of_a_device(host_library_path):
    """The path that a GPU takes through pycuda, with the double whose memory is the host's."""
    device = HostDevice()
    out = run_on_device(RdsaLibrary(host_library_path), device)
    assert out.shape == (3, 6, 64)
    require_right(out)
    assert device.live == {}


def test_a_library_that_fails_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(compiled(tmp_path, stating(SOUND))))
    check = check_plugin("host")
    assert check.state == "fault"
    assert "the device said no" in check.found
    assert check.mend == "run  sdst plugins build --host"


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    assert check_plugin("cuda").state == "fault"  # somebody named it, so it is not just absent
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("sdst_runtime.sessions.plugin_library.PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr("sdst_runtime.sessions.plugin_library._CHECKOUT", tmp_path)
    check = check_plugin("host")
    assert (check.state, check.mend) == ("absent", "run  sdst plugins build --host")


def test_the_driver_by_its_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.65.06, 9.0, 143771, 12, 1980, 3201, 31'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = check_driver()
    assert (check.state, check.found) == ("fine", "NVIDIA H200, compute capability 9.0, driver 580.65.06")


def test_packages_for_gpus_that_are_broken_are_faults(monkeypatch, tmp_path):
    """A package that is there and cannot be imported is no absent one."""
    for name, reason in (("tensorrt", "libnvinfer.so.10: cannot open"), ("pycuda", "libcuda.so.1: cannot open")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError({reason!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    tensorrt, pycuda = check_tensorrt(), check_pycuda()
    assert (tensorrt.state, pycuda.state) == ("fault", "fault")
    assert "libnvinfer.so.10" in tensorrt.found
    assert "libcuda.so.1" in pycuda.found
    assert tensorrt.mend
    assert pycuda.mend


def test_a_full_disk_is_a_fault(monkeypatch, tmp_path):
    assert check_disk(tmp_path / "not" / "there").state == "fine"
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("sdst_runtime.doctor.examine.shutil.disk_usage", lambda place: full)
    check = check_disk(tmp_path)
    assert (check.state, check.needed) == ("fault", False)
    assert "free at least 1 GB" in check.mend


def test_video_decoding_names_its_libraries():
    import av

    check = check_video()
    assert check.state == "fine"
    assert f"PyAV {av.__version__}, libavcodec " in check.found
    assert re.search(r"; decoded a clip, colours right within [0-4] of 255$", check.found)


def test_wrong_colours_are_a_fault(monkeypatch):
    """What PyAV 16 does: BT.709 read as BT.601."""

    def read(path, spec):
        clips, duration_s = read_clips(path, spec)
        rgb = clips / 255
        y = rgb @ [0.2126, 0.7152, 0.0722]
        cb, cr = (rgb[..., 2] - y) / 1.8556, (rgb[..., 0] - y) / 1.5748
        red, blue = y + 1.402 * cr, y + 1.772 * cb
        green = (y - 0.299 * red - 0.114 * blue) / 0.587
        return (np.stack([red, green, blue], axis=-1) * 255).clip(0, 255).round().astype(np.uint8), duration_s

    monkeypatch.setattr("sdst_runtime.doctor.installation.read_clips", read)
    check = check_video()
    assert (check.state, check.needed) == ("fault", True)
    off = int(re.search(r"the colours are wrong: a clip in BT\.709 is off by (\d+) of 255", check.found)[1])
    assert 20 <= off <= 40
    assert re.match(r"run  pip install --force-reinstall 'av(<20,>=17|>=17,<20)'", check.mend)


def test_a_video_that_cannot_be_decoded_is_a_fault(monkeypatch):
    """What PyAV 19 did: an argument that is gone ends in a TypeError, not in an error of ours."""

    def read(path, spec):
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")

    monkeypatch.setattr("sdst_runtime.doctor.installation.read_clips", read)
    check = check_video()
    assert check.state == "fault"
    assert check.found.endswith(": TypeError: open() got an unexpected keyword argument 'metadata_errors'")
    assert check.mend.startswith("run  pip install --force-reinstall 'av")


def test_every_form_of_annotation_is_read(monkeypatch):
    check = check_annotations()
    assert (check.state, check.mend, check.needed) == ("fine", "", True)
    assert check.found.endswith("; read QVHighlights, Charades-STA, TACoS")

    def read(path, durations):
        if path.suffix == ".json":
            raise TypeError("Plain typing.ClassVar is not valid as type argument")
        return read_annotations(path, durations)

    monkeypatch.setattr("sdst_runtime.doctor.installation.read_annotations", read)
    check = check_annotations()
    assert check.state == "fault"
    assert check.found.endswith("TypeError: Plain typing.ClassVar is not valid as type argument")
    assert check.mend.startswith("run  pip install --force-reinstall 'pydantic>=")


def test_a_model_is_run(monkeypatch):
    check = check_onnxruntime()
    assert check.state == "fine"
    assert check.found.endswith("; ran a model")
    monkeypatch.setattr(
        "sdst_runtime.doctor.installation.WEIGHTS", [[weight + 0.5 for weight in row] for row in WEIGHTS]
    )
    check = check_onnxruntime()
    assert check.state == "fault"
    assert "the answer of a small model is off by 9.0e-01, expected at most 1e-05" in check.found


def test_the_small_model_is_that_of_its_script():
    """And both assets are small."""
    pytest.importorskip("onnx")
    assert (ASSETS / "check.onnx").read_bytes() == doctor_assets.model_bytes()
    assert (ASSETS / "check.onnx").stat().st_size < 2000
    assert (ASSETS / "colours.mp4").stat().st_size < 4000


def test_a_sound_bundle_is_run(exported):
    bundle, checks = check_bundle(exported.directory)
    assert bundle is not None
    names = ["bundle", *(f"bundle: {model}" for model in MODELS)]
    assert [(check.name, check.state) for check in checks] == [(name, "fine") for name in names]
    assert checks[-1].found == "sentence.onnx ran on OnnxRuntime, fp32"


@pytest.fixture
def with_library(exported, tmp_path, monkeypatch):
    """A bundle with a library that tells when it is loaded, in no place that is searched without the bundle."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(HOST_CODE, raising=False)
    monkeypatch.setattr("sdst_runtime.sessions.plugin_library.PACKAGE_FOLDER", tmp_path / "lib")
    monkeypatch.setattr("sdst_runtime.sessions.plugin_library._CHECKOUT", tmp_path / "checkout")
    bundle, loaded = tmp_path / "bundle", tmp_path / "loaded"
    shutil.copytree(exported.directory, bundle)
    library = compiled(tmp_path, tells_when_loaded(loaded))
    shutil.copyfile(library, bundle / "libsdst_plugins_host.so")
    return bundle, loaded


def list_library(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["libsdst_plugins_host.so"] = sha256_file(bundle / "libsdst_plugins_host.so")
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def state_of_host(bundle: Path) -> tuple[str, str, str]:
    check = next(check for check in examine(bundle).checks if check.name == "sdst::RDSA for host")
    return check.state, check.found, check.mend


def test_a_library_that_no_list_names_is_never_loaded(with_library, monkeypatch):
    bundle, loaded = with_library
    monkeypatch.setenv(HOST_CODE, "1")
    assert state_of_host(bundle) == ("absent", "not installed", "run  sdst plugins build --host")
    assert not loaded.exists()


def test_a_bundles_library_is_loaded_on_the_users_word_alone(with_library, monkeypatch):
    bundle, loaded = with_library
    list_library(bundle)
    state, found, mend = state_of_host(bundle)
    assert (state, found) == ("absent", "the bundle's library was not loaded")
    assert mend == "set SDST_ENGINE_HOST_CODE=1 if you trust it, or run  sdst plugins build --host"
    assert not loaded.exists()
    monkeypatch.setenv(HOST_CODE, "1")
    _, found, _ = state_of_host(bundle)
    assert "the device said no" in found  # loaded, and its op fails as it is built to
    assert loaded.exists()


def test_an_altered_library_is_not_loaded_on_any_word(with_library, monkeypatch):
    bundle, loaded = with_library
    list_library(bundle)
    with (bundle / "libsdst_plugins_host.so").open("ab") as library:
        library.write(b"\0")
    monkeypatch.setenv(HOST_CODE, "1")
    faults = {check.name: check.found for check in examine(bundle).faults}
    assert "libsdst_plugins_host.so has changed" in faults["bundle"]
    assert not loaded.exists()


@pytest.mark.parametrize(
    ("told", "video", "mask"),
    [
        ({}, (1, 12, 3), (1, 12)),
        ({"sdst.max_batch": "1", "sdst.max_clips": "8"}, (1, 8, 3), (1, 8)),
        ({"sdst.max_batch": "32", "sdst.max_clips": "1200"}, (2, 12, 3), (2, 12)),
    ],
)
def test_inputs_keep_to_what_an_engine_takes(told, video, mask):
    infos = {
        "video": TensorInfo(np.dtype(np.float32), ("B", "T", 3)), "video_mask": TensorInfo(np.dtype(bool), ("B", "T")),
    }  # fmt: skip
    inputs = random_inputs(SimpleNamespace(metadata=told, inputs=infos))
    assert {name: array.shape for name, array in inputs.items()} == {"video": video, "video_mask": mask}
    assert inputs["video_mask"].all()


def test_command_on_a_sound_bundle(capsys, exported):
    assert main(["doctor", str(exported.directory), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found["works"] is True
    states = {check["name"]: check["state"] for check in found["checks"]}
    needed = {check["name"] for check in found["checks"] if check["needed"]}
    assert needed >= {"Python", "packages", "ONNX Runtime", "video decoding", "annotations", "bundle", "bundle: head"}
    assert {states[name] for name in needed} == {"fine"}
    assert all(check["mend"] for check in found["checks"] if check["state"] != "fine")


def test_command_on_a_broken_bundle(capsys, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # nothing is folded
    bundle = Path(shutil.copytree(exported.directory, tmp_path / "bundle"))
    data = (bundle / "head.onnx").read_bytes()
    (bundle / "head.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["doctor", str(bundle)]) == 1
    out, err = capsys.readouterr()
    assert "fault" in out
    assert err.count("\n") == 1
    assert err == "error: not ready for inference on a CPU: bundle: copy it again or export anew\n"
    assert "head.onnx has changed" in out


def test_examination_without_a_bundle_needs_none():
    found = examine()
    assert found.faults == ()
    assert [check.name for check in found.checks if check.needed] == [
        "Python", "packages", "ONNX Runtime", "int8 products", "video decoding", "annotations",
    ]  # fmt: skip


def test_command_where_onnx_runtime_is_missing():
    program = "\n".join([
        "import sys",
        "class Absent:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name.split('.')[0] in ('onnxruntime', 'torch'):",
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)",
        "sys.meta_path.insert(0, Absent())",
        "from sdst.cli import main",
        "sys.exit(main(['doctor']))",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "No module named 'onnxruntime'" in done.stdout
    assert "ONNX Runtime: run pip install 'onnxruntime>=" in done.stderr
    assert done.stderr.count("\n") == 1
