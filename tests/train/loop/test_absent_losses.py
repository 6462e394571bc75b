"""What a query teaches that asks for what is not in its video."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from loss_samples import B, T, focal, make_outputs, make_targets, tensors

from sdst_train.config import LossConfig
from sdst_train.loop.losses import (
    Targets,
    alignment_loss,
    compute_losses,
    highlight_errors,
    moment_losses,
)
from sdst_train.model.sdst import Outputs

MIXED = (2, 0, 1)  # windows of three samples: the second is absent
THERE = torch.tensor([True, False, True])


def mixed(presence: bool = True) -> tuple[Outputs, Targets]:
    """The absent sample has no relevant clip either, as data have it."""
    out, targets = make_outputs(4, batch=3), make_targets(4, counts=MIXED)
    out = dataclasses.replace(out, presence_B=torch.tensor([1.5, 0.4, -2.0]) if presence else None)
    return out, dataclasses.replace(targets, saliency_BT=targets.saliency_BT * THERE[:, None])


def rows(out: Outputs, targets: Targets, chosen: torch.Tensor) -> tuple[Outputs, Targets]:
    """Some samples of a batch."""
    some = {n: x[:, chosen] if "_K" in n else x[chosen] for n, x in tensors(out).items()}
    return Outputs(**some), Targets(*(x[chosen] for x in vars(targets).values()))


def test_an_absent_query_has_no_boundary_loss():
    """Its moments are classed down and its spans are free; the sums are over the windows of the others."""
    out, targets = mixed()
    config = LossConfig()
    assert targets.present_B.tolist() == THERE.tolist()
    losses = moment_losses(out.logit_KBM, out.span_KBM2, targets, config)
    others, its = rows(out, targets, THERE)
    present = moment_losses(others.logit_KBM, others.span_KBM2, its, config)
    for name in ("l1", "overlap"):
        assert losses[name].item() == pytest.approx(present[name].item(), rel=1e-6), name
    down = config.focal * sum(focal(x, 0) for x in out.logit_KBM[:, 1].flatten().tolist()) / 3
    assert losses["focal"].item() == pytest.approx(present["focal"].item() + down, rel=1e-5)
    moved = out.span_KBM2.clone()
    moved[:, 1] = 0.5
    again = moment_losses(out.logit_KBM, moved, targets, config)
    assert all(torch.equal(again[name], losses[name]) for name in losses)


def test_an_absent_query_teaches_no_actionness():
    """The mean is over the others: a window may cover an event well that is not asked for."""
    out, targets = mixed()
    config = LossConfig()
    others = compute_losses(*rows(out, targets, THERE), config)["actionness"]
    assert compute_losses(out, targets, config)["actionness"].item() == pytest.approx(others.item(), rel=1e-6)
    assert others > 0


def test_the_saliency_of_an_absent_query_goes_down_everywhere():
    out, targets = mixed()
    errors = highlight_errors(out.saliency_BT, targets, 0.07)
    valid = out.saliency_BT[1][targets.video_mask_BT[1]].double().numpy()
    assert 0 < len(valid) < T  # some clips are padding
    assert errors[1].item() == pytest.approx(np.log1p(np.exp(valid / 0.07)).mean(), rel=1e-5)
    present, its = rows(out, targets, THERE)
    assert torch.equal(errors[THERE], highlight_errors(present.saliency_BT, its, 0.07))
    lower = out.saliency_BT.clone()
    lower[1] = -1
    assert highlight_errors(lower, targets, 0.07)[1].item() < 1e-5


def test_an_absent_query_is_aligned_with_nothing():
    out, targets = mixed()
    present = compute_losses(*rows(out, targets, THERE), LossConfig())
    assert torch.equal(compute_losses(out, targets, LossConfig())["alignment"], present["alignment"])


def test_presence_is_a_cross_entropy():
    out, targets = mixed()
    p = 1 / (1 + np.exp(-np.array([1.5, 0.4, -2.0])))
    expected = -np.mean(np.log([p[0], 1 - p[1], p[2]]))
    for weight in (1.0, 2.5):
        losses = compute_losses(out, targets, LossConfig(presence=weight))
        assert losses["presence"].item() == pytest.approx(weight * expected, rel=1e-5)
        others = sum(value.item() for name, value in losses.items() if name != "loss")
        assert losses["loss"].item() == pytest.approx(others, rel=1e-6)
    assert "presence" not in compute_losses(*mixed(presence=False), LossConfig())


def test_gradients_of_an_absent_query():
    """It teaches classes, saliency and presence, and neither spans, actionness nor the alignment."""
    out, targets = mixed()
    leaves = {name: x.clone().requires_grad_() for name, x in tensors(out).items()}
    compute_losses(Outputs(**leaves), targets, LossConfig())["loss"].backward()
    for name, leaf in leaves.items():
        taught = leaf.grad[:, 1] if "_K" in name else leaf.grad[1]
        assert torch.isfinite(leaf.grad).all(), name
        assert bool(taught.any()) == (name in ("logit_KBM", "saliency_BT", "presence_B")), name


def test_a_batch_of_absent_queries_alone():
    out, targets = rows(*mixed(), ~THERE)
    losses = compute_losses(out, targets, LossConfig())
    for name in ("l1", "overlap", "actionness", "alignment"):
        assert losses[name].item() == 0, name
    assert all(losses[name].item() > 0 for name in ("focal", "highlight", "presence"))


def test_present_queries_cost_what_they_cost_without_absent_ones():
    """Bit by bit: the contrast of the highlights alone, and a presence adds its own term and nothing else."""
    out, targets = make_outputs(3), make_targets(3)
    positive = targets.positive_clip_B[:, None]
    counted = targets.video_mask_BT & (targets.saliency_BT < targets.saliency_BT.gather(1, positive))
    logits = (out.saliency_BT / 0.07).masked_fill(~counted.scatter(1, positive, True), float("-inf"))
    contrast = torch.nn.functional.cross_entropy(logits, targets.positive_clip_B, reduction="none")
    assert torch.equal(highlight_errors(out.saliency_BT, targets, 0.07), contrast)
    whole = alignment_loss(out.video_KBTF, out.text_KBF, targets.positive_clip_B, 0.07)
    losses = compute_losses(out, targets, LossConfig(alignment=1.0))
    assert torch.equal(losses["alignment"], whole)
    told = compute_losses(dataclasses.replace(out, presence_B=torch.zeros(B)), targets, LossConfig(alignment=1.0))
    assert told.keys() - losses.keys() == {"presence"}
    assert all(torch.equal(told[name], losses[name]) for name in losses if name != "loss")
    assert told["presence"].item() == pytest.approx(np.log(2))
