"""`sdst export --keep-fp32`: what is named stays float32 in the files, what is not stays half, and export.json says so.

One bundle keeps modules of all models but the sentence, whose modules are the head's. Faults that an audit finds, and
what keeping mends, are in test_audit.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_reports import read_report

from sdst.cli import main
from sdst_export.bundle import export_bundle
from sdst_export.errors import ExportError
from sdst_export.graph import save_model
from sdst_export.half import half_head, half_products
from sdst_export.keep import read_keep
from sdst_export.models import export_head, lower
from sdst_export.report.export_report import ExportReport
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.grounding.bundle import MODELS, Bundle
from sdst_runtime.sessions.base import GroundingModel
from sdst_runtime.sessions.open import open_session
from sdst_train.backbone.towers import load_backbone
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.torch_session import TorchSession

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
LAYER = "encoder.bert.encoder.layer.1"
KEPT = {
    "vision": ["encoder.blocks.1.mlp.fc2", "encoder.blocks.0.attn.k_norm"],
    "text": [f"{LAYER}.attention.self.query"],
    "projection": ["project_video.6"],
    "head": ["dense.ffn.0", "sparse.sample", "sparse.cross.key"],
}
PRODUCTS = {  # places whose products compute in float32 for it: (all of) an attention with one of its parts
    "vision": {"encoder.blocks.1.mlp.fc2", "encoder.blocks.0.attn.qkv", "encoder.blocks.0.attn.proj",
               "encoder.blocks.0.attn"},
    "text": {f"{LAYER}.attention.self"},
    "projection": {"project_video.6"},
    "head": {"dense.ffn.0", "sparse.sample.value", "sparse.sample.out", "sparse.cross", "sparse.cross.query",
             "sparse.cross.out"},
    "sentence": set(),
}  # fmt: skip
ALWAYS = {"sparse.sample.endpoints", "sparse.span.4", "classify", "actionness.mlp.4", "actionness", ""}  # as half_head

_ATTN, _BERT = "encoder.blocks.0.attn", f"{LAYER}.attention"
ADDED_CASTS = {  # of KEPT, by types: a cast before each kept module and behind what it hands on, those between go
    "vision": {
        "float16 to float": {
            "encoder.blocks.1.mlp.fc2": 1, "encoder.blocks.1.ls2": -1, "encoder.blocks.0.ls1": -1,
            _ATTN: -1, f"{_ATTN}.q_norm": -1, f"{_ATTN}.k_norm": -1,
        },
        "float to float16": {_ATTN: -1, f"{_ATTN}.qkv": -1, f"{_ATTN}.q_norm": -1, f"{_ATTN}.k_norm": -1},
    },
    "text": {
        "float16 to float": {f"{_BERT}.self": -1},
        "float to float16": {f"{_BERT}.self": -2, f"{_BERT}.output.dense": 1},
    },
    "projection": {"float16 to float": {"project_video.6": 1}},
    "head": {
        "float16 to float": {
            "dense": 1, "dense.ffn.0": 2, "dense.after_cross": 2, "dense.after_cross.norm": -2,  # 2: one a step
            "sparse.cross": -1, "sparse.cross.query": 1,  # those of the first step are constants
            "sparse.after_cross": 2, "sparse.after_cross.norm": -2,
            "sparse.sample.value": 2, "sparse.after_sample": 2, "sparse.after_sample.norm": -2,
        },
        "float to float16": {
            "dense.ffn.2": 2, "dense.cross.query": 3, "dense.self_attention": 1,  # with those of the positions
            "sparse.cross": -2, "": -1,
        },
    },
    "sentence": {},
}  # fmt: skip


def write_keep(path: Path) -> Path:
    lines = [f"{model}: {name}  # tested" for model, names in KEPT.items() for name in names]
    path.write_text("\n".join(["# modules that stay", "", *lines, lines[0]]), encoding="utf-8")  # one of them twice
    return path


def export(exported, out: Path, keep: Path, precision: str = "fp16") -> int:
    files = [str(exported.checkpoint_path), "--backbone", str(exported.backbone_path), "--out", str(out)]
    return main(["export", *files, "--precision", precision, "--keep-fp32", str(keep)])


@pytest.fixture(scope="module")
def kept(exported, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("kept")
    assert export(exported, folder / "bundle", write_keep(folder / "keep.txt")) == 0
    return Bundle.open(folder / "bundle")


def products(path: Path) -> Iterator[tuple[str, int]]:
    """Module and type of every matrix product and convolution of a file."""
    graph = onnx.load(path).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {weight.name: weight.data_type for weight in graph.initializer}
    for node in graph.node:
        if node.op_type in {"MatMul", "Gemm", "Conv"}:
            (kind,) = {types[name] for name in node.input}  # one type a product
            yield node.name.split("/")[0], kind


def added_casts(report: ExportReport, plain: ExportReport, model: str, types: str) -> dict[str, int]:
    """Module -> how many casts of these types it has more, or fewer, in `report` than in `plain`."""
    casts, others = (one.models[model].casts.get(types, {}) for one in (report, plain))
    changes = {place: casts.get(place, 0) - others.get(place, 0) for place in {*casts, *others}}
    return {place: change for place, change in changes.items() if change}


# ---------------------------------------------------------------- the bundle


@pytest.mark.parametrize("model", MODELS)
def test_what_is_named_computes_in_float32_and_nothing_else(kept, exported_fp16, model):
    floats = {place for place, kind in products(kept.path(model)) if kind == FLOAT}
    before = {place for place, kind in products(exported_fp16 / f"{model}.onnx") if kind == FLOAT}
    assert not before & PRODUCTS[model]
    assert before == ({*ALWAYS, "sparse.sample.context"} if model == "head" else set())
    assert floats - before == PRODUCTS[model]
    halves = {place for place, kind in products(kept.path(model)) if kind == HALF}
    assert len(halves) >= (1 if model in ("projection", "sentence") else 8)
    assert not halves & floats


def test_a_kept_product_hands_on_float32(kept, exported, exported_fp16):
    """The projection ends in the kept product: no rounding of its weights, nor of what it gives."""
    rng = np.random.default_rng(3)
    feed = {"video": rng.standard_normal((2, 40, 2, 12), np.float32), "video_mask": np.ones((2, 40), bool)}
    exact, half, mended = (
        open_session(directory / "projection.onnx", 1).run(feed)["projected"]
        for directory in (exported.directory, exported_fp16, kept.directory)
    )
    assert (half.dtype, mended.dtype) == (np.float16, np.float32)
    assert (mended != mended.astype(np.float16)).mean() > 0.9
    assert np.abs(mended - exact).mean() < 0.9 * np.abs(half - exact).mean()


def test_the_bundle_runs_and_is_near_float32(kept, exported):
    rng = np.random.default_rng(4)
    feed = {"video": rng.standard_normal((3, 30, 2, 12), np.float32), "video_mask": np.ones((3, 30), bool)}
    feed |= {"text": rng.standard_normal((3, 2, 8, 16), np.float32), "text_mask": np.ones((3, 8), bool)}
    heads = [
        GroundingModel(*(open_session(directory / f"{name}.onnx", 1) for name in ("projection", "head")))
        for directory in (exported.directory, kept.directory)
    ]
    exact, got = (head.run(feed) for head in heads)
    assert all(got[name].dtype == np.float32 for name in exact)
    assert max(np.abs(got[name] - exact[name]).max() for name in ("scores", "saliency")) < 1e-2
    assert np.abs(got["spans"] - exact["spans"]).max() < 3e-2
    clips = rng.integers(0, 255, (2, 2, 28, 28, 3), np.uint8)
    tokens = {"token_ids": rng.integers(1, 50, (2, 7)), "token_mask": np.ones((2, 7), bool)}
    for name, feed in (("vision", {"clips": clips}), ("text", tokens)):
        files = (directory / f"{name}.onnx" for directory in (exported.directory, kept.directory))
        exact, got = (open_session(file, 1).run(feed)["features"] for file in files)
        assert 0 < np.abs(got - exact).max() < 2e-2 * np.abs(exact).max(), name


def test_the_report_says_what_was_kept_and_where_the_casts_are(kept, exported_fp16):
    report, plain = read_report(kept.directory), read_report(exported_fp16)
    assert report.kept == KEPT
    assert plain.kept == {}
    for model in MODELS:
        for types in ("float16 to float", "float to float16"):
            assert added_casts(report, plain, model, types) == ADDED_CASTS[model].get(types, {}), (model, types)


def test_the_same_modules_give_the_same_bytes(kept, exported, tmp_path):
    checkpoint = load_checkpoint(exported.checkpoint_path)
    save_model(export_head(lower(checkpoint, "fp16", [*KEPT["projection"], *KEPT["head"]])), tmp_path / "head.onnx")
    assert (tmp_path / "head.onnx").read_bytes() == kept.path("head").read_bytes()


# ---------------------------------------------------------------- the modules, in torch


@pytest.mark.parametrize("name", ["dense.cross.query", "dense.cross", "sparse.sample.value", "sparse.ffn", "dense",
                                  "sparse", "project_video", "project_video.6", "dense.after_ffn", "actionness",
                                  "text_pool.weight", "dense.after_ffn.norm"])  # fmt: skip
def test_any_module_of_the_head_may_be_kept(exported, name):
    """The kept module's weights are float32, the result stays near float32, and all types fit together."""
    checkpoint = load_checkpoint(exported.checkpoint_path)
    model = half_head(copy.deepcopy(checkpoint.model).lower(), [name])
    kept = [p for path, p in model.named_parameters() if path.startswith(f"{name}.")]
    assert kept
    assert {p.dtype for p in kept} == {torch.float32}
    rng = np.random.default_rng(2)
    inputs = pad_inputs(
        [rng.standard_normal((n, 2, 12)) for n in (30, 7)], [rng.standard_normal((2, n, 16)) for n in (5, 9)]
    )
    expected, got = TorchSession(checkpoint.model).run(inputs), TorchSession(model).run(inputs)
    assert max(np.abs(got[output] - expected[output]).max() for output in expected) < 3e-2


