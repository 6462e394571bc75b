"""Where the sampling offsets of a trained model point: inside the moment (|offset| <= 1 half-width) or beyond it.

Shapes: S queries, K steps, M moments, H heads, P points. Offsets are in half-widths of the moment, as `rdsa.deform`
takes them; shares are percent.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sdst_runtime.data.dataset import Sample, batches_by_length, pad_inputs
from sdst_runtime.errors import InputError

from ..loop.batches import needed_layers
from ..loop.checkpoint import Checkpoint
from ..model.rdsa import RDSA, DeformableCrossAttention
from ..model.torch_session import TorchSession

Moments = Literal["all", "top"]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"  # Okabe and Ito's colours, told apart by the colour-blind
BINS = 80


@dataclass(frozen=True)
class Offsets:
    """All samples that a model drew."""

    offset_SKMHP: np.ndarray  # half-widths
    weight_SKMHP: np.ndarray  # of the attention; they add up to one over P
    top_S: np.ndarray  # the moment with the highest score


@dataclass(frozen=True)
class Spread:
    """How far from the moment's centre samples lie."""

    outside: float  # percent with |offset| > 1: outside the moment
    median: float  # of |offset|
    p95: float


@dataclass(frozen=True)
class StepSpread:
    """One step's samples, each counted once and each counted by its attention weight."""

    step: int  # from 1
    moments: Moments  # all, or of each query that with the highest score
    counted: Spread
    weighted: Spread


def record_offsets(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    batch_size: int = 32,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Offsets:
    """The offsets that a checkpoint's model predicts on `samples`; `on_done` hears of (queries done, all queries).

    Raises InputError for a model that samples nowhere.
    """
    model = checkpoint.model
    module = model.sparse.sample
    if not isinstance(module, RDSA | DeformableCrossAttention):
        raise InputError(
            f"attention: expected rdsa or deformable_ca, got {model.config.attention}, which samples nowhere; "
            "name a run with one of the two"
        )
    session = TorchSession(model)
    offsets, weights, top, done = [], [], [], 0
    for batch in batches_by_length(samples, batch_size):
        inputs = pad_inputs([s.video for s in batch], [s.text for s in batch], needed_layers(model.config))
        with _recorded(module) as (offset_KBME, logit_KBME):
            scores = session.run(inputs)["scores"]
        offsets.append(_by_query(offset_KBME, module) / module.points)
        weights.append(torch.from_numpy(_by_query(logit_KBME, module)).softmax(-1).numpy())
        top.append(scores.argmax(1))
        done += len(batch)
        on_done(done, len(samples))
    return Offsets(np.concatenate(offsets), np.concatenate(weights), np.concatenate(top))


def tabulate(offsets: Offsets) -> list[StepSpread]:
    """For each step the spread of all moments and of the top ones."""
    table = []
    for step in range(offsets.offset_SKMHP.shape[1]):
        offset, weight = offsets.offset_SKMHP[:, step], offsets.weight_SKMHP[:, step]
        best = np.arange(len(offset)), offsets.top_S
        table.append(_step_spread(step + 1, "all", offset, weight))
        table.append(_step_spread(step + 1, "top", offset[best], weight[best]))
    return table


def spread(offset: np.ndarray, weight: np.ndarray) -> Spread:
    """Share outside the moment, and quantiles of |offset|: the least that so much of the weight is at or below."""
    distance, weight = np.abs(offset).ravel(), weight.ravel().astype(np.float64)
    order = np.argsort(distance, kind="stable")
    reached = np.cumsum(weight[order])
    median, p95 = (distance[order[np.searchsorted(reached, q * reached[-1])]] for q in (0.5, 0.95))
    return Spread(100 * float(weight[distance > 1].sum() / weight.sum()), float(median), float(p95))


def draw(runs: Mapping[str, Offsets]) -> bytes:
    """A PNG: a row a run, a histogram a step, with the moment's ends at -1 and 1."""
    steps = max(offsets.offset_SKMHP.shape[1] for offsets in runs.values())
    limit = _limit(runs.values())
    figure = Figure(figsize=(1.0 + 2.9 * steps, 1.0 + 2.3 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), steps, sharex=True, sharey="row", squeeze=False)
    for row, (name, offsets) in zip(panels, runs.items(), strict=True):
        for panel in row[offsets.offset_SKMHP.shape[1] :]:
            panel.set_visible(False)
        for step, panel in enumerate(row[: offsets.offset_SKMHP.shape[1]]):
            _draw_step(panel, step, offsets, limit)
        row[0].set_ylabel(f"{name}\nsamples, percent a bin", fontsize=9)
        row[0].set_ylim(bottom=0)
    for panel in panels[-1]:
        panel.set_xlabel("offset, half-widths of the moment", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# ---------------------------------------------------------------- private


@contextmanager
def _recorded(module: RDSA | DeformableCrossAttention) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What the layers for offsets and logits give while the block runs, a tensor B M H*P a step."""
    offsets: list[Tensor] = []
    logits: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, into=into: into.append(output))
        for layer, into in ((module.offset, offsets), (module.logit, logits))
    ]
    try:
        yield offsets, logits
    finally:
        for hook in hooks:
            hook.remove()


def _by_query(recorded: Sequence[Tensor], module: RDSA | DeformableCrossAttention) -> np.ndarray:
    """K times B M H*P to B K M H P, float32."""
    return torch.stack(list(recorded), 1).unflatten(-1, (module.heads, module.points)).float().cpu().numpy()


def _step_spread(step: int, moments: Moments, offset: np.ndarray, weight: np.ndarray) -> StepSpread:
    return StepSpread(step, moments, spread(offset, np.ones_like(offset)), spread(offset, weight))


def _limit(runs: Iterable[Offsets]) -> float:
    """How far the histograms reach: a whole number that 99.9 % of each run's offsets stay within."""
    farthest = max(float(np.quantile(np.abs(offsets.offset_SKMHP), 0.999)) for offsets in runs)
    return float(max(2, math.ceil(farthest)))


def _draw_step(panel: Axes, step: int, offsets: Offsets, limit: float) -> None:
    offset, weight = offsets.offset_SKMHP[:, step], offsets.weight_SKMHP[:, step]
    edges = np.linspace(-limit, limit, BINS + 1)
    counted = 100 * np.histogram(offset, edges)[0] / offset.size
    weighted = 100 * np.histogram(offset, edges, weights=weight)[0] / weight.sum()
    panel.axvspan(-1, 1, color="#eeeeee", zorder=0, label="the moment")
    panel.stairs(counted, edges, fill=True, color=BLUE, alpha=0.55, zorder=2, label="every sample once")
    panel.stairs(weighted, edges, color=ORANGE, linewidth=1.3, zorder=3, label="by attention weight")
    for end in (-1, 1):
        panel.axvline(end, color=GREY, linewidth=0.9, linestyle="--", zorder=4)
    outside = [spread(offset, weights).outside for weights in (np.ones_like(offset), weight)]
    panel.set_title(f"step {step + 1}: outside {outside[0]:.1f} %, by weight {outside[1]:.1f} %", fontsize=9)
    panel.set_xlim(-limit, limit)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
