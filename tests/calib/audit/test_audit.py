"""The FP16 audit: faults planted in a checkpoint are found, named where they start, and mended by --keep-fp32.

The error loops compare runs in which half tensors really are rounded to half (taps.py): without that ONNX Runtime hides
the planted overflow on a CPU, which a test here holds too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from browser import faults, opened
from onnx import TensorProto, helper

from sdst_calib.audit.compare import GraphAudit, audit_graphs
from sdst_calib.audit.page import render_audit, write_audit
from sdst_calib.audit.rules import find_faults, keep_text
from sdst_calib.taps import open_graph, run_tapped
from sdst_export.graph import save_model
from sdst_export.keep import read_keep
from sdst_export.models import export_head, lower
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_text
from sdst_runtime.grounding.bundle import Bundle
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.model.sdst import SDST

OVERFLOW = {"dense.ffn.0", "dense.ffn.1", "dense.ffn.2"}
CANCELLATION = {"sparse.ffn.0", "sparse.ffn.1", "sparse.ffn.2"}


def plant_overflow(model: SDST) -> None:
    """The hidden layer of the dense FFN is 3e4 times too large, the next product as much smaller."""
    model.dense.ffn[0].weight *= 3e4
    model.dense.ffn[0].bias *= 3e4
    model.dense.ffn[2].weight /= 3e4


def plant_cancellation(model: SDST) -> None:
    """The hidden layer of the sparse FFN is shifted by 4096, and the shift taken back behind the next product."""
    model.sparse.ffn[0].bias += 4096
    model.sparse.ffn[2].bias -= 4096 * model.sparse.ffn[2].weight.sum(1)


@dataclass(frozen=True)
class Planted:
    """A faulty checkpoint and its head in both precisions."""

    checkpoint: Checkpoint
    folder: Path

    def head(self, precision: str, keep: Sequence[str] = ()) -> Path:
        path = self.folder / f"{precision}-{len(keep)}.onnx"
        if not path.exists():  # an export takes seconds
            save_model(export_head(lower(self.checkpoint, precision, keep)), path)
        return path


@pytest.fixture(scope="module")
def feeds(exported):
    """Projected features and sentences of four queries, each alone."""
    spec = Bundle.open(exported.directory).manifest.spec
    rng = np.random.default_rng(5)
    queries = []
    for T, L in ((21, 6), (9, 3), (40, 11), (1, 1)):
        queries.append(
            {
                "projected": rng.standard_normal((1, T, 2, 32)).astype(np.float32),
                "video_mask": np.ones((1, T), bool),
                "text": rng.standard_normal((1, spec.layers, L, spec.text_width)).astype(np.float32),
                "text_mask": np.ones((1, L), bool),
            }
        )
    return lambda: iter(queries)


def planted(exported, folder: Path, *faults) -> Planted:
    checkpoint = load_checkpoint(exported.checkpoint_path)
    with torch.no_grad():
        for fault in faults:
            fault(checkpoint.model)
    return Planted(checkpoint, folder)


@pytest.fixture(scope="module")
def both(exported, tmp_path_factory) -> Planted:
    return planted(exported, tmp_path_factory.mktemp("both"), plant_overflow, plant_cancellation)


def audited(single: Path, half: Path, feeds) -> GraphAudit:
    return audit_graphs("head", open_graph(single), open_graph(half), feeds)


def worst_error(audit: GraphAudit) -> dict[str, float]:
    """Largest absolute error of each output; NaN where the half run broke."""
    outputs = {"spans", "scores", "saliency"}
    return {t.tensor: np.nan if t.broken else t.max_error for t in audit.tensors if t.tensor in outputs}


def test_a_sound_head_has_no_faults(exported, exported_fp16, feeds):
    audit = audited(exported.directory / "head.onnx", exported_fp16 / "head.onnx", feeds)
    assert audit.unmatched == ()
    assert audit.feeds == 4
    assert find_faults(audit) == []
    products = [t for t in audit.tensors if t.half and t.operator == "MatMul"]
    assert len(products) > 20
    assert all(t.snr_db is not None and 45 < t.snr_db < 80 for t in products)


def test_two_planted_faults_are_named_and_mended(both, feeds):
    """In two rounds: behind an overflow nothing can be judged, the cancellation shows when the overflow is mended."""
    single = both.head("fp32")
    first = audited(single, both.head("fp16"), feeds)
    found = find_faults(first)
    assert {f.fault for f in found} == {"overflow"}
    keep = sorted({module for f in found for module in f.modules})
    assert set(keep) == OVERFLOW
    assert all(np.isnan(error) for error in worst_error(first).values())

    second = audited(single, both.head("fp16", keep), feeds)
    found = find_faults(second)
    assert [(f.fault, f.key) for f in found] == [("collapse", "sparse.ffn.2/Add.1")]
    assert set(found[0].modules) == CANCELLATION
    assert worst_error(second)["spans"] > 0.1
    assert worst_error(second)["saliency"] < 1e-2  # of the dense stream, which is mended

    keep += found[0].modules
    mended = audited(single, both.head("fp16", keep), feeds)
    assert find_faults(mended) == []
    assert max(worst_error(mended).values()) < 3e-2


def test_the_shares_of_a_planted_overflow_are_those_of_the_values(both, feeds):
    single = both.head("fp32")
    audit = audited(single, both.head("fp16"), feeds)
    tensor = next(t for t in audit.tensors if t.key == "dense.ffn.0/Add.1")
    values = np.concatenate(
        [v[tensor.tensor].ravel() for v in run_tapped(open_graph(single), [tensor.tensor], feeds())]
    )
    size = np.abs(values.astype(np.float64))
    assert tensor.half
    assert tensor.overflow == (size > 65504).mean()
    assert tensor.overflow > 1e-3
    assert tensor.amax == size.max()


def half_chain(path: Path) -> Path:
    """x -> 1000 x -> relu -> / 1000 in half: what half cannot hold on the way, the result hides."""
    weight = [
        onnx.numpy_helper.from_array((np.eye(4) * scale).astype(np.float16), name)
        for name, scale in (("up", 1000), ("down", 0.001))
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["N", 4]) for name in "xy")
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["large"], "a/MatMul_0"),
        helper.make_node("Relu", ["large"], ["kept"], "b/Relu_1"),
        helper.make_node("MatMul", ["kept", "down"], ["y"], "c/MatMul_2"),
    ]
    graph = helper.make_graph(nodes, "chain", [x], [y], weight)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_half_tensors_are_half_on_a_cpu_too(tmp_path):
    path = half_chain(tmp_path / "chain.onnx")
    x = np.array([[100, 1, 2, 3]], np.float16)
    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]
    assert np.isfinite(plain).all()  # ONNX Runtime computes it in float32: why there are barriers
    graph = open_graph(path)
    (barred,) = run_tapped(graph, ["y"], [{"x": x}])
    assert not np.isfinite(barred["y"][0, 0])
    (sound,) = run_tapped(graph, ["y"], [{"x": np.minimum(x, 3)}])
    assert np.abs(sound["y"] - np.minimum(x, 3)).max() < 1e-2


# ---------------------------------------------------------------- what is kept


def test_the_file_is_read_as_it_is_written(both, feeds, tmp_path):
    findings = find_faults(audited(both.head("fp32"), both.head("fp16"), feeds))
    write_text(tmp_path / "keep.txt", keep_text(findings))
    assert read_keep(tmp_path / "keep.txt") == {"head": ("dense.ffn.0", "dense.ffn.1", "dense.ffn.2")}


# ---------------------------------------------------------------- bad input


def test_bundles_in_the_wrong_order_and_of_two_kinds_are_refused(both, exported, feeds):
    single, half = open_graph(both.head("fp32")), open_graph(both.head("fp16"))
    with pytest.raises(ContractError, match="expected a model exported in fp32, got fp16"):
        audit_graphs("head", half, single, feeds)
    projection = open_graph(exported.directory / "projection.onnx")
    with pytest.raises(ContractError, match=r"sdst\.kind is 'projection' in .* and 'head' in"):
        audit_graphs("head", projection, half, feeds)


def test_no_data_is_refused(both):
    single, half = open_graph(both.head("fp32")), open_graph(both.head("fp16"))
    with pytest.raises(InputError, match="expected at least one query, got none"):
        audit_graphs("head", single, half, lambda: iter(()))


# ---------------------------------------------------------------- page and command


def test_the_page_is_whole_and_escapes(both, feeds):
    audit = audited(both.head("fp32"), both.head("fp16"), feeds)
    findings = [replace(f, reason="<script>") for f in find_faults(audit)]
    page = render_audit([audit], findings, [("fp32", "a&b")])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "a&amp;b" in page
    assert page.count('class="q5"') > 10  # the overflow and all behind it
    assert "dense.ffn.0/Add.1: broken dB" in page
    assert "http" not in page.replace("http-equiv", "")
    # What a pointer reads from the columns stands in a list for those who have none.
    listed = page[page.index(f"All {len(audit.tensors)} tensors") :]
    for tensor in audit.tensors:
        assert f'<td class="wrap">{escape(tensor.key)}</td>' in listed


def test_the_page_is_readable_on_a_phone(browser, both, feeds, tmp_path):
    audit = audited(both.head("fp32"), both.head("fp16"), feeds)
    name = ":smile: [bold]a[/bold] <b>" + "/a/path" * 20
    write_audit(tmp_path, [audit], find_faults(audit), [("fp32", name)])
    assert escape(name) in (tmp_path / "audit.html").read_text()
    for width in (390, 800, 1280):
        with opened(browser, tmp_path / "audit.html", width) as tab:
            assert faults(tab) == []
