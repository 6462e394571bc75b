"""How far scores are probabilities, before and after calibration, always on queries that the line was not fitted on.

Every query is judged by lines that were fitted on the videos of the other `FOLDS - 1` parts; the lines that are kept
are fitted on all. Shapes: N queries, M moments a query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.dataset import Sample, batches_by_length, pad_inputs
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.decode import PRESENCE, require_finite
from sdst_runtime.grounding.scores import FORMAT, LEAST, Scores
from sdst_runtime.metrics.presence import (
    answering,
    auroc,
    expected_calibration_error,
    recall_with_absent,
    reliability,
)
from sdst_runtime.sessions.base import Session

from .fit import fit_moments, fit_presence, staircase

FOLDS = 5
RIGHT_IOU = 0.5  # of a moment with a true window, from which on it is right
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Answers:
    """What a head said of some queries, and what was true."""

    presence_N: np.ndarray
    there_N: np.ndarray  # bool
    score_NM: np.ndarray
    iou_NM: np.ndarray  # with the true window that each overlaps most; 0 where the event is absent
    video_N: np.ndarray  # number of the query's video


@dataclass(frozen=True)
class Quality:
    """How good probabilities are: all three are 0 at best."""

    ece: float
    brier: float
    nll: float
    bins: list[tuple[float, float, float]]  # share, mean probability, share that was true


@dataclass(frozen=True)
class ScoreReport:
    """All numbers of the report."""

    queries: int
    absent: int
    auroc: float
    control_auroc: float  # with the sentences shuffled among the queries: what the presence owes to the pair
    best_score_auroc: float  # of the best moment's score in place of the presence
    presence: dict[str, Quality]  # as it is, line, isotonic
    moments: dict[str, Quality]
    thresholds: list[dict[str, float]]  # of the calibrated presence


def ask(head: Session, samples: Sequence[Sample], layers: int, on_done: Callable[[int, int], None]) -> Answers:
    """Run a head on samples. Raises InputError when it gives no presence, SessionError when an output is not finite."""
    if PRESENCE not in head.outputs:
        raise InputError("calibration of scores: the model gives no presence; train it with --data.negatives 0.33")
    place = {id(sample): i for i, sample in enumerate(samples)}
    videos = {vid: i for i, vid in enumerate(dict.fromkeys(sample.row["vid"] for sample in samples))}
    presence: dict[int, float] = {}
    scores: dict[int, np.ndarray] = {}
    ious: dict[int, np.ndarray] = {}
    for batch in batches_by_length(samples, 32):
        outputs = head.run(pad_inputs([s.video for s in batch], [s.text for s in batch], layers=layers))
        for name in (PRESENCE, "scores", "spans"):
            require_finite("the head", name, outputs[name])
        for row, sample in enumerate(batch):
            i = place[id(sample)]
            presence[i], scores[i] = float(outputs[PRESENCE][row]), outputs["scores"][row]
            ious[i] = _best_iou(outputs["spans"][row], sample.windows)
        on_done(len(scores), len(samples))
    order = range(len(samples))
    return Answers(
        np.array([presence[i] for i in order]),
        np.array([not is_absent(sample.row) for sample in samples]),
        np.stack([scores[i] for i in order]).astype(np.float64),
        np.stack([ious[i] for i in order]),
        np.array([videos[sample.row["vid"]] for sample in samples]),
    )


def with_other_sentences(samples: Sequence[Sample]) -> list[Sample]:
    """The control: each query keeps its video and its label and gets the sentence of one about another video.

    A model that ignores the sentence says the same here. Raises InputError when all queries are about one video.
    """
    count, mixed = len(samples), []
    for i, sample in enumerate(samples):
        others = (samples[(i + count // 2 + k) % count] for k in range(count))
        other = next((s for s in others if s.row["vid"] != sample.row["vid"]), None)
        if other is None:
            raise InputError("the control needs queries on two videos at least, got one video")
        mixed.append(replace(sample, text=other.text))
    return mixed


def calibrate_scores(answers: Answers) -> Scores:
    """The lines fitted on all queries. Raises InputError unless present and absent, right and wrong ones are there."""
    moments = _moments(answers)
    return Scores(
        FORMAT,
        fit_presence(answers.presence_N, answers.there_N),
        fit_moments(*moments),
        len(answers.there_N),
        int((~answers.there_N).sum()),
    )


def judge(answers: Answers, control: Answers) -> ScoreReport:
    """The report, from lines that are fitted on the other folds. Raises InputError as `calibrate_scores`."""
    there_N, presence_N = answers.there_N, answers.presence_N
    score, presence_of_moment, right = _moments(answers)
    moments = answers.score_NM.shape[1]
    line_N, steps_N = np.zeros(len(there_N)), np.zeros(len(there_N))
    line_M, steps_M = np.zeros(len(score)), np.zeros(len(score))
    for fold in range(FOLDS):
        own = answers.video_N % FOLDS == fold
        if not own.any():
            continue
        own_M = np.repeat(own, moments)
        presence = fit_presence(presence_N[~own], there_N[~own])
        moment = fit_moments(score[~own_M], presence_of_moment[~own_M], right[~own_M])
        line_N[own] = [presence(p) for p in presence_N[own]]
        line_M[own_M] = [moment(s, p) for s, p in zip(score[own_M], presence_of_moment[own_M], strict=True)]
        steps_N[own] = staircase(presence_N[~own], there_N[~own])(presence_N[own])
        steps_M[own_M] = staircase(score[~own_M], right[~own_M])(score[own_M])
    return ScoreReport(
        queries=len(there_N),
        absent=int((~there_N).sum()),
        auroc=auroc(presence_N, there_N),
        control_auroc=auroc(control.presence_N, control.there_N),
        best_score_auroc=auroc(answers.score_NM.max(1), there_N),
        presence={
            "as it is": quality(presence_N, there_N),
            "line": quality(line_N, there_N),
            "isotonic": quality(steps_N, there_N),
        },
        moments={
            "as it is": quality(score, right),
            "line": quality(line_M, right),
            "isotonic": quality(steps_M, right),
        },
        thresholds=[_at(threshold, line_N, answers) for threshold in THRESHOLDS],
    )


def quality(probability_N: np.ndarray, true_N: np.ndarray) -> Quality:
    """Of probabilities of what was true or not."""
    p = np.clip(probability_N, LEAST, 1 - LEAST)
    return Quality(
        expected_calibration_error(probability_N, true_N),
        float(np.mean((probability_N - true_N) ** 2)),
        float(-np.mean(np.where(true_N, np.log(p), np.log1p(-p)))),
        reliability(probability_N, true_N),
    )


def _at(threshold: float, presence_N: np.ndarray, answers: Answers) -> dict[str, Any]:
    first_iou = answers.iou_NM[np.arange(len(answers.iou_NM)), answers.score_NM.argmax(1)]
    right = recall_with_absent(presence_N >= threshold, answers.there_N, first_iou >= RIGHT_IOU)
    return {
        "threshold": threshold,
        **answering(presence_N, answers.there_N, threshold),
        "R1@0.5 with absent": right,
    }


def _moments(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all moments of all queries: score, presence of the query, whether it is right."""
    moments = answers.score_NM.shape[1]
    right = (answers.iou_NM >= RIGHT_IOU).ravel()
    return answers.score_NM.ravel(), np.repeat(answers.presence_N, moments), right


def _best_iou(spans_M2: np.ndarray, windows_W2: np.ndarray) -> np.ndarray:
    """M: the largest IoU of each moment with a window; 0 where there is none."""
    if not len(windows_W2):
        return np.zeros(len(spans_M2))
    start, end = (spans_M2[:, side, None].astype(np.float64) for side in range(2))
    shared = np.clip(np.minimum(end, windows_W2[:, 1]) - np.maximum(start, windows_W2[:, 0]), 0, None)
    union = (end - start) + (windows_W2[:, 1] - windows_W2[:, 0]) - shared
    return (shared / np.maximum(union, 1e-9)).max(1)
