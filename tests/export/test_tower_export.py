"""Exported towers in float32 and float16: numbers, types, weights beside the graph, and the contract that travels."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from torch.nn import functional as F

import sdst.demo
from sdst_export.errors import ExportError
from sdst_export.graph import save_model
from sdst_export.half import Precision, half_products
from sdst_export.models import export_text, export_vision
from sdst_runtime import Grounder
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.grounding.bundle import EXPORT_REPORT, MODELS, TOKENIZER, Bundle, write_manifest
from sdst_runtime.sessions.base import GROUNDER_MODELS
from sdst_runtime.sessions.open import open_session
from sdst_train.backbone.text import BERT_LARGE_STAGE2, TextEncoder
from sdst_train.backbone.towers import Backbone, load_backbone
from sdst_train.backbone.vision import INTERNVIDEO2_1B, POOLS, VisionEncoder

CASES = [("wide", "fp32"), ("wide", "fp16"), ("tiny", "fp16")]  # test_export.py holds small ones in float32
PRODUCTS = {"MatMul", "Gemm", "Conv"}
STATISTICS = {"Softmax", "LayerNormalization", "ReduceMean"}


def sensible_weights(encoder: torch.nn.Module, seed: int) -> None:
    """Values of the size that training leaves: products keep their input's size, scales lie around one."""
    torch.manual_seed(seed)
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            tables = ("embed", "cls_token")
            std = 0.5 if any(word in name for word in tables) and "proj" not in name else parameter[0].numel() ** -0.5
            torch.nn.init.normal_(parameter, std=std)
        else:
            torch.nn.init.normal_(parameter, mean=0.0 if "bias" in name else 1.0, std=0.2)


@pytest.fixture(scope="module")
def wide() -> Backbone:
    """Two blocks and two text layers at the published widths; few patches and words."""
    vision = VisionEncoder(dataclasses.replace(INTERNVIDEO2_1B, depth=2, image_size=42, aligned_width=0))
    text = TextEncoder(dataclasses.replace(BERT_LARGE_STAGE2, depth=2, vocab_size=100))
    for encoder in (vision, text):
        sensible_weights(encoder, seed=3)
    spec = FeatureSpec(
        backbone="wide", backbone_sha256="", layers=2, pool="adaptive", frames_per_clip=4, clip_s=2.0, image_size=42,
        resize="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), video_width=768, text_model="wide",
        max_tokens=40, text_width=1024,
    )  # fmt: skip
    return Backbone.assemble(vision, text, spec, "")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The demo's own."""
    return load_backbone(Path(sdst.demo.__file__).parent / "assets" / "tiny_backbone.safetensors")


@pytest.fixture(scope="module")
def graphs(wide, tiny):
    """Exported towers by size ("wide", "tiny"), kind and precision, each made once."""

    @functools.cache
    def export(size: str, kind: str, precision: Precision) -> ir.Model:
        backbone = {"wide": wide, "tiny": tiny}[size]
        return export_vision(backbone, precision) if kind == "vision" else export_text(backbone, precision)

    return export


