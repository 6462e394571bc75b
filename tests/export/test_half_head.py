"""The float16 head: which types it holds, how far it is from float32, and what padding must not change.

Half has 11 bits, a relative step of 4.9e-4, and some ten roundings follow each other: 1e-2 in a score or a saliency.
With random weights and noise for features neighbouring clips have nothing in common, so a moment's end moves by more
where it samples between them: 3e-2 of the video at most, 4e-3 on average.
"""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch

from sdst_export.errors import ExportError
from sdst_export.graph import save_model
from sdst_export.half import half_head
from sdst_export.models import export_head, export_projection, lower
from sdst_export.rdsa_op import rdsa_nodes
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import ContractError
from sdst_runtime.sessions.base import GroundingModel
from sdst_runtime.sessions.open import open_session
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

OUTPUTS = ("spans", "scores", "saliency")
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
FLOAT_WEIGHTS = (
    "norm", "project_video.0", "project_video.4", "project_text.0", "project_text.4", "sample.context",
    "sample.endpoints", "span.4", "classify", "actionness.mlp.4", "reference_logit", "dense.gate",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(exported) -> Checkpoint:
    return load_checkpoint(exported.checkpoint_path)


@pytest.fixture(scope="module")
def half(trained) -> SDST:
    return half_head(copy.deepcopy(trained.model).lower())


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """Both models in float16, as files."""
    folder = tmp_path_factory.mktemp("half")
    lowered = lower(trained, "fp16")
    for name, export in (("projection", export_projection), ("head", export_head)):
        save_model(export(lowered), folder / f"{name}.onnx")
    return folder


@pytest.fixture(scope="module")
def onnx_head(files) -> GroundingModel:
    return GroundingModel(*(open_session(files / f"{name}.onnx", 1) for name in ("projection", "head")))


def ragged(clips: list[int], tokens: list[int], seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return pad_inputs(
        [scale * rng.standard_normal((n, 2, 12)) for n in clips],
        [scale * rng.standard_normal((2, n, 16)) for n in tokens],
    )


CASES = {
    "one clip, one token": ([1], [1]),
    "ragged": ([75, 13, 2, 40], [20, 1, 7, 24]),
    "long": ([300, 150], [5, 9]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("runner", ["torch", "onnx"])
def test_half_is_near_float32(trained, half, onnx_head, runner, case):
    inputs = ragged(*CASES[case])
    expected = TorchSession(trained.model).run(inputs)
    got = (TorchSession(half) if runner == "torch" else onnx_head).run(inputs)
    for name in OUTPUTS:
        assert got[name].dtype == np.float32
        assert np.abs(got[name] - expected[name]).max() < (3e-2 if name == "spans" else 1e-2), name
    assert np.abs(got["spans"] - expected["spans"]).mean() < 4e-3


def test_features_in_the_thousands_stay_finite(trained, half, onnx_head):
    """Raw features beyond the range of half meet a LayerNorm in float32 first."""
    inputs = ragged([30, 9], [6, 3], scale=1e5)
    expected = TorchSession(trained.model).run(inputs)
    for head in (TorchSession(half), onnx_head):
        got = head.run(inputs)
        assert max(np.abs(got[name] - expected[name]).max() for name in OUTPUTS) < 1e-2


def test_padding_changes_nothing(onnx_head):
    """A query alone, and beside a longer video and a longer sentence: the same to a rounding of half."""
    alone = onnx_head.run(ragged([21], [5]))
    inputs = ragged([21, 60], [5, 17])
    alone_inputs = ragged([21], [5])
    inputs["video"][0, :21], inputs["text"][0, :, :5] = alone_inputs["video"][0], alone_inputs["text"][0]
    inputs["video"][0, 21:], inputs["text"][0, :, 5:] = np.nan, np.nan
    together = onnx_head.run(inputs)
    assert np.abs(together["spans"][0] - alone["spans"][0]).max() < 1e-3
    assert np.abs(together["scores"][0] - alone["scores"][0]).max() < 1e-3
    assert np.abs(together["saliency"][0, :21] - alone["saliency"][0]).max() < 1e-3
    assert (together["saliency"][0, 21:] == -1).all()


def test_which_weights_are_half(half):
    for name, parameter in half.named_parameters():
        stays = any(part in name for part in FLOAT_WEIGHTS)
        assert parameter.dtype == (torch.float32 if stays else torch.float16), name


def test_the_trained_model_is_left_alone(trained, half):
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    assert trained.model.sparse.sample is not half.sparse.sample


def test_types_in_the_graph(files):
    head = onnx.load(files / "head.onnx")
    types = {v.name: v.type.tensor_type.elem_type for v in (*head.graph.value_info, *head.graph.input)}
    types |= {i.name: i.data_type for i in head.graph.initializer}
    steps = rdsa_nodes(head.graph.node)
    assert len(steps) == 2
    for node in steps:  # value half; endpoints and reference float
        assert [types[name] for name in node.input] == [HALF, FLOAT, FLOAT, onnx.TensorProto.INT32]
        assert types[node.output[0]] == HALF
    for kind in ("LayerNormalization", "Softmax", "Sigmoid", "ReduceL2", "Sin"):
        used = [types[node.input[0]] for node in head.graph.node if node.op_type == kind]
        assert set(used) == {FLOAT}, kind
    products = [node for node in head.graph.node if node.op_type == "MatMul"]
    floats = {node.name.split("/")[0] for node in products if types[node.input[0]] == FLOAT}
    blends = {"actionness", ""}  # of rows between clips; the cosine of the saliency
    assert floats == {"sparse.sample.endpoints", "sparse.span.4", "classify", "actionness.mlp.4", *blends}
    assert types["projected"] == HALF
    assert {v.type.tensor_type.elem_type for v in head.graph.output} == {FLOAT}


def test_a_weight_beyond_float16_is_named(trained):
    model = copy.deepcopy(trained.model).lower()
    with torch.no_grad():
        model.dense.ffn[0].weight[1, 2] = 1e5
    with pytest.raises(ExportError, match=r"dense\.ffn\.0\.weight does not fit float16: largest 1e\+05"):
        half_head(model)


@pytest.mark.parametrize("change", [{"attention": "deformable_ca"}, {"attention": "full_ca"}, {"query_init": "pure"}])
def test_other_heads_in_half(trained, change):
    config = dataclasses.replace(trained.config.model, layers=1, **change)
    torch.manual_seed(1)
    checkpoint = Checkpoint(SDST(config).eval(), TrainConfig(model=config), trained.spec, 1, {})
    inputs = ragged([9, 4], [5, 3])
    expected = TorchSession(checkpoint.model).run(inputs)
    got = TorchSession(half_head(copy.deepcopy(checkpoint.model).lower())).run(inputs)
    assert max(np.abs(got[name] - expected[name]).max() for name in OUTPUTS) < 1e-2


def test_parts_of_two_exports_are_refused(files, exported):
    projection = open_session(exported.directory / "projection.onnx", 1)
    with pytest.raises(ContractError, match=r"projection gives float32 \[B, T, 2, 32\], the head takes float16"):
        GroundingModel(projection, open_session(files / "head.onnx", 1))
