"""Every loss against a literal computation in numpy, and what must not matter to it."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from loss_samples import B, F, K, M, T, cost, focal, iou, log_softmax_at, make_outputs, make_targets, start_end, tensors

from sdst_train.config import LossConfig
from sdst_train.loop.losses import (
    Targets,
    actionness_errors,
    alignment_loss,
    compute_losses,
    focal_loss,
    highlight_errors,
    match,
    moment_losses,
    pairwise_overlap,
    to_centre_width,
    to_start_end,
)
from sdst_train.model.sdst import Outputs

# --- pieces ----------------------------------------------------------------------------------------------------------


def test_overlap_by_hand():
    windows = torch.tensor([[0.0, 0.4], [0.2, 0.6], [0.7, 1.0], [0.4, 0.5]])
    others = torch.tensor([[0.0, 0.4], [0.5, 0.9]])
    plain = [[1, 0], [1 / 3, 1 / 7], [0, 2 / 5], [0, 0]]
    np.testing.assert_allclose(pairwise_overlap(windows, others), plain, atol=1e-6)
    general = [[1, -1 / 9], [1 / 3, 1 / 7], [-3 / 10, 2 / 5], [0, 0]]
    np.testing.assert_allclose(pairwise_overlap(windows, others, generalised=True), general, atol=1e-6)


def test_overlap_of_empty_windows_is_zero_and_has_a_gradient():
    point = torch.tensor([[0.5, 0.5]], requires_grad=True)
    for generalised in (False, True):
        result = pairwise_overlap(point, torch.tensor([[0.5, 0.5]]), generalised=generalised)
        assert result.item() == 0
        (gradient,) = torch.autograd.grad(result.sum(), point)
        assert torch.isfinite(gradient).all()


def test_window_forms_are_inverse():
    span = torch.tensor([[0.3, 0.4], [0.9, 0.5]])
    np.testing.assert_allclose(to_start_end(span), [[0.1, 0.5], [0.65, 1.15]], atol=1e-6)
    np.testing.assert_allclose(to_centre_width(to_start_end(span)), span, atol=1e-6)


def test_focal_loss_is_the_formula():
    logits = torch.tensor([-9.0, -4.6, -1, 0, 0.5, 3, 9])
    for label in (0, 1):
        ours = focal_loss(logits.double(), torch.full_like(logits.double(), label))
        np.testing.assert_allclose(ours, [focal(x, label) for x in logits.double().tolist()], rtol=1e-9)
    assert torch.isfinite(focal_loss(torch.tensor([-200.0, 200.0]), torch.tensor([1.0, 0.0]))).all()
    np.testing.assert_allclose(focal_loss(torch.tensor(0.0), torch.tensor(1.0)), 0.25 * 0.25 * np.log(2), rtol=1e-6)


# --- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["iou", "giou"])
@pytest.mark.parametrize("seed", range(5))
def test_match_is_the_cheapest_assignment(seed, overlap):
    config = LossConfig(overlap=overlap)
    out, targets = make_outputs(seed), make_targets(seed)
    chosen = match(out.logit_KBM, out.span_KBM2, targets, config)
    for k, b in itertools.product(range(K), range(B)):
        windows = targets.windows_BW2[b][targets.window_mask_BW[b]].tolist()
        spans, logits = out.span_KBM2[k, b].tolist(), out.logit_KBM[k, b].tolist()

        def total(order, windows=windows, spans=spans, logits=logits) -> float:
            return sum(cost(logits[m], spans[m], w, config) for m, w in zip(order, windows, strict=True))

        mine = chosen[k, b, : len(windows)].tolist()
        assert len(set(mine)) == len(windows)
        # totals and not orders: windows apart from two moments on the same side cost the same either way
        best = min(total(order) for order in itertools.permutations(range(M), len(windows)))
        assert total(mine) == pytest.approx(best, abs=1e-5)
        assert (chosen[k, b, len(windows) :] == -1).all()


def test_match_gives_each_window_its_own_moment():
    """Both windows are nearest to the same moment: only one may have it."""
    span = torch.tensor([[0.5, 0.2], [0.9, 0.1]]).expand(1, 1, 2, 2)
    windows = torch.tensor([[[0.4, 0.6], [0.38, 0.6]]])
    targets = Targets(windows, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 4), torch.zeros(1).long(), None)
    assert match(torch.zeros(1, 1, 2), span, targets, LossConfig())[0, 0].tolist() == [0, 1]


# --- moment losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["iou", "giou"])
def test_moment_losses_are_the_formula(overlap):
    config = LossConfig(overlap=overlap)
    out, targets = make_outputs(7), make_targets(7)
    chosen = match(out.logit_KBM, out.span_KBM2, targets, config).numpy()
    sums, count = dict.fromkeys(("focal", "l1", "overlap"), 0.0), 3
    for k, b in itertools.product(range(K), range(B)):
        matched = {}
        for w in np.flatnonzero(targets.window_mask_BW[b]):
            window, m = targets.windows_BW2[b, w].tolist(), chosen[k, b, w]
            span = out.span_KBM2[k, b, m].tolist()
            matched[m] = True
            sums["l1"] += 5 * (abs(span[0] - sum(window) / 2) + abs(span[1] - (window[1] - window[0])))
            sums["overlap"] += 2 * (1 - iou(start_end(span), window, overlap == "giou"))
        sums["focal"] += 2 * sum(focal(out.logit_KBM[k, b, m].item(), m in matched) for m in range(M))
    losses = moment_losses(out.logit_KBM, out.span_KBM2, targets, config)
    for name, value in sums.items():
        assert losses[name].item() == pytest.approx(value / count, rel=1e-5), name


def test_perfect_moments_cost_nothing():
    """Every step finds every window: no L1, no overlap loss, and focal vanishes with confidence."""
    targets = make_targets(3)
    span = to_centre_width(targets.windows_BW2)[:, [1, 0, 2]].expand(K, -1, -1, -1).clone()
    logit = torch.full((K, B, 3), -12.0)
    logit[:, 0, :2] = logit[:, 1, 1] = 12.0
    for overlap in ("iou", "giou"):
        losses = moment_losses(logit, span, targets, LossConfig(overlap=overlap))
        assert all(value.item() < 1e-4 for value in losses.values())
    wrong = moment_losses(-logit, span, targets, LossConfig())
    assert wrong["focal"].item() > 10
    out = dataclasses.replace(make_outputs(), logit_KBM=logit, span_KBM2=span, actionness_BM=torch.zeros(B, 3))
    perfect = torch.zeros(B, 3)
    for b, m in itertools.product(range(B), range(3)):
        if span[-1, b, m, 1] > 0:
            windows = targets.windows_BW2[b][targets.window_mask_BW[b]].tolist()
            perfect[b, m] = max(iou(start_end(span[-1, b, m].tolist()), w) for w in windows)
    assert (
        actionness_errors(dataclasses.replace(out, actionness_BM=perfect), targets, LossConfig()).mean().item() < 1e-6
    )


def test_actionness_is_told_of_its_own_video_only():
    """Moment 0 of video 0 lies on a window of video 1: its target is still what video 0 says."""
    span = torch.tensor([[[0.2, 0.2], [0.75, 0.3]], [[0.2, 0.2], [0.3, 0.2]]]).expand(K, -1, -1, -1)
    windows = torch.tensor([[[0.6, 0.9], [0.0, 0.0]], [[0.1, 0.3], [0.9, 1.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    targets = dataclasses.replace(make_targets(), windows_BW2=windows, window_mask_BW=mask)
    out = dataclasses.replace(make_outputs(), span_KBM2=span, actionness_BM=torch.tensor([[0.9, 0.9], [0.9, 0.9]]))
    truth = np.array([[0, 1], [1, 1 / 3]])
    assert actionness_errors(out, targets, LossConfig()).mean().item() == pytest.approx(
        np.abs(truth - 0.9).mean(), rel=1e-5
    )
    early = span.clone()
    early[:-1] = 0.5
    same = actionness_errors(dataclasses.replace(out, span_KBM2=early), targets, LossConfig()).mean()
    assert same.item() == pytest.approx(np.abs(truth - 0.9).mean(), rel=1e-5)


# --- highlight and alignment -----------------------------------------------------------------------------------------


def test_highlight_loss_is_the_formula():
    """The positive clip against valid clips of lower saliency; padding and clips as good or better are left out."""
    saliency = torch.tensor([[0.3, -0.2, 0.5, 0.9, 0.1, 0.4], [0.1, 0.2, 0.3, -0.4, 5.0, 5.0]])
    level = torch.tensor([[0.0, 1, 2, 2, 0, 4], [0.0, 1, 2, 1, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    targets = dataclasses.replace(make_targets(), saliency_BT=level, video_mask_BT=mask)
    first = log_softmax_at(np.array([0.3, -0.2, 0.5, 0.1]) / 0.07, 2)
    second = log_softmax_at(np.array([0.1, 0.2, 0.3, -0.4]) / 0.07, 2)
    loss = highlight_errors(saliency, targets, 0.07).mean()
    assert loss.item() == pytest.approx(-(first + second) / 2, rel=1e-5)
    blind = saliency.clone()
    blind[0, [3, 5]], blind[1, 4:] = -0.7, torch.tensor([-3.0, 7.0])
    assert highlight_errors(blind, targets, 0.07).mean().item() == loss.item()
    seen = saliency.clone()
    seen[0, 4] += 0.3
    assert highlight_errors(seen, targets, 0.07).mean().item() > loss.item() + 0.01


def test_highlight_loss_falls_with_the_positive_clip():
    targets = make_targets(1)
    saliency = torch.zeros(B, T)
    flat = highlight_errors(saliency, targets, 0.07).mean()
    saliency[:, 2] = 1
    assert highlight_errors(saliency, targets, 0.07).mean() < 1e-4 < flat


def test_alignment_loss_is_the_formula():
    rng = np.random.default_rng(0)
    video, text = rng.standard_normal((K, B, T, F)), rng.standard_normal((K, B, F))
    positive = np.array([4, 1])
    clip = np.stack([[video[k, b, positive[b]] for b in range(B)] for k in range(K)])
    clip, sentence = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (clip, text))
    batch, layers = [], []
    for k, b in itertools.product(range(K), range(B)):
        to_text = np.array([clip[k, b] @ sentence[k, c] for c in range(B)]) / 0.07
        to_clip = np.array([clip[k, c] @ sentence[k, b] for c in range(B)]) / 0.07
        batch.append((log_softmax_at(to_text, b) + log_softmax_at(to_clip, b)) / 2)
        to_text = np.array([clip[k, b] @ sentence[j, b] for j in range(K)]) / 0.07
        to_clip = np.array([clip[j, b] @ sentence[k, b] for j in range(K)]) / 0.07
        layers.append((log_softmax_at(to_text, k) + log_softmax_at(to_clip, k)) / 2)
    loss = alignment_loss(*(torch.from_numpy(x) for x in (video, text, positive)), 0.07)
    assert loss.item() == pytest.approx(-np.mean(batch) - np.mean(layers), rel=1e-9)


# --- together --------------------------------------------------------------------------------------------------------


def test_weights_and_sum():
    out, targets = make_outputs(), make_targets()
    one = LossConfig(highlight=1, moment=1, alignment=1, focal=1, l1=1, iou=1, actionness=1, match_focal=2)
    other = LossConfig(
        highlight=0.3, moment=0.5, alignment=0.2, focal=3, l1=7, iou=7, actionness=13, match_focal=14
    )  # costs of matching in the same proportion: the same moments win
    plain = compute_losses(out, targets, one)
    weighted = compute_losses(out, targets, other)
    factors = {"focal": 1.5, "l1": 3.5, "overlap": 3.5, "actionness": 6.5, "highlight": 0.3, "alignment": 0.2}
    assert set(plain) == {*factors, "loss"}
    for name, factor in factors.items():
        assert weighted[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-5), name
        assert plain[name].item() > 0
    assert weighted["loss"].item() == pytest.approx(sum(weighted[name].item() for name in factors), rel=1e-6)


def test_padding_windows_and_clips_change_nothing():
    out, targets = make_outputs(), make_targets()
    expected = compute_losses(out, targets, LossConfig())
    extra = torch.zeros(B, 3, 2)
    extra[..., 1] = 1.0  # even a padding row that looks like a window of the whole video
    padded = dataclasses.replace(
        targets,
        windows_BW2=torch.cat((targets.windows_BW2, extra), 1),
        window_mask_BW=torch.cat((targets.window_mask_BW, torch.zeros(B, 3, dtype=torch.bool)), 1),
        saliency_BT=torch.cat((targets.saliency_BT, torch.zeros(B, 2)), 1),
        video_mask_BT=torch.cat((targets.video_mask_BT, torch.zeros(B, 2, dtype=torch.bool)), 1),
    )
    longer = dataclasses.replace(
        out,
        saliency_BT=torch.cat((out.saliency_BT, torch.full((B, 2), 0.99)), 1),
        video_KBTF=torch.cat((out.video_KBTF, torch.full((K, B, 2, F), 9.0)), 2),
    )
    for name, value in compute_losses(longer, padded, LossConfig()).items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-6), name


def test_a_batch_twice_costs_the_same():
    """Sums over moments are divided by the number of windows of the batch, the rest are means over samples."""
    out, targets = make_outputs(5), make_targets(5)
    twice_out = Outputs(
        *(torch.cat((x, x), 0 if name.endswith(("_BM", "_BT")) else 1) for name, x in tensors(out).items())
    )
    twice_targets = Targets(*(torch.cat((x, x)) for x in vars(targets).values()))
    once, twice = compute_losses(out, targets, LossConfig()), compute_losses(twice_out, twice_targets, LossConfig())
    for name in ("focal", "l1", "overlap", "actionness", "highlight"):
        assert twice[name].item() == pytest.approx(once[name].item(), rel=1e-5), name
    assert twice["alignment"] > once["alignment"]  # the copies are negatives of each other


def test_losses_of_half_outputs_are_computed_in_float32():
    out, targets = make_outputs(2), make_targets(2)
    halves = Outputs(*(x.half() for x in tensors(out).values()))
    rounded = Outputs(*(x.float() for x in tensors(halves).values()))
    for name, value in compute_losses(halves, targets, LossConfig()).items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(compute_losses(rounded, targets, LossConfig())[name].item(), rel=1e-6)


@pytest.mark.parametrize("form", ["l1", "bce"])
def test_an_actionness_near_zero_learns_by_cross_entropy_only(form):
    """The IoU is 1, and the logit -20: the gradient of L1 goes through a sigmoid that is flat there."""
    targets = make_targets(0, counts=(1,) * B)
    span = to_centre_width(targets.windows_BW2[:, :1]).expand(K, -1, M, -1).clone()
    logit = torch.full((B, M), -20.0, requires_grad=True)
    out = dataclasses.replace(make_outputs(), span_KBM2=span, actionness_BM=logit.sigmoid())
    errors = actionness_errors(out, targets, LossConfig(actionness_form=form))
    errors.sum().backward()
    assert errors.tolist() == pytest.approx([{"l1": 1.0, "bce": 20.0}[form]] * B, rel=1e-4)
    assert logit.grad is not None
    taught = -M * logit.grad
    assert bool((taught < 1e-8).all()) == (form == "l1")
    assert bool((taught > 0.99).all()) == (form == "bce")


def test_gradients_reach_what_each_loss_is_about():
    """And nothing else: actionness must not move spans, matching must not leak a gradient."""
    out, targets = make_outputs(), make_targets()
    leaves = {name: x.clone().requires_grad_() for name, x in tensors(out).items()}
    losses = compute_losses(Outputs(**leaves), targets, LossConfig())
    about = {
        "focal": {"logit_KBM"}, "l1": {"span_KBM2"}, "overlap": {"span_KBM2"}, "actionness": {"actionness_BM"},
        "highlight": {"saliency_BT"}, "alignment": {"video_KBTF", "text_KBF"},
    }  # fmt: skip
    for name, moved in about.items():
        gradients = torch.autograd.grad(losses[name], list(leaves.values()), retain_graph=True, allow_unused=True)
        touched = {leaf for leaf, g in zip(leaves, gradients, strict=True) if g is not None and g.any()}
        assert touched == moved, name