def test_one_product_keeps_its_whole_attention(exported):
    model = half_head(load_checkpoint(exported.checkpoint_path).model.lower(), ["dense.cross.query"])
    assert {p.dtype for p in model.dense.cross.parameters()} == {torch.float32}
    assert model.dense.self_attention.query.weight.dtype == torch.float16


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_any_module_of_a_tower_may_be_kept(exported, tower):
    backbone = load_backbone(exported.backbone_path)
    rng = torch.manual_seed(0)
    clips = torch.randint(0, 255, (2, 2, 28, 28, 3), generator=rng, dtype=torch.uint8)
    words = torch.randint(1, 50, (2, 7), generator=rng), torch.ones(2, 7, dtype=torch.bool)
    module, inputs = (backbone.vision, (clips,)) if tower == "vision" else (backbone.text, words)
    with torch.no_grad():
        exact = module(*inputs)
        for name, _ in list(module.named_modules())[1:]:
            halved = half_products(module, [name])
            assert {p.dtype for p in halved.get_submodule(name).parameters()} <= {torch.float32}, name
            assert (halved(*inputs) - exact).abs().max() < 2e-2 * exact.abs().max(), name


def test_a_weight_beyond_float16_may_be_kept(exported):
    model = load_checkpoint(exported.checkpoint_path).model.lower()
    with torch.no_grad():
        model.get_parameter("dense.ffn.0.weight")[1, 2] = 1e5
    with pytest.raises(ExportError, match=r"dense\.ffn\.0\.weight does not fit .*; keep its module in fp32 \(--keep-"):
        half_head(copy.deepcopy(model))
    assert half_head(model, ["dense.ffn.0"]).get_parameter("dense.ffn.0.weight")[1, 2] == 1e5