def clips_of(backbone: Backbone, count: int) -> np.ndarray:
    spec = backbone.spec
    shape = (count, spec.frames_per_clip, spec.image_size, spec.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def check_layers(got: np.ndarray, want: np.ndarray, precision: str) -> None:
    """Acceptance, layer by layer, of features ... K ... W whose layers are axis 1."""
    assert got.dtype == np.float32
    assert got.shape == want.shape
    if precision == "fp32":
        assert np.abs(got - want).max() < 1e-4
        return
    for one, other in zip(np.moveaxis(got, 1, 0), np.moveaxis(want, 1, 0), strict=True):
        assert F.cosine_similarity(torch.from_numpy(one), torch.from_numpy(other), dim=-1).min() > 0.999


@pytest.mark.parametrize(("size", "precision"), CASES)
def test_vision_equals_float32_torch(request, graphs, tmp_path, size, precision):
    backbone = request.getfixturevalue(size)
    clips = clips_of(backbone, 3)
    save_model(graphs(size, "vision", precision), tmp_path / "vision.onnx")
    session = open_session(tmp_path / "vision.onnx", threads=1)
    check_layers(session.run({"clips": clips})["features"], backbone.vision(torch.from_numpy(clips)).numpy(), precision)
    assert session.metadata["sdst.precision"] == precision


@pytest.mark.parametrize(("size", "precision"), CASES)
def test_text_equals_float32_torch(request, graphs, tmp_path, size, precision):
    backbone = request.getfixturevalue(size)
    ids, mask = np.random.default_rng(0).integers(1, 100, (3, 11)), np.arange(11) < np.array([[11], [1], [6]])
    save_model(graphs(size, "text", precision), tmp_path / "text.onnx")
    session = open_session(tmp_path / "text.onnx", threads=1)
    got = session.run({"token_ids": ids, "token_mask": mask})["features"]
    want = backbone.text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    check_layers(np.swapaxes(got, 1, 2)[mask], np.swapaxes(want, 1, 2)[mask], precision)  # valid tokens, K, X
    assert session.metadata["sdst.precision"] == precision


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool(tmp_path, pool):
    backbone = load_backbone(Path(sdst.demo.__file__).parent / "assets" / "tiny_backbone.safetensors", pool)
    clips = clips_of(backbone, 2)
    save_model(export_vision(backbone), tmp_path / "vision.onnx")
    got = open_session(tmp_path / "vision.onnx", threads=1).run({"clips": clips})["features"]
    assert np.abs(got - backbone.vision(torch.from_numpy(clips)).numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_half_graph_keeps_statistics_in_float32(graphs, kind):
    graph = graphs("tiny", kind, "fp16").graph
    types = {node.op_type: set() for node in graph}
    for node in graph:
        types[node.op_type] |= {value.dtype for value in node.inputs if value is not None}
    half, full = ir.DataType.FLOAT16, ir.DataType.FLOAT
    for name in PRODUCTS & types.keys():
        assert types[name] == {half}
    for name in STATISTICS & types.keys():
        assert types[name] <= {full, ir.DataType.INT64}  # ReduceMean's axes
    assert [value.dtype for value in graph.outputs] == [full]
    matrices = [v for v in graph.initializers.values() if v.dtype == full and np.prod(v.shape.numpy()) > 64]
    assert sorted(v.name for v in matrices) == (["encoder.pos_embed"] if kind == "vision" else [])


def test_half_tower_in_torch_is_what_is_exported(tiny, graphs, tmp_path):
    clips = clips_of(tiny, 2)
    before = tiny.vision(torch.from_numpy(clips))
    half = half_products(tiny.vision)(torch.from_numpy(clips)).numpy()
    save_model(graphs("tiny", "vision", "fp16"), tmp_path / "vision.onnx")
    got = open_session(tmp_path / "vision.onnx", threads=1).run({"clips": clips})["features"]
    assert np.abs(got - half).max() < 0.01 * np.abs(half).max()
    assert (before.numpy() != half).any()
    assert torch.equal(tiny.vision(torch.from_numpy(clips)), before)  # the tower that was given stays float32


def test_half_tower_survives_a_stream_beyond_float16():
    """Outlier channels of the residual stream, as large transformers have."""
    backbone = load_backbone(Path(sdst.demo.__file__).parent / "assets" / "tiny_backbone.safetensors")
    tower, clips = backbone.vision, torch.from_numpy(clips_of(backbone, 2))
    with torch.no_grad():
        tower.encoder.get_parameter("blocks.0.ls2.gamma")[5] = 1e6
    assert tower.encoder.hidden(tower.normalise(clips).permute(0, 4, 1, 2, 3), 4).abs().max() > 1e5
    check_layers(half_products(tower)(clips).numpy(), tower(clips).numpy(), "fp16")


def test_a_weight_beyond_float16_is_refused():
    tower = load_backbone(Path(sdst.demo.__file__).parent / "assets" / "tiny_backbone.safetensors").text
    with torch.no_grad():
        tower.encoder.get_parameter("bert.encoder.layer.0.output.dense.weight")[0, 0] = 1e5
    with pytest.raises(ExportError, match=r"layer\.0\.output\.dense\.weight does not fit float16: largest 1e\+05"):
        half_products(tower)


@pytest.fixture(scope="module")
def apart(exported, tmp_path_factory) -> Path:
    """The bundle of `exported` with all weights in .data files."""
    return save_again(exported.directory, tmp_path_factory.mktemp("apart") / "bundle", inline_limit=0)


def save_again(source: Path, target: Path, inline_limit: int) -> Path:
    """Write a bundle's models into another directory, its manifest last."""
    manifest = Bundle.open(source).manifest
    target.mkdir(exist_ok=True)
    for name in manifest.models.values():
        save_model(ir.load(source / name), target / name, inline_limit)
    for name in (TOKENIZER, EXPORT_REPORT):
        shutil.copy(source / name, target)
    write_manifest(target, manifest.spec, manifest.models, manifest.sdst_version)
    return target


def test_weights_beside_the_graph_give_the_same_answers(exported, apart, video):
    weights = {f"{name}.onnx.data" for name in MODELS}
    assert {path.name for path in apart.iterdir()} == weights | {path.name for path in exported.directory.iterdir()}
    assert weights <= Bundle.open(apart).manifest.files.keys()
    assert not weights & Bundle.open(exported.directory).manifest.files.keys()
    for name in [f"{name}.onnx" for name in MODELS]:
        assert (apart / name).stat().st_size < (exported.directory / name).stat().st_size
    one, other = (Grounder.load(directory, threads=1) for directory in (exported.directory, apart))
    mine, theirs = (grounder.ground(grounder.encode(video), "a red circle moves") for grounder in (one, other))
    assert mine.moments == theirs.moments
    assert np.array_equal(mine.saliency, theirs.saliency)


def test_changed_or_missing_weights_are_refused(apart, tmp_path):
    bundle = Path(shutil.copytree(apart, tmp_path / "bundle"))
    data = bytearray((bundle / "vision.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "vision.onnx.data").write_bytes(data)
    with pytest.raises(ContractError, match=r"vision\.onnx\.data has changed"):
        Grounder.load(bundle)
    (bundle / "vision.onnx.data").unlink()
    with pytest.raises(InputError, match=r"vision\.onnx\.data is missing"):
        Grounder.load(bundle)


def test_a_later_export_leaves_no_old_weights(exported, apart, tmp_path):
    bundle = save_again(exported.directory, Path(shutil.copytree(apart, tmp_path / "bundle")), inline_limit=10**9)
    assert {path.name for path in bundle.iterdir()} == {path.name for path in exported.directory.iterdir()}
    assert Bundle.open(bundle).manifest.files.keys() == Bundle.open(exported.directory).manifest.files.keys()


@pytest.mark.parametrize("inline_limit", [0, 10**9])
def test_a_graph_that_the_checker_refuses_is_not_written(exported, tmp_path, inline_limit):
    model = ir.load(exported.directory / "text.onnx")
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "Softermax"
    (tmp_path / "text.onnx").write_bytes(b"old")
    with pytest.raises(ExportError, match="Softermax"):
        save_model(model, tmp_path / "text.onnx", inline_limit)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"text.onnx": b"old"}


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("place", ["bundle.json", *(f"{name}.onnx" for name in GROUNDER_MODELS)])
def test_one_changed_statistic_anywhere_is_refused(exported, tmp_path, place, field):
    """The digests are made to fit, so that it is the contracts that disagree."""
    bundle = Path(shutil.copytree(exported.directory, tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    if place == "bundle.json":
        manifest["spec"][field][1] += 1e-3
    else:
        model = onnx.load(bundle / place)
        (entry,) = (prop for prop in model.metadata_props if prop.key == "sdst.spec")
        spec = json.loads(entry.value)
        spec[field][1] += 1e-3
        entry.value = json.dumps(spec)
        onnx.save(model, bundle / place)
        manifest["files"][place] = sha256_file(bundle / place)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(ContractError, match=f"feature contracts disagree on {field}: .* has .* needs .*"):
        Grounder.load(bundle)
