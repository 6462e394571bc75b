"""The graphs that are written node by node compute what the torch model computes, for every switch of the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from sdst_export.errors import ExportError
from sdst_export.graph import save_model
from sdst_export.models import export_head, export_projection, lower
from sdst_export.rdsa_op import add_function, rdsa_nodes
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.sessions.base import GroundingModel
from sdst_runtime.sessions.open import open_session
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

STORED = 4  # layers of the features, one more than the model's steps
CONFIG = ModelConfig(video_width=12, text_width=16, layers=3, width=32, heads=4, points=2, queries=5)
SPEC = FeatureSpec(
    "tiny", "0" * 64, STORED, "mean", 2, 1.0, 16, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 12, "tiny", 12, 16
)  # fmt: skip
CHANGES = [
    {},
    {"attention": "deformable_ca"},
    {"attention": "full_ca"},
    {"query_init": "pure"},
    {"feature_mode": "last_repeat"},
    {"layer_order": "reversed"},
    {"gate": "raw"},
    {"reference_init": "random"},
    {"layers": 1},
    {"layers": 4},
    {"heads": 1, "points": 1, "queries": 1},
    {"presence": True},
    {"rdsa_context": "full"},
    {"rdsa_position": True},
    {"attention": "deformable_ca", "query_init": "pure", "feature_mode": "last_repeat"},
]


def random_model(**changes) -> Checkpoint:
    """No weight is zero, as some are before training."""
    torch.manual_seed(4)
    config = dataclasses.replace(CONFIG, **changes)
    model = SDST(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return Checkpoint(model, TrainConfig(model=config), SPEC, 1, {})


def written(checkpoint: Checkpoint, folder, precision="fp32") -> GroundingModel:
    lowered = lower(checkpoint, precision)
    for name, export in (("projection", export_projection), ("head", export_head)):
        save_model(export(lowered), folder / f"{name}.onnx")
    return GroundingModel(*(open_session(folder / f"{name}.onnx", 1) for name in ("projection", "head")))


def ragged(clips=(9, 4, 1, 30), tokens=(5, 3, 1, 8)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    videos = [rng.standard_normal((n, STORED, 12)) for n in clips]
    return pad_inputs(videos, [rng.standard_normal((STORED, n, 16)) for n in tokens])


@pytest.mark.parametrize("changes", CHANGES, ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_every_switch_of_the_model(tmp_path, changes):
    checkpoint = random_model(**changes)
    head = written(checkpoint, tmp_path)
    for inputs in (ragged(), ragged((1,), (1,)), ragged((75, 20), (12, 12))):
        expected, got = TorchSession(checkpoint.model).run(inputs), head.run(inputs)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
    steps = len(rdsa_nodes(onnx.load(tmp_path / "head.onnx").graph.node))
    assert steps == (checkpoint.model.config.layers if checkpoint.model.config.attention == "rdsa" else 0)


@pytest.mark.parametrize("changes", CHANGES[:5], ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_in_half(tmp_path, changes):
    checkpoint = random_model(**changes)
    expected, got = TorchSession(checkpoint.model).run(ragged()), written(checkpoint, tmp_path, "fp16").run(ragged())
    assert np.abs(got["spans"] - expected["spans"]).mean() < 1e-2
    assert max(np.abs(got[name] - expected[name]).max() for name in ("scores", "saliency")) < 2e-2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_order_of_small_scores_stays(tmp_path, precision):
    """Of a model whose actionness has gone to zero: below 1.5e-8 the sigmoid of ONNX Runtime on a CPU is flat."""
    checkpoint = random_model()
    with torch.no_grad():
        checkpoint.model.actionness.mlp[-1].bias -= 30
    expected = TorchSession(lower(checkpoint, precision).model).run(ragged())["scores"]
    got = written(checkpoint, tmp_path, precision).run(ragged())["scores"]
    assert expected.max() < 1e-10
    np.testing.assert_allclose(got, expected, rtol={"fp32": 1e-4, "fp16": 0.05}[precision], atol=0)
    if precision == "fp32":
        assert (np.argsort(-got, axis=1) == np.argsort(-expected, axis=1)).all()


def test_what_is_not_a_number_ends_no_run(tmp_path):
    """A half head may overflow: its answer is then no number, which the caller sees."""
    checkpoint = random_model()
    with torch.no_grad():
        checkpoint.model.dense.ffn[0].bias.fill_(float("nan"))
    got = written(checkpoint, tmp_path).run(ragged())
    assert np.isnan(got["scores"]).all()
    assert np.isnan(got["spans"]).all()


def test_the_body_is_of_one_size(tmp_path):
    written(random_model(), tmp_path)
    model = onnx.load(tmp_path / "head.onnx")
    next(a for a in rdsa_nodes(model.graph.node)[1].attribute if a.name == "num_points").i = 3
    with pytest.raises(ExportError, match="of one number of heads and points, got 2"):
        add_function(model, 32)


def test_nothing_is_computed_at_each_step_that_no_step_changes(tmp_path):
    """Positions, masks and the text's keys stand once in the graph; nodes a step are these and no more."""
    counts = []
    for layers in (2, 3):
        checkpoint = random_model(layers=layers)
        counts.append([node.op_type for node in export_head(lower(checkpoint)).graph])
    added = {kind: counts[1].count(kind) - counts[0].count(kind) for kind in set(counts[1])}
    once = {"Sin", "Cos", "Range", "ReduceSum", "Shape", "Concat", "Unsqueeze", "Cast", "Div", "GatherND"}
    assert not {kind: n for kind, n in added.items() if kind in once and n}
    assert {kind: added[kind] for kind in ("MatMul", "LayerNormalization", "Softmax", "RDSA", "Where")} == {
        "MatMul": 26, "LayerNormalization": 7, "Softmax": 4, "RDSA": 1, "Where": 0,
    }  # fmt: skip
