"""A head that also gives the presence: torch, ONNX Runtime, half, int8, parity, TensorRT for RTX's real builder."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from int8_world import silent
from parity_world import write_data
from rich.console import Console
from rich.progress import Progress
from tiny_world import MODEL, SPEC, WIDTH

from sdst_calib.int8.calibrate import Int8Options, Queries, calibrate_int8
from sdst_calib.parity.measure import Candidate, max_abs_error, measure_parity
from sdst_calib.parity.polygraphy_script import ScriptedBundle, write_polygraphy_script
from sdst_calib.parity.tolerances import DEFAULTS, Tolerances
from sdst_export.engine.build import build_engine
from sdst_export.engine.options import EngineOptions
from sdst_export.engine.profiles import Bucket
from sdst_export.graph import save_model
from sdst_export.half import Precision, half_head
from sdst_export.models import export_head, export_projection, lower
from sdst_export.report.summary import summarise
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, load_split, pad_inputs
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.grounding.decode import HEAD_OUTPUTS, PRESENCE
from sdst_runtime.sessions.base import GROUNDING_MODELS, GroundingModel
from sdst_runtime.sessions.open import open_session
from sdst_runtime.sessions.tensorrt.sidecar import read_sidecar
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

OUTPUTS = [*HEAD_OUTPUTS, PRESENCE]


@pytest.fixture(scope="module")
def trained(present) -> Checkpoint:
    return load_checkpoint(present.checkpoint_path)


@pytest.fixture(scope="module")
def half_files(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    write_head(trained, folder, "fp16")
    return folder


def ragged(video_width: int = 12, text_width: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    videos = [rng.standard_normal((n, 2, video_width)) for n in (75, 13, 1, 40)]
    return pad_inputs(videos, [rng.standard_normal((2, n, text_width)) for n in (20, 1, 7, 24)])


def opened(folder: Path) -> GroundingModel:
    return GroundingModel(*(open_session(folder / f"{name}.onnx", 1) for name in GROUNDING_MODELS))


def write_head(checkpoint: Checkpoint, folder: Path, precision: Precision = "fp32") -> None:
    lowered = lower(checkpoint, precision)
    for name, export in (("projection", export_projection), ("head", export_head)):
        save_model(export(lowered), folder / f"{name}.onnx")


def test_onnx_runtime_equals_torch(tmp_path):
    """Weights as they are before training, where float32's rounding is not amplified."""
    torch.manual_seed(0)
    model = SDST(dataclasses.replace(MODEL, presence=True)).eval()
    write_head(Checkpoint(model, TrainConfig(model=model.config), SPEC, 1, {}), tmp_path)
    inputs = ragged(WIDTH, WIDTH)
    with opened(tmp_path) as head:
        assert list(head.outputs) == OUTPUTS
        assert head.outputs[PRESENCE].shape == ("B",)
        expected, got = TorchSession(model).run(inputs)[PRESENCE], head.run(inputs)[PRESENCE]
    assert got.shape == (4,)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_onnx_runtime_equals_torch_with_random_weights(present, trained):
    with opened(present.directory) as head:
        expected, got = TorchSession(trained.model).run(ragged())[PRESENCE], head.run(ragged())[PRESENCE]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("runner", ["torch", "onnx"])
def test_half_is_near_float32(trained, half_files, runner):
    inputs = ragged()
    expected = TorchSession(trained.model).run(inputs)[PRESENCE]
    half = TorchSession(half_head(copy.deepcopy(trained.model).lower())) if runner == "torch" else opened(half_files)
    got = half.run(inputs)[PRESENCE]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)


def test_its_last_product_is_float32_in_half(half_files):
    model = onnx.load(half_files / "head.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    of = {
        node.name.split("/")[0]: {types[name] for name in node.input}
        for node in model.graph.node
        if node.name.startswith("presence.mlp.") and node.op_type == "MatMul"
    }
    assert of == {"presence.mlp.0": {onnx.TensorProto.FLOAT16}, "presence.mlp.2": {onnx.TensorProto.FLOAT}}


