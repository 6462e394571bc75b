"""The exported graphs: what they hold, and that they compute what torch computes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sdst_calib.parity.measure import max_abs_error
from sdst_export.errors import ExportError
from sdst_export.graph import save_model
from sdst_export.models import export_head, export_sentence, lower, require_rdsa
from sdst_export.rdsa_op import rdsa_nodes
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.grounding.bundle import MODELS, Bundle, write_manifest
from sdst_runtime.sessions.open import open_session
from sdst_train.backbone.towers import load_backbone
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession


def head_inputs(spec: FeatureSpec, B: int, T: int, L: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs with ragged lengths."""
    rng = np.random.default_rng(seed)
    video_length, text_length = rng.integers(1, T + 1, B), rng.integers(1, L + 1, B)
    video_length[0], text_length[0] = T, L
    return {
        "video": rng.normal(size=(B, T, spec.layers, spec.video_width)).astype(np.float32),
        "video_mask": np.arange(T) < video_length[:, None],
        "text": rng.normal(size=(B, spec.layers, L, spec.text_width)).astype(np.float32),
        "text_mask": np.arange(L) < text_length[:, None],
    }


@pytest.fixture(scope="module")
def head(exported) -> onnx.ModelProto:
    return onnx.load(exported.directory / "head.onnx")


def test_one_rdsa_node_a_step_at_top_level(head):
    nodes = rdsa_nodes(head.graph.node)
    assert len(nodes) == 2
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {
            "num_heads": 4,
            "num_points": 2,
            "plugin_version": b"1",
            "plugin_namespace": b"sdst",
        }
        assert len(node.input) == 4
        assert len(node.output) == 1


def test_the_function_is_the_only_one_and_opsets_agree(head):
    assert [(f.domain, f.name) for f in head.functions] == [("sdst", "RDSA")]
    versions = {o.domain: o.version for o in head.opset_import}
    assert versions == {"": 20, "sdst": 1}
    assert {o.domain: o.version for o in head.functions[0].opset_import}[""] == 20


def test_rdsa_input_types_are_the_ops(head):
    types = {v.name: v.type.tensor_type.elem_type for v in (*head.graph.value_info, *head.graph.input)}
    types |= {i.name: i.data_type for i in head.graph.initializer}
    float32, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    for node in rdsa_nodes(head.graph.node):
        assert [types[name] for name in node.input] == [float32, float32, float32, int32]


def test_axes_are_named_and_no_path_of_this_machine_travels(head, exported):
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*head.graph.input, *head.graph.output)
    }
    assert shapes == {
        "projected": ["B", "T", 2, 32],
        "video_mask": ["B", "T"],
        "text": ["B", 2, "L", 16],
        "text_mask": ["B", "L"],
        "spans": ["B", 5, 2],
        "scores": ["B", 5],
        "saliency": ["B", "T"],
    }
    for name in MODELS:
        data = (exported.directory / f"{name}.onnx").read_bytes()
        assert b".py" not in data
        assert str(Path.home()).encode() + b"/" not in data


@pytest.mark.parametrize(("B", "T", "L"), [(1, 1, 1), (1, 75, 20), (4, 13, 6), (3, 2, 24), (2, 200, 3)])
def test_head_equals_torch(exported, B, T, L):
    checkpoint = load_checkpoint(exported.checkpoint_path)
    onnx_head = Bundle.open(exported.directory).grounding_model()
    errors = max_abs_error(TorchSession(checkpoint.model), onnx_head, [head_inputs(checkpoint.spec, B, T, L)])
    assert errors.keys() == {"spans", "scores", "saliency"}
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 7])
def test_vision_equals_torch(exported, count):
    tower = load_backbone(exported.backbone_path).vision
    clips = np.random.default_rng(0).integers(0, 256, (count, 2, 28, 28, 3), dtype=np.uint8)
    got = open_session(exported.directory / "vision.onnx").run({"clips": clips})["features"]
    with torch.no_grad():
        assert np.abs(tower(torch.from_numpy(clips)).numpy() - got).max() < 1e-5
    assert got.shape == (count, 2, 12)


