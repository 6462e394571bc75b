"""benchmarks/peers.py without any clone of others: toy clones, FLOPs by hand, the table, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from torch import nn

from sdst_runtime.errors import DependencyError, InputError
from sdst_train.loop.published import BENCHMARKS

sys.path.insert(0, str(ROOT / "benchmarks"))

import clones
import peer_models
import peers

# Moment-DETR's interface: options by a parser, a model of a dictionary of outputs, packages that nothing here uses.
TOY_CONFIG = """
import argparse
import pandas as pd
from utils.tools import WIDTH

class BaseOptions:
    def initialize(self):
        self.parser = argparse.ArgumentParser()
        self.parser.add_argument("--dset_name")
        self.parser.add_argument("--v_feat_dim", type=int)
        self.parser.add_argument("--t_feat_dim", type=int)
        self.parser.add_argument("--hidden", type=int, default=WIDTH)

def table():
    return pd.DataFrame()
"""
TOY_MODEL = """
import torch
from torch import nn

class Toy(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.video = nn.Linear(options.v_feat_dim, options.hidden, bias=False)
        self.text = nn.Linear(options.t_feat_dim, options.hidden, bias=False)

    def forward(self, src_txt, src_txt_mask, src_vid, src_vid_mask):
        saliency = (self.video(src_vid) @ self.text(src_txt).mT).mean(-1)
        return {"pred_logits": saliency[:, :3], "pred_spans": saliency[:, 3:6], "saliency_scores": saliency}

def build_model(options):
    return Toy(options), None
"""
CLIPS, TOKENS, HIDDEN = 6, 4, 5


@pytest.fixture
def toy(tmp_path) -> Path:
    """A clone with what is called of Moment-DETR's."""
    folder = tmp_path / "toy"
    for name, text in {
        "moment_detr/__init__.py": "",
        "moment_detr/config.py": TOY_CONFIG,
        "moment_detr/model.py": TOY_MODEL,
        "utils/tools.py": f"WIDTH = {HIDDEN}",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_a_clone_is_built_by_its_own_code_counted_and_forgotten(toy):
    (peer,), missing = peer_models.load_peers({"moment-detr": toy}, CLIPS, TOKENS)
    assert missing == {}
    assert [tuple(found.shape) for found in peer.run()] == [(1, 3), (1, 3), (1, CLIPS)]
    products = CLIPS * peer_models.VIDEO_WIDTH * HIDDEN + TOKENS * peer_models.TEXT_WIDTH * HIDDEN
    assert peer_models.count_flops(peer.run) == 2 * (products + CLIPS * TOKENS * HIDDEN)
    assert not {"moment_detr", "moment_detr.model", "utils", "utils.tools", "pandas"} & set(sys.modules)
    assert str(toy) not in sys.path


def test_two_clones_keep_their_own_packages_of_one_name(toy, tmp_path):
    other = tmp_path / "other"
    (other / "utils").mkdir(parents=True)
    (other / "utils" / "tools.py").write_text("WIDTH = 9")
    clone, found = clones.CLONES["moment-detr"], []
    for folder in (toy, other):
        with clones.importing(clone, folder):
            from utils.tools import WIDTH  # pyright: ignore[reportMissingImports]

            found.append(WIDTH)
    assert found == [HIDDEN, 9]


def test_a_stand_in_is_imported_and_not_called(toy):
    with clones.importing(clones.CLONES["moment-detr"], toy):
        from moment_detr.config import table  # pyright: ignore[reportMissingImports]
    with pytest.raises(DependencyError, match=r"^pandas\.DataFrame is called and not installed: install pandas$"):
        table()


def test_a_package_that_is_used_and_missing_is_named(toy):
    clone = clones.Clone("toy", "somebody/toy", "x", {"no_such_package": "no-such==1.0"})
    said = "^somebody/toy needs no_such_package, which is not installed: pip install no-such==1.0$"
    with pytest.raises(DependencyError, match=said), clones.importing(clone, toy):
        import no_such_package  # pyright: ignore[reportMissingImports] # noqa: F401


def test_attention_is_counted_though_a_cpu_runs_it_in_one_kernel():
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(1, 7, 16)
    expected = 2 * (4 * 7 * 16 * 16 + 2 * 7 * 7 * 16)  # q, k, v and out; scores and values
    assert peer_models.count_flops(lambda: attention(x, x, x, need_weights=False)) == expected


def test_every_model_has_a_published_number_and_its_source():
    methods = {"Moment-DETR", "QD-DETR", "R2-Tuning", *(name.split()[0] for name in peer_models.LIGHTHOUSE_MODELS)}
    assert methods | {"SDST"} == set(peer_models.PUBLISHED)
    for accuracy in peer_models.PUBLISHED.values():
        for split in ("val", "test"):
            assert (getattr(accuracy, split) is not None) == (f"{split}: " in accuracy.source)
    by_method = {one.method.split(" (")[0]: one.values.get("R1@0.7") for one in BENCHMARKS["qvhighlights"].results}
    for method in ("SDST", "R2-Tuning"):
        assert peer_models.PUBLISHED[method].val == by_method[method]


def test_the_table_and_the_json():
    rows = [
        peers.Row("Moment-DETR, torch eager", "Moment-DETR", 4_823_305, 540_000_000, lambda: None),
        peers.Row(peers.OURS, "SDST", 4_312_200, 1_234_000_000, lambda: None),
    ]
    samples = {rows[0].name: [0.03, 0.03, 0.03], peers.OURS: [0.01, 0.02, 0.03]}
    cpu_s = {rows[0].name: [0.05] * 3, peers.OURS: [0.04] * 3}
    *_, ours, theirs = peers.markdown(rows, samples, cpu_s).split("\n")
    assert ours == f"| {peers.OURS} | 60.9 |  | 4.3 | 1.23 | 20.0 | 28.0 | 29.8 | 40.0 | 1.00 |"
    assert theirs == "| Moment-DETR, torch eager | 34.84 | 33.02 | 4.8 | 0.54 | 30.0 | 30.0 | 30.0 | 50.0 | 1.25 |"
    found = peers.as_json("t", rows, samples, cpu_s, {"x": "why"}, {"cores": "2"}, "busy")
    assert found["rows"][1]["r1_07_val"] == 60.9
    assert found["rows"][1]["seconds"] == [0.01, 0.02, 0.03]
    assert found["rows"][1]["cpu_seconds"] == [0.04, 0.04, 0.04]
    assert (found["not_measured"], found["machine"], found["warning"]) == ({"x": "why"}, {"cores": "2"}, "busy")


def test_an_int8_model_has_q_and_dq_and_answers_nearly_the_same(exported, tmp_path):
    import onnx

    from sdst_runtime.sessions.open import open_session

    rng = np.random.default_rng(0)
    with open_session(exported.directory / "projection.onnx", 1) as session:
        K, V = session.inputs["video"].shape[2:]
        given = {"video": rng.standard_normal((1, 5, K, V)).astype(np.float32), "video_mask": np.ones((1, 5), bool)}
        expected = session.run(given)["projected"]
    peers.write_int8(exported.directory, tmp_path / "int8", {"projection": lambda: [given]})
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8" / "projection.onnx").graph.node]
    assert "QuantizeLinear" in kinds
    with open_session(tmp_path / "int8" / "projection.onnx", 1) as session:
        got = session.run(given)["projected"]
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.1


def test_a_model_that_does_not_export_is_a_reason(tmp_path):
    class Solver(nn.Module):
        def forward(self, x):
            return (torch.linalg.solve(x, x),)

    peer = peer_models.Peer("solver", "SDST", Solver(), {"x": torch.eye(2)}, "")
    with pytest.raises(InputError, match=r"^torch\.onnx does not export it: [^\n]+$"):
        peers.export(peer, tmp_path / "solver.onnx", 1)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            ["peers.py", "--lighthouse", "nowhere"],
            "benchmarks/peers.py: --lighthouse nowhere: expected a clone of line/lighthouse, it has no"
            " lighthouse/common/moment_detr.py; run  git clone https://github.com/line/lighthouse nowhere\n",
        ),
        (
            ["peers.py"],
            "benchmarks/peers.py: expected at least one clone, got none; give some of"
            " --moment-detr, --qd-detr, --lighthouse, --r2-tuning\n",
        ),
        (
            ["peers_train.py", "--r2-tuning", "nowhere"],
            "benchmarks/peers_train.py: --r2-tuning nowhere: expected a clone of yeliudev/R2-Tuning, it has no"
            " configs/qvhighlights/r2_tuning_qvhighlights.py; run"
            "  git clone https://github.com/yeliudev/R2-Tuning nowhere\n",
        ),
    ],
    ids=["no clone", "nothing given", "training"],
)
def test_without_a_clone_one_line(command, said, tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
