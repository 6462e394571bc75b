"""The model repositories of `sdst triton`: what Triton's own protobuf reads of them, beside what the models say."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import sidecar
from present_world import calibrated
from triton_server import triton_python, write_repository

from sdst_runtime import Grounder
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import Bundle, Manifest, write_manifest
from sdst_runtime.grounding.scores import MomentLine, PresenceLine
from sdst_runtime.serving.triton.bls import TritonBundle, UnaskedSession
from sdst_runtime.sessions.base import GROUNDER_MODELS, MODELS
from sdst_runtime.sessions.tensorrt.sidecar import (
    SUFFIX,
    Profile,
    ShapeRange,
    TensorRecord,
    read_sidecar,
    write_sidecar,
)
from sdst_runtime.strict_json import read_strict

CLIENT = Path(__file__).with_name("triton_client.py")
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
}


def configurations(repository: Path) -> dict[str, dict[str, Any]]:
    """config.pbtxt of each model, read by Triton's protobuf."""
    command = [triton_python(), CLIENT, "configuration", repository]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def engines(exported_fp16, tmp_path_factory) -> Path:
    """A bundle as `sdst build` leaves it, with sidecars of two profiles; the plans themselves are never read."""
    folder, bundle = tmp_path_factory.mktemp("engines"), Bundle.open(exported_fp16)
    beside = []
    for model in MODELS:
        with bundle.session(model) as session:
            records = [
                {name: TensorRecord(info.dtype.name, info.shape) for name, info in infos.items()}
                for infos in (session.inputs, session.outputs)
            ]
        plan = folder / f"{model}.plan"
        plan.write_bytes(b"a plan")
        profiles = tuple(
            {
                name: ShapeRange(
                    *(tuple(n if isinstance(n, int) else free for n in one.shape) for free in (1, most, most))
                )
                for name, one in records[0].items()
            }
            for most in (4, 8)
        )
        told = sidecar(plan.read_bytes())
        changes = {"kind": model, "inputs": records[0], "outputs": records[1], "profiles": profiles}
        write_sidecar(plan, dataclasses.replace(told, spec=bundle.manifest.spec, **changes))
        beside.append(plan.name + SUFFIX)
    shutil.copy(exported_fp16 / "tokenizer.json", folder)
    write_manifest(folder, bundle.manifest.spec, {model: f"{model}.plan" for model in MODELS}, "0.1.0", beside)
    return folder


def tensors(infos: Any) -> list[dict[str, Any]]:
    """What config.pbtxt is to say of inputs or outputs."""
    return [
        {
            "name": name,
            "data_type": TYPES[info.dtype.name],
            "dims": [str(n if isinstance(n, int) else -1) for n in info.shape],
        }
        for name, info in infos.items()
    ]


@pytest.mark.parametrize("kind", ["onnx", "tensorrt"])
def test_configurations_are_those_of_the_models(exported_fp16, engines, tmp_path, kind):
    bundle = Bundle.open(exported_fp16)
    done = write_repository(exported_fp16 if kind == "onnx" else engines, tmp_path / "models", kind)
    assert done.returncode == 0, done.stderr
    found = configurations(tmp_path / "models")
    assert sorted(found) == sorted([*MODELS, "sdst_ground"])
    for model in MODELS:
        config = found[model]
        with bundle.session(model) as session:
            assert config["input"] == tensors(session.inputs)
            assert config["output"] == tensors(session.outputs)
        assert config["name"] == model
        assert config["backend"] == {"onnx": "onnxruntime", "tensorrt": "tensorrt"}[kind]
        assert "max_batch_size" not in config  # 0: the first dimension is among dims
        assert "dynamic_batching" not in config
        file = tmp_path / "models" / model / "1" / config["default_model_filename"]
        source = bundle.path(model) if kind == "onnx" else engines / f"{model}.plan"
        assert sha256_file(file) == sha256_file(source)
        require_warm_up(config, read_sidecar(engines / f"{model}.plan").profiles if kind == "tensorrt" else ())
        (group,) = config["instance_group"]
        assert group.get("profile", []) == ([] if kind == "onnx" else ["0", "1"])
        assert group.get("kind", "KIND_AUTO") == ("KIND_AUTO" if kind == "onnx" else "KIND_GPU")
    outputs = [output["name"] for output in found["sdst_ground"]["output"]]
    assert outputs == ["answers", "video", "alignment"]
    assert found["sdst_ground"]["dynamic_batching"]["default_queue_policy"] == {"max_queue_size": 64}
    plugins = " --backend-config=tensorrt,plugins=/PATH/libsdst_triton_plugins.so" if kind == "tensorrt" else ""
    assert done.stdout == f"tritonserver --model-repository={tmp_path / 'models'}{plugins}\n"