# ---------------------------------------------------------------- bad input


def test_a_file_without_modules_keeps_nothing(tmp_path):
    for text in ("", "# nothing needs to stay\n\n   # at all"):
        (tmp_path / "keep.txt").write_text(text)
        assert read_keep(tmp_path / "keep.txt") == {}


BAD = {
    "vision: encoder.blocks.1.mlp.fc22": "is no module of the VisionTower; did you mean encoder.blocks.1.mlp.fc2?",
    "head: dense.fnn.0": "'dense.fnn.0' is no module of the SDST; did you mean dense.ffn.0?",
    "head: zzz": "'zzz' is no module of the SDST; take the names from sdst calibrate audit",
    "tail: ffn": "line 1: expected MODEL: MODULE with one of vision, text, projection, head, sentence, got 'tail: ffn'",
    "dense.ffn.0": "keep.txt, line 1: expected MODEL: MODULE with one of",
    "head dense.ffn.0": "keep.txt, line 1: expected MODEL: MODULE with one of",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_ends_the_command_before_anything_is_written(exported, tmp_path, capsys, line):
    (tmp_path / "keep.txt").write_text(line)
    assert export(exported, tmp_path / "out", tmp_path / "keep.txt") == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert BAD[line] in told[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_one_that_is_no_text_are_named(exported, tmp_path, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", "binary"):
        assert export(exported, tmp_path / "out", tmp_path / name) == 2
        assert f"cannot read {tmp_path / name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_fp32_bundle_keeps_all_and_is_told_so(exported, tmp_path, capsys):
    assert export(exported, tmp_path / "out", write_keep(tmp_path / "keep.txt"), precision="fp32") == 2
    assert "--keep-fp32: expected with --precision fp16" in capsys.readouterr().err
    checkpoint, backbone = load_checkpoint(exported.checkpoint_path), load_backbone(exported.backbone_path)
    with pytest.raises(ExportError, match="expected modules of an fp16 bundle, got them with fp32"):
        export_bundle(checkpoint, backbone, tmp_path / "out", keep=read_keep(tmp_path / "keep.txt"))
    assert not (tmp_path / "out").exists()
