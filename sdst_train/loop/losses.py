"""Losses: matched moments at every step, highlight contrast, and alignment of the two streams.

Shapes: K steps, B batch, M moments, W windows (padded), T clips, F width. Moments are (centre, width) as fractions of
the valid length. All losses are computed in float32. Source: lineage of the paper (TadTR, R2-Tuning); docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..config import LossConfig
from ..model.sdst import Outputs
from .distributed import ALONE, Team


@dataclass(frozen=True)
class Targets:
    """What one batch should have answered."""

    windows_BW2: Tensor  # (start, end), fractions of the valid length; rows of padding are zero, all where it is absent
    window_mask_BW: Tensor  # true where a window is
    saliency_BT: Tensor  # 0 outside relevant clips, larger is a stronger highlight
    positive_clip_B: Tensor  # int64, one relevant clip drawn for each sample; any where the event is absent
    video_mask_BT: Tensor

    @property
    def present_B(self) -> Tensor:
        """Whether the event is in the video: it has a window."""
        return self.window_mask_BW.any(1)


def compute_losses(out: Outputs, targets: Targets, config: LossConfig, team: Team = ALONE) -> dict[str, Tensor]:
    """Each loss already weighted, and their sum under "loss".

    In a team these are this process's parts: their mean over processes is the loss of the whole batch.
    """
    mr = config.moment
    moment = moment_losses(out.logit_KBM.float(), out.span_KBM2.float(), targets, config, team)
    losses = {name: mr * value for name, value in moment.items()}
    there = targets.present_B
    losses["actionness"] = (
        mr * config.actionness * team.mean_over_batch(actionness_errors(out, targets, config)[there])
    )  # fmt: skip
    highlight_B = highlight_errors(out.saliency_BT.float(), targets, config.temperature)
    losses["highlight"] = config.highlight * team.mean_over_batch(highlight_B)
    losses["alignment"] = config.alignment * alignment_loss(
        out.video_KBTF.float(), out.text_KBF.float(), targets.positive_clip_B, config.temperature, team, there
    )
    if out.presence_B is not None:
        presence_B = functional.binary_cross_entropy_with_logits(
            out.presence_B.float(), there.float(), reduction="none"
        )
        losses["presence"] = config.presence * team.mean_over_batch(presence_B)
    losses["loss"] = torch.stack(list(losses.values())).sum()
    return losses


def moment_losses(
    logit_KBM: Tensor, span_KBM2: Tensor, targets: Targets, config: LossConfig, team: Team = ALONE
) -> dict[str, Tensor]:
    """Focal, L1 and overlap loss of the Hungarian matching, summed over steps and divided by the number of windows."""
    window_BW2 = targets.windows_BW2
    moment = match(logit_KBM, span_KBM2, targets, config)  # K B W, index of the moment matched to each window
    found = targets.window_mask_BW.expand_as(moment)
    count = team.total(found[0].sum()).clamp(min=1) / team.world
    label = torch.zeros_like(logit_KBM)
    step, sample, _ = torch.nonzero(found, as_tuple=True)
    label[step, sample, moment[found]] = 1
    span = span_KBM2[step, sample, moment[found]]
    truth = window_BW2.expand(len(logit_KBM), -1, -1, -1)[found]
    overlap = pairwise_overlap(to_start_end(span)[:, None], truth[:, None], generalised=config.overlap == "giou")
    return {
        "focal": config.focal * focal_loss(logit_KBM, label).sum() / count,
        "l1": config.l1 * (span - to_centre_width(truth)).abs().sum() / count,
        "overlap": config.iou * (1 - overlap).sum() / count,
    }


@torch.no_grad()
def match(logit_KBM: Tensor, span_KBM2: Tensor, targets: Targets, config: LossConfig) -> Tensor:
    """Cheapest one-to-one assignment of windows to moments, each step and sample apart: K B W, -1 for padding.

    With more windows than moments the surplus windows stay unmatched (-1) and the caller's mask must leave them out;
    data loading refuses such samples.
    """
    windows = targets.windows_BW2
    positive = focal_loss(logit_KBM, torch.ones_like(logit_KBM))
    negative = focal_loss(logit_KBM, torch.zeros_like(logit_KBM))
    distance = (span_KBM2[:, :, :, None] - to_centre_width(windows)[None, :, None]).abs().sum(-1)
    overlap = pairwise_overlap(to_start_end(span_KBM2), windows[None], generalised=config.overlap == "giou")
    cost = config.match_focal * (positive - negative)[..., None] + config.l1 * distance - config.iou * overlap
    cost_KBMW = np.nan_to_num(cost.cpu().double().numpy(), nan=1e9)  # scipy refuses NaN; the loss will show it
    counts = targets.window_mask_BW.sum(1).cpu().numpy()
    K, B, _, W = cost_KBMW.shape
    chosen = np.full((K, B, W), -1, dtype=np.int64)
    for k in range(K):
        for b in range(B):
            moments, window = linear_sum_assignment(cost_KBMW[k, b, :, : counts[b]])
            chosen[k, b, window] = moments
    return torch.from_numpy(chosen).to(logit_KBM.device)


def focal_loss(logit: Tensor, label: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise focal loss (Lin et al. 2017)."""
    p = logit.sigmoid()
    cross_entropy = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
    wrongness = label * (1 - p) + (1 - label) * p
    return (label * alpha + (1 - label) * (1 - alpha)) * wrongness**gamma * cross_entropy


