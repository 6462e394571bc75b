"""`sdst inspect offsets`: the offsets are those that `deform` takes, and their shares are counted right."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import SPEC, TINY, make_samples, write_dataset

import sdst_train.model.rdsa
from sdst.cli import main
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import InputError
from sdst_train.loop.checkpoint import Checkpoint, save_checkpoint
from sdst_train.model.rdsa import RDSA, DeformableCrossAttention
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession
from sdst_train.study.offsets import Offsets, Spread, record_offsets, spread, tabulate

torch.set_num_threads(1)
SAMPLES = make_samples(6)
OFFSETS = [[0.5, -1.5], [2.0, 1.0]]  # H P, in half-widths
WEIGHTS = [[0.75, 0.25], [0.5, 0.5]]


def checkpoint_of(attention: str) -> Checkpoint:
    """A random model of two heads and two points."""
    torch.manual_seed(0)
    model = dataclasses.replace(TINY.model, attention=attention, points=2)
    return Checkpoint(SDST(model).eval(), dataclasses.replace(TINY, model=model), SPEC, 1, {"MR-full-mAP": 1.0})


def known_checkpoint(attention: str) -> Checkpoint:
    """Every moment samples at OFFSETS with WEIGHTS, in every step."""
    checkpoint = checkpoint_of(attention)
    module = checkpoint.model.sparse.sample
    assert isinstance(module, RDSA | DeformableCrossAttention)
    with torch.no_grad():
        module.offset.bias.copy_(torch.tensor(OFFSETS).flatten() * module.points)
        module.logit.bias.copy_(torch.tensor(WEIGHTS).log().flatten())
    return checkpoint


def wild_checkpoint(attention: str) -> Checkpoint:
    """Offsets and logits that differ between moments and steps."""
    checkpoint = checkpoint_of(attention)
    module = checkpoint.model.sparse.sample
    assert isinstance(module, RDSA | DeformableCrossAttention)
    torch.nn.init.normal_(module.offset.weight)
    torch.nn.init.normal_(module.logit.weight)
    return checkpoint


@pytest.mark.parametrize("attention", ["rdsa", "deformable_ca"])
def test_known_offsets_give_known_shares(attention):
    offsets = record_offsets(known_checkpoint(attention), SAMPLES, batch_size=4)
    assert offsets.offset_SKMHP.shape == (6, 2, 5, 2, 2)
    np.testing.assert_allclose(offsets.offset_SKMHP, np.broadcast_to(OFFSETS, offsets.offset_SKMHP.shape), atol=1e-6)
    np.testing.assert_allclose(offsets.weight_SKMHP, np.broadcast_to(WEIGHTS, offsets.weight_SKMHP.shape), atol=1e-6)
    table = tabulate(offsets)
    assert [(row.step, row.moments) for row in table] == [(1, "all"), (1, "top"), (2, "all"), (2, "top")]
    for row in table:  # outside are -1.5 and 2.0, not 1.0; their weights are 0.25 and 0.5 of 2
        assert row.counted == Spread(pytest.approx(50.0), pytest.approx(1.0), pytest.approx(2.0))
        assert row.weighted == Spread(pytest.approx(37.5), pytest.approx(1.0), pytest.approx(2.0))


@pytest.mark.parametrize("attention", ["rdsa", "deformable_ca"])
def test_offsets_are_those_that_deform_takes(attention, monkeypatch):
    taken = []
    real = sdst_train.model.rdsa.deform

    def listening(value, offset, logit, reference, length):
        taken.append((offset.clone(), logit.softmax(-1)))
        return real(value, offset, logit, reference, length)

    checkpoint, samples = wild_checkpoint(attention), sorted(SAMPLES, key=lambda s: len(s.video))
    monkeypatch.setattr(sdst_train.model.rdsa, "deform", listening)
    offsets = record_offsets(checkpoint, samples)
    assert len(taken) == 2
    for step, (offset, weight) in enumerate(taken):
        np.testing.assert_array_equal(offsets.offset_SKMHP[:, step], offset)
        np.testing.assert_array_equal(offsets.weight_SKMHP[:, step], weight)
    assert offsets.offset_SKMHP[:, 0].std() > 0.1
    scores = TorchSession(checkpoint.model).run(pad_inputs([s.video for s in samples], [s.text for s in samples]))
    np.testing.assert_array_equal(offsets.top_S, scores["scores"].argmax(1))


def test_recording_leaves_no_hook_behind():
    checkpoint = known_checkpoint("rdsa")
    record_offsets(checkpoint, SAMPLES[:2])
    assert all(not module._forward_hooks for module in checkpoint.model.modules())


def test_the_top_moment_is_told_apart():
    offset = np.zeros((2, 1, 3, 1, 2), np.float32)
    offset[0, 0, 1] = [0.5, 3.0]  # the top moment of the first query
    offset[1, 0, 2] = [-2.0, -4.0]  # of the second
    weight = np.full_like(offset, 0.5)
    weight[1, 0, 2] = [0.95, 0.05]
    every, top = tabulate(Offsets(offset, weight, np.array([1, 2])))
    assert every.counted == Spread(pytest.approx(100 * 3 / 12), 0.0, 4.0)
    assert top.counted == Spread(pytest.approx(75.0), 2.0, 4.0)
    assert top.weighted == Spread(pytest.approx(75.0), 2.0, 3.0)


def test_quantiles_of_equal_weights_are_numpys():
    offset = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    found = spread(offset, np.ones_like(offset))
    assert found.median == np.quantile(np.abs(offset), 0.5, method="inverted_cdf")
    assert found.p95 == np.quantile(np.abs(offset), 0.95, method="inverted_cdf")
    assert math.isclose(found.outside, 100 * np.mean(np.abs(offset) > 1), rel_tol=1e-12)


def test_full_attention_is_refused():
    with pytest.raises(
        InputError, match="attention: expected rdsa or deformable_ca, got full_ca, which samples nowhere"
    ):
        record_offsets(checkpoint_of("full_ca"), SAMPLES)


# --- the command -----------------------------------------------------------------------------------------------------


def write_run(directory: Path, checkpoint: Checkpoint, root: Path) -> Path:
    data = write_dataset(root, SAMPLES, SAMPLES[:3])
    config = dataclasses.replace(checkpoint.config, data=data)
    save_checkpoint(directory / "best.safetensors", dataclasses.replace(checkpoint, config=config))
    return directory


def test_the_command_draws_and_tells(tmp_path, capsys):
    runs = [write_run(tmp_path / name, known_checkpoint(name), tmp_path / "data") for name in ("rdsa", "deformable_ca")]
    assert main(["inspect", "offsets", *map(str, runs), "--out", str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "picture.json").read_text())
    assert [(run["run"], run["queries"], run["moments"]) for run in written["runs"]] == [
        (str(runs[0]), 3, 5), (str(runs[1]), 3, 5),
    ]  # fmt: skip
    assert written["runs"][1]["steps"][1]["weighted"] == {
        "outside": pytest.approx(37.5), "median": pytest.approx(1.0), "p95": pytest.approx(2.0),
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.count("37.5") == 2 * 2 * 2


def test_the_split_is_chosen_and_the_picture_lies_in_the_run(tmp_path, capsys):
    run = write_run(tmp_path / "run", known_checkpoint("rdsa"), tmp_path / "data")
    assert main(["inspect", "offsets", str(run), "--split", "train"]) == 0
    assert json.loads((run / "offsets.json").read_text())["runs"][0]["queries"] == 6
    assert (run / "offsets.png").is_file()


def test_bad_input_is_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", checkpoint_of("full_ca"), tmp_path / "data")
    for arguments, message in (
        ([str(run)], "which samples nowhere"),
        ([str(tmp_path)], "no such checkpoint"),
        ([str(run), "--out", "x.svg"], "expected a name that ends in .png"),
        ([], "expected the folder of a run or more"),
    ):
        assert main(["inspect", "offsets", *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert message in error
        assert error.count("\n") == 1
    assert not (run / "offsets.png").exists()