@pytest.mark.parametrize(("B", "L"), [(1, 1), (3, 24)])
def test_text_equals_torch(exported, B, L):
    tower = load_backbone(exported.backbone_path).text
    ids = np.random.default_rng(0).integers(4, 100, (B, L))
    mask = np.arange(L) < np.linspace(1, L, B).astype(int)[:, None]
    got = open_session(exported.directory / "text.onnx").run({"token_ids": ids, "token_mask": mask})["features"]
    with torch.no_grad():
        expected = tower(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    valid = np.broadcast_to(mask[:, None, :, None], got.shape)
    assert np.abs(expected - got)[valid].max() < 1e-5


def pooled(model: SDST, text: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """B K F: the pooled projected text of each step that training aligns with the clips, at length one."""
    valid = torch.from_numpy(mask)
    video = torch.zeros(len(text), 3, text.shape[1], model.config.video_width)
    with torch.no_grad():
        outputs = model(video, torch.ones(len(text), 3, dtype=torch.bool), torch.from_numpy(text), valid)
    return torch.nn.functional.normalize(outputs.text_KBF, dim=-1).transpose(0, 1).numpy()


@pytest.mark.parametrize(
    ("feature_mode", "layer_order"),
    [("intermediate", "forward"), ("intermediate", "reversed"), ("last_repeat", "forward")],
)
def test_sentence_equals_torch(exported, tmp_path, feature_mode, layer_order):
    """The pooled text of each step, in the order in which `projected` has the steps, whatever the padding holds."""
    trained = load_checkpoint(exported.checkpoint_path)
    config = TrainConfig(model=replace(trained.config.model, feature_mode=feature_mode, layer_order=layer_order))
    torch.manual_seed(2)
    checkpoint = Checkpoint(SDST(config.model).eval(), config, trained.spec, 1, {})
    save_model(export_sentence(lower(checkpoint)), tmp_path / "sentence.onnx")
    inputs = head_inputs(trained.spec, 3, 4, 9)
    text, mask = inputs["text"], inputs["text_mask"]
    session = open_session(tmp_path / "sentence.onnx")
    got = session.run({"text": text, "text_mask": mask})["sentence"]
    assert np.abs(pooled(checkpoint.model, text, mask) - got).max() < 1e-5
    noisy = np.where(mask[:, None, :, None], text, 1e4).astype(np.float32)
    np.testing.assert_array_equal(session.run({"text": noisy, "text_mask": mask})["sentence"], got)


def test_sentence_of_an_fp16_bundle_is_near_and_float32(exported, exported_fp16):
    inputs = head_inputs(load_checkpoint(exported.checkpoint_path).spec, 3, 4, 9)
    feed = {name: inputs[name] for name in ("text", "text_mask")}
    exact, half = (
        open_session(folder / "sentence.onnx").run(feed)["sentence"] for folder in (exported.directory, exported_fp16)
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 2e-3
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-6)


def test_a_bundle_without_the_sentence_grounds_and_says_what_it_lacks(exported, tmp_path):
    """As those that an older version exported."""
    old = shutil.copytree(exported.directory, tmp_path / "old")
    models = {name: f"{name}.onnx" for name in MODELS if name != "sentence"}
    (old / "sentence.onnx").unlink()
    bundle = Bundle.open(write_manifest(old, Bundle.open(exported.directory).manifest.spec, models, "0.1.0").directory)
    assert bundle.models == MODELS[:4]
    assert bundle.grounding_model().outputs.keys() == {"spans", "scores", "saliency"}
    with pytest.raises(ContractError, match=r"has no sentence model.*export the bundle again"):
        bundle.session("sentence")


@pytest.mark.parametrize("attention", ["deformable_ca", "full_ca"])
def test_other_attentions_export_without_rdsa(exported, attention):
    trained = load_checkpoint(exported.checkpoint_path)
    config = TrainConfig(model=replace(trained.config.model, attention=attention, layers=1))
    torch.manual_seed(1)
    checkpoint = Checkpoint(SDST(config.model).eval(), config, trained.spec, 1, {})
    assert rdsa_nodes(export_head(lower(checkpoint)).graph) == []


def test_a_graph_that_lost_a_node_is_refused(head):
    require_rdsa(head.graph.node, 2)
    broken = onnx.ModelProto()
    broken.CopyFrom(head)
    rdsa_nodes(broken.graph.node)[0].domain = "other"
    with pytest.raises(ExportError, match="expected 2 sdst::RDSA nodes, one a step, the graph has 1"):
        require_rdsa(broken.graph.node, 2)


def test_session_names_what_is_wrong_with_its_inputs(exported):
    session = Bundle.open(exported.directory).grounding_model()
    spec = load_checkpoint(exported.checkpoint_path).spec
    inputs = head_inputs(spec, 2, 5, 3)
    with pytest.raises(InputError, match=r"expected inputs .*'text_mask'.* got \['text'"):
        session.run({name: array for name, array in inputs.items() if name != "text_mask"})
    with pytest.raises(InputError, match=r"input 'video': expected float32 \[B, T, 2, 12\], got float64"):
        session.run({**inputs, "video": inputs["video"].astype(np.float64)})
    with pytest.raises(InputError, match=r"input 'video'.*got float32 \[2, 5, 2, 11\]"):
        session.run({**inputs, "video": inputs["video"][..., :-1]})
    with pytest.raises(InputError, match=r"axis T is 5 in 'video' and 4 in 'video_mask'"):
        session.run({**inputs, "video_mask": inputs["video_mask"][:, :-1]})
    with pytest.raises(InputError, match=r"expected a \.onnx or \.plan file"):
        open_session(exported.checkpoint_path)


def test_a_bundle_of_the_old_format_is_refused(exported, tmp_path):
    old = shutil.copytree(exported.directory, tmp_path / "old")
    manifest = json.loads((old / "bundle.json").read_text())
    (old / "bundle.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ContractError, match="bundle format 1, this sdst reads 2; export it again"):
        Bundle.open(old)


def test_one_projection_serves_many_sentences(exported):
    """The projection of one video, repeated, is what each of a batch would get."""
    head, spec = Bundle.open(exported.directory).grounding_model(), load_checkpoint(exported.checkpoint_path).spec
    inputs = head_inputs(spec, 3, 40, 6)
    for name in ("video", "video_mask"):
        inputs[name] = np.repeat(inputs[name][:1], 3, axis=0)
    projected = head.projection.run({name: inputs[name][:1] for name in ("video", "video_mask")})["projected"]
    given = {name: inputs[name] for name in ("video_mask", "text", "text_mask")}
    apart = head.head.run({**given, "projected": np.repeat(projected, 3, axis=0)})
    for name, together in head.run(inputs).items():
        assert np.abs(apart[name] - together).max() < 1e-5


def test_parity_sees_shapes_and_nan(exported):
    class Fixed(TorchSession):
        def __init__(self, value):
            self.value = value

        def run(self, inputs):
            return {"x": self.value}

    one = Fixed(np.array([1.0, 2.0]))
    assert max_abs_error(one, Fixed(np.array([1.5, 2.0])), [{}, {}]) == {"x": 0.5}
    assert np.isnan(max_abs_error(one, Fixed(np.array([np.nan, 2.0])), [{}])["x"])
    with pytest.raises(ContractError, match="differ in shape"):
        max_abs_error(one, Fixed(np.array([1.0])), [{}])


def polygraphy(*arguments: object) -> str:
    command = [str(Path(sys.executable).with_name("polygraphy")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_polygraphy_runs_the_head_without_us(exported):
    valid = ("--val-range", "video_mask:[1,1]", "text_mask:[1,1]")  # a video has a clip at least
    assert "PASSED" in polygraphy("run", exported.directory / "head.onnx", "--onnxrt", *valid)


def test_polygraphy_lists_the_rdsa_nodes(exported):
    shown = polygraphy("inspect", "model", exported.directory / "head.onnx", "--show", "layers", "attrs")
    assert "sdst::RDSA.step1 [Op: RDSA]" in shown
    assert "sdst::RDSA.step2 [Op: RDSA]" in shown
    assert shown.count("plugin_namespace = sdst") == 2
