"""int8 bundles: close to their source, the planted layer left out, bad data and the command."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from int8_world import FEW, World, dead, make_world, silent, with_models, write_features
from onnx import TensorProto, numpy_helper
from onnxscript import ir

from sdst.cli import main
from sdst_calib.int8 import trial as int8_trial
from sdst_calib.int8.calibrate import Int8Options, calibrate_int8, open_source
from sdst_calib.int8.quantise import find_products
from sdst_calib.int8.trial import Trial
from sdst_export.graph import save_model
from sdst_export.models import export_head, lower
from sdst_export.rdsa_op import rdsa_nodes
from sdst_runtime.data.dataset import Sample, pad_inputs
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.sessions.open import open_session
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST


@pytest.fixture(scope="module")
def world(exported, tmp_path_factory) -> World:
    return make_world(exported, tmp_path_factory.mktemp("int8"))


def digest(*parts: str) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def test_the_search_finds_the_planted_layer(world, tmp_path):
    options = Int8Options("amax", budget=2.0, exclude=FEW)
    report = calibrate_int8(world.bundle, tmp_path / "int8", world.queries, options, silent, 1)
    assert report.sensitivity[0].layer == "head:dense.ffn.2"
    assert report.sensitivity[0].drop > 5 > 2 >= report.measured.drop
    assert report.models["head"].layers == ["dense.ffn.0"]
    assert report.models["head"].kept["dense.ffn.2"] == "left out to stay within 2 points"
    assert report.models["head"].kept["dense.cross.query"] == "excluded by the user"
    assert report.models["head"].kept["classify"] == "last layer of a score"
    named, original = (
        {node.name: node for node in onnx.load(path).graph.node}
        for path in (tmp_path / "int8" / "head.onnx", world.bundle.path("head"))
    )
    products = [name for name in named if name.startswith("dense.ffn.2/MatMul")]
    assert len(products) == 2
    assert all(named[name] == original[name] for name in products)


def test_a_bundle_close_to_its_source(exported, world, tmp_path):
    """All default layers of head and text, without the planted fault: written, opened and run as any bundle."""
    bundle, out = Bundle.open(exported.directory), tmp_path / "int8"
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8" / "export.json").write_text("of an older bundle")
    options = Int8Options("mse", ("head", "projection", "text"))
    report = calibrate_int8(bundle, out, world.queries, options, silent, 1)
    assert 1e-4 < report.measured.error < 0.1
    written = Bundle.open(out)
    assert set(written.manifest.files) == {
        "vision.onnx", "text.onnx", "projection.onnx", "head.onnx", "sentence.onnx", "tokenizer.json", "int8.json",
    }  # fmt: skip
    assert (out / "vision.onnx").read_bytes() == bundle.path("vision").read_bytes()
    inputs = pad_inputs([world.queries.measured[0].video], [world.queries.measured[0].text])
    with written.grounding_model(1) as ours, bundle.grounding_model(1) as theirs:
        assert ours.metadata["sdst.precision"] == "int8"
        assert ours.metadata["sdst.steps"] == "2"
        got, expected = ours.run(inputs), theirs.run(inputs)
    assert 0 < np.abs(got["saliency"] - expected["saliency"]).max() < 0.1
    with written.session("vision", 1) as vision:
        assert vision.metadata["sdst.precision"] == "fp32"
    told = json.loads((out / "int8.json").read_text())
    head = onnx.load(out / "head.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in head.graph.initializer}
    scales = told["models"]["head"]["activations"]
    assert scales == {name.removesuffix("/scale"): pytest.approx(float(value)) for name, value in held.items()
                      if name.endswith("/scale") and value.ndim == 0}  # fmt: skip
    assert told["models"]["head"]["source_sha256"] == bundle.manifest.files["head.onnx"]
    assert told["method"] == "mse"
    assert told["sensitivity"] == []
    with pytest.raises(ContractError, match=r"head\.onnx: is int8 already; give the bundle that it was made from"):
        calibrate_int8(written, tmp_path / "twice", world.queries, Int8Options(models=("head",)), silent, 1)


def test_a_half_bundle_gets_half_scales(exported_fp16, world, tmp_path):
    report = calibrate_int8(Bundle.open(exported_fp16), tmp_path / "int8", world.queries, Int8Options("mse"), silent, 1)
    assert report.measured.error < 0.1
    head = onnx.load(tmp_path / "int8" / "head.onnx")
    types = {t.data_type for t in head.graph.initializer if t.name.endswith("/scale")}
    assert types == {TensorProto.FLOAT16}


def test_a_head_without_rdsa(exported, world, tmp_path):
    """Deformable attention has no such node; what says where it looks stays all the same."""
    checkpoint = load_checkpoint(exported.checkpoint_path)
    model = SDST(dataclasses.replace(checkpoint.model.config, attention="deformable_ca")).eval()
    model.load_state_dict(checkpoint.model.state_dict(), strict=False)
    torch.manual_seed(0)
    sample: Any = model.sparse.sample
    torch.nn.init.normal_(sample.offset.weight, std=0.02)
    torch.nn.init.normal_(sample.logit.weight, std=0.2)
    head = export_head(lower(Checkpoint(model, TrainConfig(model=model.config), checkpoint.spec, 1, {})))
    bundle = with_models(exported.directory, tmp_path / "deformable", head=head)
    report = calibrate_int8(bundle, tmp_path / "int8", world.queries, Int8Options("amax"), silent, 1)
    assert {"sparse.sample.offset", "sparse.sample.logit"} <= report.models["head"].kept.keys()
    assert report.measured.error < 0.1
    assert not rdsa_nodes(onnx.load(tmp_path / "int8" / "head.onnx").graph.node)


def changed(samples: list[Sample], video: float) -> list[Sample]:
    return [dataclasses.replace(sample, video=np.full_like(sample.video, video)) for sample in samples]


def test_data_that_cannot_calibrate(world, tmp_path):
    good = world.queries
    for samples, message in (
        ([], r"expected at least one query, got none"),
        (changed(good.calibration, 0.5), r"'video' is 0\.5 everywhere"),
        (changed(good.calibration, np.nan), r"'video' holds \d+ NaN"),
    ):
        queries = dataclasses.replace(good, calibration=samples)
        with pytest.raises(InputError, match=message):
            calibrate_int8(world.bundle, tmp_path / "int8", queries, Int8Options(models=("head",)), silent, 1)
    assert not list((tmp_path / "int8").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Int8Options(models=("vision",)),
            r"--models: expected some of text, projection, head, got vision; vision takes frames: name the --videos",
        ),
        (Int8Options(budget=-1), r"--budget: expected points, at least 0, got -1"),
        (Int8Options(budget=float("nan")), r"--budget: expected points, at least 0, got nan"),
        (
            Int8Options(exclude={"head": ("dense.fnn",)}),
            r"no module 'dense\.fnn' to exclude; did you mean dense\.ffn\?",
        ),
        (Int8Options(models=("text",), exclude={"head": ("xyz",)}), r"no module 'xyz' to exclude; expected such as"),
        (
            Int8Options(models=("projection",), exclude={"projection": ("project_video",)}),
            r"no layer is left for int8",
        ),
    ],
)
def test_options_that_fit_nothing(world, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        calibrate_int8(world.bundle, tmp_path / "int8", world.queries, options, silent, 1)
    assert not list(tmp_path.glob("int8/*"))


def test_modules_named_under_the_other_part_of_the_head(world, tmp_path):
    """Without any layer of its own the projection is copied; text and vision, not quantised, may be named freely."""
    exclude = {"head": ("project_video", *FEW["head"]), "vision": ("blocks.0",), "text": ("layer.9",)}
    report = calibrate_int8(
        world.bundle, tmp_path / "int8", world.queries, Int8Options("amax", exclude=exclude), silent, 1
    )
    projection = report.models["projection"]
    assert projection.layers == []
    assert projection.activations == {}
    assert projection.kept == dict.fromkeys(("project_video.2", "project_video.6"), "excluded by the user")
    assert report.models["head"].layers == ["dense.ffn.0", "dense.ffn.2"]
    written = Bundle.open(tmp_path / "int8")
    assert written.path("projection").read_bytes() == world.bundle.path("projection").read_bytes()
    with written.session("head", 1) as head, written.session("projection", 1) as theirs:
        assert head.metadata["sdst.precision"] == "int8"
        assert theirs.metadata["sdst.precision"] == "fp32"
    alone = Int8Options("amax", ("head",), exclude={"head": ("project_video.6", *FEW["head"])})
    again = calibrate_int8(world.bundle, tmp_path / "alone", world.queries, alone, silent, 1)
    assert again.models.keys() == {"head"}
    assert again.models["head"] == report.models["head"]


def test_a_budget_that_nothing_fits(world, tmp_path):
    """The ranking is there all the same, and an older bundle in its place is still one."""
    out = tmp_path / "int8"
    older = with_models(world.bundle.directory, out)
    few = {"head": (*FEW["head"], "dense.ffn.0", "project_video")}
    options = Int8Options("amax", budget=2.0, exclude=few)
    with pytest.raises(InputError) as caught:
        calibrate_int8(world.bundle, out, world.queries, options, silent, 1)
    (cost,) = json.loads((out / "sensitivity.json").read_text())
    assert cost["layer"] == "head:dense.ffn.2"
    assert cost["drop"] > 5
    assert f"within it, the least drop reached is {cost['drop']:.4g} points" in str(caught.value)
    assert str(caught.value).endswith(f"{out / 'sensitivity.json'} says what each layer costs")
    assert Bundle.open(out).manifest == older.manifest
    calibrate_int8(world.bundle, out, world.queries, dataclasses.replace(options, budget=None), silent, 1)
    assert not (out / "sensitivity.json").exists()  # int8.json of a bundle holds its own


def test_a_layer_that_reads_only_zeros_stays(exported, world, tmp_path):
    bundle = with_models(exported.directory, tmp_path / "dead", head=dead(onnx.load(exported.directory / "head.onnx")))
    options = Int8Options("percentile", ("head",), exclude=FEW)
    report = calibrate_int8(bundle, tmp_path / "int8", world.queries, options, silent, 1)
    assert report.models["head"].layers == ["dense.ffn.0"]
    assert report.models["head"].kept["dense.ffn.2"] == "reads only zeros in the calibration data"
    nothing = dataclasses.replace(options, exclude={"head": (*FEW["head"], "dense.ffn.0")})
    with pytest.raises(InputError, match=r"no layer is left for int8: expected one .* that reads more than zeros"):
        calibrate_int8(bundle, tmp_path / "none", world.queries, nothing, silent, 1)


def test_digests_cover_weights_beside_the_graph(exported, world, tmp_path):
    source = shutil.copytree(exported.directory, tmp_path / "apart")
    save_model(ir.load(source / "head.onnx"), source / "head.onnx", inline_limit=0)
    manifest = Bundle.open(exported.directory).manifest
    bundle = write_manifest(source, manifest.spec, manifest.models, manifest.sdst_version)
    files = bundle.manifest.files
    report = calibrate_int8(bundle, tmp_path / "int8", world.queries, Int8Options("amax", exclude=FEW), silent, 1)
    assert report.models["head"].source_sha256 == digest(files["head.onnx"], files["head.onnx.data"])
    assert report.models["projection"].source_sha256 == files["projection.onnx"]


def test_trials_keep_what_they_share(world, monkeypatch, tmp_path):
    """Counts how often the sentences are encoded; the text model's result is that of a trial of its own."""
    graphs = {name: onnx.load(world.bundle.path(name)) for name in ("text", "head")}
    products = {name: find_products(graph) for name, graph in graphs.items()}
    scales = {name: {product.activation: 0.05 for product in found} for name, found in products.items()}
    text = [f"text:{product.layer}" for product in products["text"]][:2]
    ffn = ["head:dense.ffn.0", "head:dense.ffn.2"]
    encoded = []

    def counting(path: Path, threads: int | None, **options: bool):
        encoded.extend(["text"] if Path(path).name == "text.onnx" else [])
        return open_session(path, threads, **options)

    def trial() -> Trial:
        return Trial(world.bundle, graphs, scales, world.queries.measured, world.queries.data, 1, tmp_path)

    monkeypatch.setattr(int8_trial, "open_session", counting)
    shared = trial()
    found = []
    for layers, encodings in (([], 1), (ffn[:1], 1), (text[:1], 2), (text[:1] + ffn, 2), (ffn[1:], 2), (text, 3)):
        found.append((layers, shared.answers(layers)))
        assert len(encoded) == encodings, layers
    graph = shared.quantise(text)["text"]
    assert shared.quantise([*text, *ffn])["text"] is graph
    assert shared.quantise(text[:1])["text"] is not graph
    assert shared.quantise(ffn).keys() == {"head"}
    assert shared.compare(found[0][1]).error == 0
    errors = {tuple(layers): shared.compare(answers).error for layers, answers in found}
    assert len(set(errors.values())) == len(errors)
    for layers in (text[:1] + ffn, ffn[1:], text):
        assert trial().measure(frozenset(layers)).error == errors[tuple(layers)]