def require_warm_up(config: dict[str, Any], profiles: tuple[Profile, ...]) -> None:
    """Every sample has all inputs with their types and shapes that are legal, and each profile has one of its most."""
    inputs = {one["name"]: (one["data_type"], list(map(int, one["dims"]))) for one in config["input"]}
    shapes = []
    for sample in config["model_warmup"]:
        assert sample["batch_size"] == 1  # Triton skips a sample of 0
        assert sample["inputs"].keys() == inputs.keys()
        shapes.append({name: tuple(map(int, given["dims"])) for name, given in sample["inputs"].items()})
        for name, given in sample["inputs"].items():
            assert (given["data_type"], given["zero_data"]) == (inputs[name][0], True)
            fits = [wanted in (-1, got) for wanted, got in zip(inputs[name][1], shapes[-1][name], strict=True)]
            assert all(fits)
            assert not profiles or any(profile[name].holds(shapes[-1][name]) for profile in profiles)
    assert len(shapes) == (3 if profiles else 2)  # the least of both profiles is one
    for profile in profiles:
        assert {name: one.max for name, one in profile.items()} in shapes
        assert {name: one.min for name, one in profile.items()} in shapes


def test_an_old_bundle_without_the_sentence(exported, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(exported.directory, old)
    models = {name: f"{name}.onnx" for name in GROUNDER_MODELS}
    (old / "sentence.onnx").unlink()
    write_manifest(old, Bundle.open(exported.directory).manifest.spec, models, "0.1.0")
    done = write_repository(old, tmp_path / "models", "cpu")
    assert done.returncode == 0, done.stderr
    found = configurations(tmp_path / "models")
    assert sorted(found) == sorted([*GROUNDER_MODELS, "sdst_ground"])
    assert [output["name"] for output in found["sdst_ground"]["output"]] == ["answers", "video"]


def test_a_head_with_presence_and_its_calibrated_scores(present, tmp_path):
    """The fourth output is configured and told to sdst_ground, beside which scores.json lies."""
    bundle = calibrated(present.directory, tmp_path / "bundle", PresenceLine(2.0, -1.0), MomentLine(1.5, 0.5, 0.0))
    done = write_repository(bundle.directory, tmp_path / "models", "cpu")
    assert done.returncode == 0, done.stderr
    with bundle.session("head") as head:
        outputs = tensors(head.outputs)
    assert configurations(tmp_path / "models")["head"]["output"] == outputs
    assert outputs[-1] == {"name": "presence", "data_type": "TYPE_FP32", "dims": ["-1"]}
    folder = tmp_path / "models" / "sdst_ground" / "1"
    assert json.loads((folder / "models.json").read_text())["head"]["outputs"]["presence"]["shape"] == ["B"]
    manifest = read_strict(Manifest, folder / "bundle.json", "")
    with Grounder(TritonBundle(folder, manifest, UnaskedSession)) as grounder:
        assert grounder.scores == bundle.scores() is not None
        answer = grounder.ground(grounder.encode(np.zeros((2, 28, 28, 3), np.uint8), [0.0, 1.0]), "a red circle")
    assert answer.presence == PresenceLine(2.0, -1.0)(0.0)


def test_a_bundle_of_the_other_kind(exported, engines, tmp_path):
    done = write_repository(exported.directory, tmp_path / "models", "tensorrt")
    assert done.returncode == 2
    words = "expected .plan for --kind tensorrt; give the bundle of sdst build"
    assert done.stderr.splitlines()[-1] == f"error: {exported.directory / 'vision.onnx'}: {words}"
    done = write_repository(engines, tmp_path / "models", "cpu")
    assert done.stderr.endswith("expected .onnx for --kind cpu; give the bundle of sdst export\n")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there(exported, tmp_path):
    done = write_repository(exported.directory, tmp_path, "cpu", python=sys.executable)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: expected no such folder, it is there; choose another --out or delete it\n"
    )


def test_without_tritonclient(exported, tmp_path):
    program = "import sys; sys.modules['tritonclient'] = None; from sdst.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["triton", exported.directory, "--out", tmp_path / "models", "--kind", "cpu"]
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: tritonclient is needed here and cannot be imported")
    assert done.stderr.endswith("run pip install '.[triton]' in the project's checkout\n")
    assert list(tmp_path.iterdir()) == []