def pairwise_overlap(a_N2: Tensor, b_W2: Tensor, *, generalised: bool = False) -> Tensor:
    """IoU (or GIoU) of (start, end) windows, [..., N, 2] with [..., W, 2] -> [..., N, W]. Empty pairs give 0."""
    a, b = a_N2[..., :, None, :], b_W2[..., None, :, :]
    inter = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    iou = inter / union.clamp(min=1e-6)
    if not generalised:
        return iou
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return iou - (hull - union) / hull.clamp(min=1e-6)


def actionness_errors(out: Outputs, targets: Targets, config: LossConfig) -> Tensor:
    """Actionness against the best IoU with a window of the same query, last step, mean over moments: B.

    L1 as in TadTR, or cross-entropy with the IoU as soft label. Most moments overlap no window, so the median that L1
    looks for is zero, and where the sigmoid has come near it no gradient is left: on data that are hard at first the
    whole actionness stays at zero. Cross-entropy looks for the mean and has a gradient everywhere.
    """
    span = to_start_end(out.span_KBM2[-1].detach().float())
    iou = pairwise_overlap(span, targets.windows_BW2.float()).masked_fill(~targets.window_mask_BW[:, None], 0)
    said, true = out.actionness_BM.float(), iou.amax(-1)
    if config.actionness_form == "bce":
        return functional.binary_cross_entropy(said, true.clamp(0, 1), reduction="none").mean(-1)
    return (said - true).abs().mean(-1)


def highlight_errors(saliency_BT: Tensor, targets: Targets, temperature: float) -> Tensor:
    """InfoNCE of the drawn positive clip against clips of lower saliency; all others, and padding, are left out: B.

    R2-Tuning keeps equally good clips as negatives. Where an event's clips share a score that makes them repel each
    other, and a small model then hardly learns: R1@0.5 17 against over 70 after the 80 steps of
    tests/train/loop/test_training_loop.py.

    Where the event is absent the saliency of every clip is pushed down: the mean of
    -log(1 - sigmoid(saliency / t)), the loss of QD-DETR's negative pairs.
    """
    positive = targets.positive_clip_B[:, None]
    level = targets.saliency_BT.gather(1, positive)
    counted = targets.video_mask_BT & (targets.saliency_BT < level)
    counted = counted.scatter(1, positive, True)
    logits = (saliency_BT / temperature).masked_fill(~counted, float("-inf"))
    contrast_B = functional.cross_entropy(logits, targets.positive_clip_B, reduction="none")
    there = targets.present_B
    if there.all():
        return contrast_B
    valid = targets.video_mask_BT
    down_B = functional.softplus(saliency_BT / temperature).masked_fill(~valid, 0).sum(1) / valid.sum(1)
    return torch.where(there, contrast_B, down_B)


def alignment_loss(
    video_KBTF: Tensor,
    text_KBF: Tensor,
    positive_clip_B: Tensor,
    temperature: float,
    team: Team = ALONE,
    there_B: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE of the positive clip with its sentence: across the batch a layer, across layers a sample.

    Of the samples that are `there` (default: all): a sentence that is not true of a video has no positive clip.
    """
    K, B, _, F = video_KBTF.shape
    index = positive_clip_B[None, :, None, None].expand(K, B, 1, F)
    clip_BKF = functional.normalize(video_KBTF.gather(2, index).squeeze(2), dim=-1).transpose(0, 1)
    sentence_BKF = functional.normalize(text_KBF, dim=-1).transpose(0, 1)
    if there_B is not None:
        clip_BKF, sentence_BKF = clip_BKF[there_B], sentence_BKF[there_B]
    clip_BKF, sentence_BKF = team.gather(clip_BKF), team.gather(sentence_BKF)
    if not len(clip_BKF):
        return clip_BKF.sum()  # of nothing: zero
    across_batch = torch.einsum("bkf,ckf->kbc", clip_BKF, sentence_BKF) / temperature
    across_layers = torch.einsum("bkf,blf->bkl", clip_BKF, sentence_BKF) / temperature
    return _symmetric(across_batch) + _symmetric(across_layers)


def _symmetric(logits_GNN: Tensor) -> Tensor:
    """Cross entropy of the diagonal, rows and columns averaged, over all groups."""
    G, N, _ = logits_GNN.shape
    label = torch.arange(N, device=logits_GNN.device).repeat(G)
    rows = functional.cross_entropy(logits_GNN.reshape(-1, N), label)  # in two axes: three have no deterministic kernel
    return (rows + functional.cross_entropy(logits_GNN.mT.reshape(-1, N), label)) / 2


def to_start_end(span: Tensor) -> Tensor:
    """(centre, width) to (start, end), last axis."""
    centre, width = span.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), dim=-1)


def to_centre_width(window: Tensor) -> Tensor:
    """(start, end) to (centre, width), last axis."""
    start, end = window.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), dim=-1)
