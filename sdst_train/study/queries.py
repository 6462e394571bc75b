"""Which of its M moments a trained model uses: the learned queries of its decoder, called slots here, since a query is
a sentence. A slot is used when the matching of the training gives one of its moments to an annotated window, and by
score when its moment has the highest one.

Shapes: S samples, K steps, M slots. Shares are percent, but for that of the entropy, which is 0..1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.dataset import Sample, batches_by_length
from sdst_runtime.errors import InputError
from sdst_runtime.metrics.score import COUNTS, with_so_many

from ..loop.batches import collate, needed_layers
from ..loop.checkpoint import Checkpoint
from ..loop.losses import match

ALL = "all"
GREY = "#cccccc"
MOST_LABELS = 32  # slots named on an axis


@dataclass(frozen=True)
class Matches:
    """What the matching gave to each slot."""

    matched_SKM: np.ndarray  # bool, whether a window of the sample is the slot's
    top_S: np.ndarray  # the slot whose moment has the highest score
    windows_S: np.ndarray  # annotated windows
    reference_M2: np.ndarray  # centre and width that a slot begins with, as fractions of the valid length
    absent: int  # queries left out: what they name is not in the video


@dataclass(frozen=True)
class Use:
    """How the slots share the windows of some queries, in one step or by score."""

    windows: str  # of a query: "all" or one of COUNTS
    queries: int
    step: int | Literal["score"]  # from 1; score: the slot of the highest one, after the last step
    counts: tuple[int, ...]  # of each slot
    used: int  # slots with a count
    entropy_bits: float
    entropy_share: float  # of log2 M, which all slots used alike have; 0 for a model of one slot
    most_used: int  # slot, from 1
    most_share: float


def record_matches(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    batch_size: int = 32,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Matches:
    """Match every step's moments with the windows of `samples`, as the losses of the checkpoint's run do.

    `on_done` hears of (queries done, all queries). Raises InputError when no query has a window.
    """
    asked = [sample for sample in samples if len(sample.windows)]
    if not asked:
        raise InputError(f"{len(samples)} queries, none with a window: nothing to match; choose another --split")
    model, loss = checkpoint.model.eval(), checkpoint.config.loss
    device = next(model.parameters()).device
    matched, top, windows = [], [], []
    for some in batches_by_length(asked, batch_size):
        batch = collate(some, [0.0] * len(some), needed_layers(model.config)).to(device)
        with torch.inference_mode():
            out = model(**batch.inputs)
            moment_KBW = match(out.logit_KBM.float(), out.span_KBM2.float(), batch.targets, loss).cpu().numpy()
            score_BM = out.logit_KBM[-1].float().sigmoid() * out.actionness_BM.float()
        matched.append(_given(moment_KBW, model.config.queries))
        top.append(score_BM.argmax(1).cpu().numpy())
        windows += [len(sample.row["relevant_windows"]) for sample in some]
        on_done(len(windows), len(asked))
    reference_M2 = model.sparse.reference_logit.detach().float().sigmoid().cpu().numpy()
    absent = sum(is_absent(sample.row) for sample in samples)
    return Matches(np.concatenate(matched), np.concatenate(top), np.array(windows), reference_M2, absent)


def tabulate(matches: Matches) -> list[Use]:
    """Of all queries, and of those with so many windows where there are some: each step, and by score."""
    M, table = matches.matched_SKM.shape[2], []
    for name, chosen in groups(matches).items():
        queries = int(chosen.sum())
        for step, count_M in enumerate(matches.matched_SKM[chosen].sum(0), 1):
            table.append(use(name, queries, step, count_M))
        table.append(use(name, queries, "score", np.bincount(matches.top_S[chosen], minlength=M)))
    return table


def groups(matches: Matches) -> dict[str, np.ndarray]:
    """The queries of each number of windows, S bool; numbers that no query has are left out."""
    return {ALL: np.ones(len(matches.windows_S), bool), **with_so_many(matches.windows_S)}


def use(windows: str, queries: int, step: int | Literal["score"], count_M: np.ndarray) -> Use:
    """From how often each slot was used, at least one of them once."""
    share_M = count_M / count_M.sum()
    there = share_M[share_M > 0]
    bits = float((there * np.log2(1 / there)).sum())
    most = int(np.argmax(count_M))
    return Use(
        windows, queries, step, tuple(count_M.tolist()), len(there), bits,
        bits / float(np.log2(len(count_M))) if len(count_M) > 1 else 0.0, most + 1, 100 * float(share_M[most]),
    )  # fmt: skip


def draw(runs: Mapping[str, Matches]) -> bytes:
    """A PNG: a row a run, a heat map for each number of windows, slots by steps and score, by their first centre."""
    tables = {name: tabulate(matches) for name, matches in runs.items()}
    named = {row.windows for table in tables.values() for row in table}
    names = [group for group in (ALL, *COUNTS) if group in named]
    most = max(100 * max(row.counts) / sum(row.counts) for table in tables.values() for row in table)
    slots, steps = (max(m.matched_SKM.shape[axis] for m in runs.values()) for axis in (2, 1))
    size = 1.8 + len(names) * (0.6 + 0.5 * (steps + 1)), 0.6 + len(runs) * (1.1 + 0.17 * min(max(slots, 10), 60))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(runs), len(names), squeeze=False)
    image = None
    for row, (name, matches) in zip(panels, runs.items(), strict=True):
        for panel, group in zip(row, names, strict=True):
            of_group = [found for found in tables[name] if found.windows == group]
            panel.set_visible(bool(of_group))
            if of_group:
                image = _draw_group(panel, of_group, matches.reference_M2, most)
        _name_slots(row[0], matches.reference_M2)
        row[0].set_ylabel(f"{name}\nslot: centre of its reference", fontsize=9)
    assert image is not None  # there is a run at least
    bar = figure.colorbar(image, ax=panels, fraction=0.03)
    bar.set_label("percent; grey: never", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# ---------------------------------------------------------------- private


def _given(moment_KBW: np.ndarray, slots: int) -> np.ndarray:
    """B K M, bool: the slots that have a window; -1 is no slot."""
    return (moment_KBW[..., None] == np.arange(slots)).any(2).transpose(1, 0, 2)


def _order(reference_M2: np.ndarray) -> np.ndarray:
    return np.argsort(reference_M2[:, 0], kind="stable")


def _draw_group(panel: Axes, table: Sequence[Use], reference_M2: np.ndarray, most: float) -> AxesImage:
    share = np.array([100 * np.array(row.counts) / sum(row.counts) for row in table]).T[_order(reference_M2)]
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=GREY)
    image = panel.imshow(
        np.ma.masked_equal(share, 0), aspect="auto", interpolation="nearest", cmap=colours, norm=Normalize(0, most)
    )
    labels = [f"{row.step}\n{row.used}\n{row.entropy_share:.2f}" for row in table]
    panel.set_xticks(range(len(table)), labels, fontsize=8)
    panel.axvline(len(table) - 1.5, color="white", linewidth=2)
    panel.set_yticks([])
    panel.set_xlabel("step, slots used, entropy / log2 M", fontsize=8)
    windows = "all queries" if table[0].windows == ALL else f"windows: {table[0].windows}"
    panel.set_title(f"{windows} ({table[0].queries})", fontsize=9)
    return image


def _name_slots(panel: Axes, reference_M2: np.ndarray) -> None:
    order = _order(reference_M2)
    shown = range(0, len(order), -(-len(order) // MOST_LABELS))
    panel.set_yticks(list(shown), [f"{order[i] + 1}: {reference_M2[order[i], 0]:.2f}" for i in shown], fontsize=7)