def test_the_command(world, tmp_path, capsys):
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("# loses most\nhead: dense\nhead: sparse  # all of it\n")
    given = ["calibrate", "int8", str(world.bundle.directory), "--data", str(world.config), "--threads", "1"]
    options = ["--out", str(tmp_path / "int8"), "--method", "entropy", "--queries", "5", "--exclude", str(exclude)]
    assert main([*given, *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "int8")
    assert "int8 by entropy, 24 queries" in shown.err
    told = json.loads((tmp_path / "int8" / "int8.json").read_text())
    assert told["calibration_queries"] == 5
    assert told["models"]["head"]["layers"] == [
        "project_text.2", "project_text.6", "actionness.mlp.0", "actionness.mlp.2",
    ]  # fmt: skip
    for options, message in (
        (["--out", str(world.bundle.directory)], "--out: expected another directory than the bundle"),
        (["--out", str(tmp_path / "x"), "--queries", "0"], "queries: expected at least 1, got 0"),
        (["--out", str(tmp_path / "x"), "--exclude", str(tmp_path / "no")], "cannot read"),
        (["--out", str(tmp_path / "y"), "--models", "projection, heat"], "projection, head, got heat"),
    ):
        assert main([*given, *options]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("[xy]/*"))


def test_refused_before_the_data_is_read(world, tmp_path, capsys):
    """Its config names no data set, which would be the next error."""
    engines = with_models(world.bundle.directory, tmp_path / "engines")
    for name in engines.models:
        shutil.move(engines.path(name), engines.directory / f"{name}.plan")
        (engines.directory / f"{name}.plan.json").write_text("{}")
    names = {name: f"{name}.plan" for name in engines.manifest.models}
    write_manifest(engines.directory, engines.manifest.spec, names, "0", [f"{file}.json" for file in names.values()])
    taken = tmp_path / "taken"
    taken.write_text("mine")
    run, out = tmp_path / "best.safetensors", tmp_path / "out"
    run.touch()
    for source, place, message in (
        (run, out, f"{run}: not a bundle, it has no bundle.json"),
        (tmp_path, out, f"{tmp_path}: not a bundle, it has no bundle.json"),
        (engines.directory, out, "expected a bundle of ONNX files, it has vision.plan"),
        (world.bundle.directory, world.bundle.directory, "--out: expected another directory than the bundle"),
        (world.bundle.directory, taken, f"cannot write {taken}: File exists"),
        (world.bundle.directory, taken / "int8", f"cannot write {taken / 'int8'}: Not a directory"),
    ):
        given = ["calibrate", "int8", str(source), "--data", str(tmp_path / "none.json"), "--out", str(place)]
        assert main(given) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
    assert taken.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user who is not root: root writes everywhere")
def test_a_directory_that_cannot_be_written(world, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"cannot write .*sealed: Permission denied"):
        open_source(world.bundle.directory, tmp_path / "sealed")


def test_features_of_another_contract(world, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(world.config.parent, root, ignore=shutil.ignore_patterns("features", "bundle"))
    other = dataclasses.replace(world.bundle.manifest.spec, backbone="another")
    write_features([*world.queries.calibration, *world.queries.measured], root, other)
    given = ["calibrate", "int8", str(world.bundle.directory), "--data", str(world.config), "--root", str(root)]
    assert main([*given, "--out", str(tmp_path / "int8")]) == 2
    assert "backbone" in capsys.readouterr().err
