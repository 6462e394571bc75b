"""The command line on good and bad input: exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run

from sdst_runtime.grounding.bundle import MODELS
from sdst_runtime.sessions.open import open_session

QUERY = "a red circle moves to the left"


def run_without(packages: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    """`sdst ARGUMENTS` in a process where `packages` cannot be imported, as if they were not installed."""
    program = "\n".join(
        [
            "import sys",
            "class Absent:",
            "    def find_spec(self, name, path=None, target=None):",
            f"        if name.split('.')[0] in {packages!r}:",
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)",
            "sys.meta_path.insert(0, Absent())",
            "from sdst.cli import main",
            "sys.exit(main(sys.argv[1:]))",
        ]
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_ground_runs_with_torch_uninstalled(exported, video):
    absent = ("torch", "transformers", "onnx", "onnxscript", "scipy", "matplotlib")
    done = run_without(absent, "ground", video, QUERY, "--bundle", exported.directory, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["query"] == QUERY


@pytest.mark.parametrize(
    ("package", "verb", "extra"), [("torch", "train", "train"), ("onnx", "export", "export"), ("torch", "demo", "demo")]
)
def test_a_missing_package_is_said_with_its_extra(package, verb, extra):
    done = run_without((package,), verb, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {package} is needed here")
    assert done.stderr.endswith(f"run pip install '.[{extra}]' in the project's checkout\n")


@pytest.mark.parametrize(("given", "kept"), [("", True), ("[*sys.argv[1:]]", False)])
def test_only_a_process_of_its_own_keeps_its_imports_from_collection(given, kept, tmp_path):
    program = "\n".join(
        [
            "import gc, sys",
            "enabled = []",
            "class Seen:",
            "    def find_spec(self, name, path=None, target=None):",
            "        enabled.extend([gc.isenabled()] if name == 'sdst.ground' else [])",
            "sys.meta_path.insert(0, Seen())",
            "from sdst.cli import main",
            f"code = main({given})",
            f"assert (enabled, gc.isenabled()) == ([not {kept}], True), enabled",
            f"assert (gc.get_freeze_count() > 1000) is {kept}, gc.get_freeze_count()",
            "sys.exit(code)",
        ]
    )
    command = [sys.executable, "-c", program, "ground", "nothing", "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: no video given"), done.stderr


def test_unwritable_outputs(capsys, exported, video, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("here first")
    line = fails(capsys, "ground", video, QUERY, "--bundle", exported.directory, "--report", occupied / "report.html")
    assert "cannot write" in line
    assert occupied.read_text() == "here first"
    line = fails(
        capsys, "export", exported.checkpoint_path, "--backbone", exported.backbone_path, "--out", occupied / "bundle"
    )
    assert "cannot write" in line
    assert "cannot write" in fails(capsys, "demo", "--out", occupied / "demo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_checkpoint_of_another_shape(capsys, exported, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(exported.checkpoint_path, "numpy") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    weights["classify.weight"] = weights["classify.weight"][:, :-1].copy()
    save_file(weights, tmp_path / "other.safetensors", metadata)
    out = tmp_path / "bundle"
    line = fails(capsys, "export", tmp_path / "other.safetensors", "--backbone", exported.backbone_path, "--out", out)
    assert "classify.weight is [1, 31], expected [1, 32]" in line
    assert not out.exists()


def test_checkpoint_of_another_backbone(capsys, exported, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(exported.backbone_path, "numpy") as stored:
        metadata = stored.metadata()
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    weights["vision.cls_token"] = weights["vision.cls_token"] + 1
    save_file(weights, tmp_path / "backbone.safetensors", metadata)
    out = tmp_path / "bundle"
    line = fails(
        capsys, "export", exported.checkpoint_path, "--backbone", tmp_path / "backbone.safetensors", "--out", out
    )
    assert "disagree on backbone_sha256" in line
    assert not out.exists()


@pytest.fixture
def dataset(exported, tmp_path) -> Path:
    """Two videos with features and one query each, in both splits."""
    from sdst_runtime.contracts import TextFeatures, VideoFeatures
    from sdst_runtime.data.features import (
        text_feature_path,
        video_feature_path,
        write_text_features,
        write_video_features,
    )
    from sdst_runtime.files import write_jsonl
    from sdst_train.loop.checkpoint import load_checkpoint

    spec = load_checkpoint(exported.checkpoint_path).spec
    rng, root, rows = np.random.default_rng(0), tmp_path / "data", []
    for qid, vid in enumerate("ab"):
        query = f"query {vid}"
        video = VideoFeatures(rng.normal(size=(9, 2, 12)).astype(np.float32), 9.0, spec)
        write_video_features(video_feature_path(root / "features", vid), video)
        text = TextFeatures(rng.normal(size=(2, 4, 16)).astype(np.float32), query, spec)
        write_text_features(text_feature_path(root / "features", query), text)
        row = {"qid": qid, "query": query, "vid": vid, "duration": 9.0, "relevant_windows": [[2.0, 5.0]]}
        rows.append({**row, "relevant_clip_ids": [2, 3, 4], "saliency_scores": [[2, 3, 4]] * 3})
    write_jsonl(root / "all.jsonl", rows)
    files = {"root": str(root), "train": "all.jsonl", "val": "all.jsonl", "test": "", "clip_s": 1.0}
    (root / "config.json").write_text(json.dumps({"epochs": 1, "batch_size": 2, "device": "cpu", "data": files}))
    return root


SMALL = ("--model.width", 16, "--model.heads", 2, "--model.layers", 2, "--model.queries", 3)


def test_train_then_export_then_ground(capsys, dataset, exported, video, tmp_path):
    code, out, err = run(capsys, "train", dataset / "config.json", "--out", tmp_path / "run", *SMALL)
    assert code == 0, err
    assert "best.safetensors: epoch 1" in out
    checkpoint = tmp_path / "run" / "best.safetensors"
    assert err.splitlines()[-1] == f"next:  sdst export {checkpoint} --backbone BACKBONE --out BUNDLE"
    bundle = tmp_path / "bundle"
    command = ("export", checkpoint, "--backbone", exported.backbone_path, "--out", bundle, "--precision", "fp16")
    code, out, err = run(capsys, *command)
    assert (code, out.strip()) == (0, str(bundle)), err
    assert err.splitlines()[-1] == f"next:  sdst ground VIDEO 'a sentence' --bundle {bundle}"
    stated = {name: open_session(bundle / f"{name}.onnx").metadata["sdst.precision"] for name in MODELS}
    assert stated == dict.fromkeys(MODELS, "fp16")
    code, out, _ = run(capsys, "ground", video, QUERY, "--bundle", bundle, "--json")
    assert len(json.loads(out)["results"][0]["moments"]) == 3


def test_train_on_features_of_another_contract(capsys, dataset, tmp_path):
    from dataclasses import replace

    from sdst_runtime.data.features import read_video_features, video_feature_path, write_video_features

    path = video_feature_path(dataset / "features", "b")
    video = read_video_features(path)
    write_video_features(path, replace(video, spec=replace(video.spec, clip_s=2.0)))
    line = fails(capsys, "train", dataset / "config.json", "--out", tmp_path / "run", *SMALL)
    assert "disagree on clip_s" in line
    assert "has 2.0" in line
    assert "needs 1.0" in line
    assert not (tmp_path / "run").exists()


def test_train_on_nan_features(capsys, dataset, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = next((dataset / "features" / "text").iterdir())
    with safe_open(path, "numpy") as stored:
        metadata, features = stored.metadata(), stored.get_tensor("features")
    features[0, 1, 2] = np.nan
    save_file({"features": features}, path, metadata)
    code, _, err = run(capsys, "train", dataset / "config.json", "--out", tmp_path / "run", *SMALL)
    line = err.strip().splitlines()[-1]
    assert code == 2
    assert "contains NaN or infinity" in line
    assert path.name in line
    assert not (tmp_path / "run" / "last.safetensors").exists()


def score_files(folder: Path, **changes) -> tuple[Path, Path]:
    """Two queries: the first moment is right for one of them. `changes` overwrite the first prediction."""
    from sdst_runtime.files import write_jsonl

    truth = {"query": "q", "duration": 20, "relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 4], [2, 3, 4]]}
    annotations = [{"qid": i, "vid": f"v{i}", "relevant_windows": [[2, 6]], **truth} for i in range(2)]
    saliency = [0.0, 0.9, 0.5, *[0.1] * 7]
    row = {
        "qid": 0,
        "vid": "v0",
        "query": "q",
        "pred_relevant_windows": [[2, 6, 0.9]],
        "pred_saliency_scores": saliency,
    }
    missed = {**row, "qid": 1, "vid": "v1", "pred_relevant_windows": [[8, 12, 0.5], [2, 5, 0.4]]}
    write_jsonl(folder / "predictions.jsonl", [row | changes, missed])
    write_jsonl(folder / "truth.jsonl", annotations)
    return folder / "predictions.jsonl", folder / "truth.jsonl"


def test_score_prints_and_writes_the_same(capsys, tmp_path):
    files = score_files(tmp_path)
    code, out, err = run(capsys, "score", *files, "--output", tmp_path / "new" / "metrics.json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result == json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert next(iter(result)) == "brief"
    assert result["brief"]["MR-full-R1@0.5"] == 50.0
    assert result["brief"]["MR-full-mAP@0.5"] == 75.0
    assert result["brief"]["HL-min-VeryGood-Hit1"] == 100.0
    assert "moments" not in result


def test_score_on_request(capsys, tmp_path):
    code, out, _ = run(capsys, "score", *score_files(tmp_path), "--moments", "--unrounded")
    result = json.loads(out)
    assert code == 0
    assert result["moments"]["R1@0.5"] == 50.0
    assert result["moments"]["R5@0.7"] == 100.0
    assert result["moments"]["mIoU"] == 50.0


def test_score_names_the_query_that_is_wrong(capsys, tmp_path):
    predictions, truth = score_files(tmp_path, pred_relevant_windows=[[2, "not a number", 1]])
    predictions.write_text(predictions.read_text().replace('"not a number"', "NaN"))
    assert "qid 0" in fails(capsys, "score", predictions, truth)
    predictions, truth = score_files(tmp_path)
    predictions.write_text(predictions.read_text().splitlines()[0] + "\n")
    line = fails(capsys, "score", predictions, truth, "--output", tmp_path / "metrics.json")
    assert "1" in line
    assert not (tmp_path / "metrics.json").exists()
    assert "cannot read" in fails(capsys, "score", tmp_path / "none.jsonl", truth)


def test_unknown_verb_and_bad_numbers(capsys, tmp_path):
    line = fails(capsys, "groudn")
    assert line == "error: unknown command 'groudn': did you mean  sdst ground? All commands:  sdst --help".replace(
        "  ", " "
    )
    assert "unknown command 'xyzzy': expected one of ground, corpus index, corpus ask, data check," in fails(
        capsys, "xyzzy"
    )
    line = fails(capsys, "demo", "--out", tmp_path / "out", "--val-videos", 1)
    assert "two held-out videos" in line
    assert not (tmp_path / "out").exists()


def test_usage_error_is_exit_code_2(capsys, exported, video):
    code, _, err = run(capsys, "ground", video, QUERY)
    assert code == 2
    assert "--bundle" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["feature", "video"], "did you mean sdst features video?"),
        (["features", "vido", "x"], "did you mean sdst features video?"),
        (["calibrate", "audi"], "did you mean sdst calibrate audit?"),
        (["calibrte"], "did you mean sdst calibrate?"),
        (["features"], "unknown command 'features': expected one of features video, features text,"),
        (
            ["features", "--out", "x"],
            "unknown command 'features --out': expected one of features video, features text,",
        ),
    ],
)
def test_a_mistyped_verb_gets_a_suggestion(capsys, words, says):
    assert says in fails(capsys, *words)


@pytest.mark.parametrize("rest", [["--help"], ["-h"]])
def test_a_group_lists_its_verbs(capsys, rest):
    for group, verbs in {
        "features": ["video", "text", "pack", "verify", "convert"],
        "calibrate": ["ranges", "audit", "scores", "int8"],
        "plugins": ["build", "info"],
    }.items():
        code, out, err = run(capsys, group, *rest)
        assert (code, err) == (0, "")
        assert [line.split()[:2] for line in out.splitlines()[2:]] == [[group, verb] for verb in verbs]


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("score", "PREDICTIONS GROUND-TRUTH"),
        ("calibrate audit", "SINGLE HALF"),
        ("doctor", r"\[BUNDLE\]"),
        ("parity", r"BUNDLE \[BUNDLE \.\.\.\]"),
        ("export", "CHECKPOINT"),
    ],
)
def test_help_names_the_positionals(capsys, verb, names):
    import re

    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert re.search(rf"^usage: sdst {verb} .*{names}", out)


def test_the_older_name_of_out_is_understood(capsys, tmp_path):
    files = score_files(tmp_path)
    for name in ("--out", "--output"):
        assert run(capsys, "score", *files, name, tmp_path / f"{name}.json")[0] == 0
    assert (tmp_path / "--out.json").read_text() == (tmp_path / "--output.json").read_text()


def test_the_first_process_of_a_container_ends_at_sigterm(capsys, monkeypatch):
    """Linux gives process 1 no signal that it has no handler for."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            assert run(capsys, "--version")[0] == 0
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        with pytest.raises(SystemExit) as stop:
            handler(signal.SIGTERM, None)
        assert stop.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