def test_the_export_report_counts_it_among_the_heads(exported, trained):
    sizes = {"B": 1, "T": 75, "L": 20}
    old, new = (
        summarise(export_head(lower(one)), sizes).stages for one in (load_checkpoint(exported.checkpoint_path), trained)
    )
    assert {stage for stage in old if old[stage].nodes != new[stage].nodes} == {"heads"}
    weights = sum(parameter.numel() for name, parameter in trained.model.named_parameters() if "presence" in name)
    assert new["heads"].weight_bytes - old["heads"].weight_bytes == pytest.approx(4 * weights, abs=64)  # constants


# ---------------------------------------------------------------- parity, Polygraphy, int8


@pytest.fixture(scope="module")
def data(trained, tmp_path_factory) -> DataConfig:
    path = write_data(tmp_path_factory.mktemp("data"), trained.spec)
    return DataConfig(**json.loads(path.read_text())["data"])


@pytest.fixture(scope="module")
def samples(data) -> list[Sample]:
    return load_split(data, "val").samples


def test_parity_lists_it(present, trained, half_files, samples, data):
    with opened(present.directory) as fp32, opened(half_files) as fp16:
        found = measure_parity(
            Candidate("torch", TorchSession(trained.model), "torch", Tolerances()),
            [Candidate("fp32", fp32, "fp32", DEFAULTS["fp32"]), Candidate("fp16", fp16, "fp16", DEFAULTS["fp16"])],
            samples,
            data,
            trained.spec,
        )
    full, half = found.candidates
    assert list(full.tensors) == list(half.tensors) == OUTPUTS
    assert full.tensors[PRESENCE].max_abs < 1e-5
    assert 0 < half.tensors[PRESENCE].max_abs < 1e-3
    assert full.passed
    assert "presence snr_db" in [check.name for check in half.checks]


def test_the_polygraphy_script_compares_it(present, half_files, samples, tmp_path, capsys):
    inputs = pad_inputs([samples[0].video], [samples[0].text])
    paths = [
        {graph: folder / f"{graph}.onnx" for graph in GROUNDING_MODELS} for folder in (present.directory, half_files)
    ]
    bundles = [ScriptedBundle("fp32", paths[0], 1e-5), ScriptedBundle("fp16", paths[1], 1e-9)]
    with opened(present.directory) as reference:
        write_polygraphy_script(tmp_path / "check.py", reference, bundles, [inputs])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / "check.py"), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert re.search(r"^fp32: spans \S+ scores \S+ saliency \S+ presence \S+ \(limit 1e-05\)$", said, re.MULTILINE)
    assert re.findall(r"^beyond the limit: fp16: (\S+)$", said, re.MULTILINE) == sorted(OUTPUTS)


def test_int8_keeps_its_last_product_in_float(present, samples, data, tmp_path):
    queries = Queries(samples[6:], samples[:6], data)
    bundle = Bundle.open(present.directory)
    report = calibrate_int8(bundle, tmp_path / "int8", queries, Int8Options("amax"), silent, 1)
    assert report.models["head"].kept["presence.mlp.2"] == "last layer of a score"
    assert "presence.mlp.0" in report.models["head"].layers
    inputs = pad_inputs([samples[0].video], [samples[0].text])
    with Bundle.open(tmp_path / "int8").grounding_model(1) as int8, bundle.grounding_model(1) as fp32:
        error = max_abs_error(fp32, int8, [inputs])
    assert list(error) == OUTPUTS
    assert 0 < error[PRESENCE] < 0.1


# ---------------------------------------------------------------- engines


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_real_builder_for_rtx_makes_it_an_output(present, half_files, tmp_path, monkeypatch, precision):
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install '.[rtx]' on Linux x86-64")
    monkeypatch.setenv("SDST_CACHE", str(tmp_path / "cache"))
    source = (present.directory if precision == "fp32" else half_files) / "head.onnx"
    options = EngineOptions(target="rtx", compute=("8.9",))
    sidecar = build_engine(
        source, tmp_path / "head.plan", (Bucket(24, 2),), options, None, Progress(console=Console(quiet=True))
    )
    assert sidecar == read_sidecar(tmp_path / "head.plan")
    assert list(sidecar.outputs) == OUTPUTS
    assert (sidecar.outputs[PRESENCE].dtype, sidecar.outputs[PRESENCE].shape) == ("float32", ("B",))
