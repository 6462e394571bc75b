"""Scores as probabilities: what `sdst calibrate scores` has fitted, as a file of the bundle, and how it is used.

    presence  P(the event is in the video)       = sigmoid(a logit(presence) + b)
    moment    P(IoU of at least 0.5 with a true one) = sigmoid(a logit(score) + c logit(presence) + b)

Of a moment's score a > 0: the order of the moments of a query stays, and so does every metric that reads only that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..contracts import Grounding
from ..errors import ContractError
from ..strict_json import read_strict

SCORES = "scores.json"
FORMAT = 1
LEAST = 1e-6  # probabilities nearer to 0 or 1 are taken for it


@dataclass(frozen=True)
class PresenceLine:
    """Of the logit of the presence."""

    slope: float
    offset: float

    def __call__(self, presence: float) -> float:
        return sigmoid(self.slope * logit(presence) + self.offset)


@dataclass(frozen=True)
class MomentLine:
    """Of the logits of a moment's score and of the presence as the model gives it."""

    slope: float
    presence_slope: float
    offset: float

    def __call__(self, score: float, presence: float) -> float:
        return sigmoid(self.slope * logit(score) + self.presence_slope * logit(presence) + self.offset)


@dataclass(frozen=True)
class Scores:
    """scores.json."""

    format: int
    presence: PresenceLine
    moment: MomentLine
    queries: int  # that it was fitted on
    absent: int  # of these
    checkpoint_sha256: str = ""  # of the weights, where the file lies beside a run; a bundle's manifest has its files

    def __post_init__(self) -> None:
        """Raise ContractError on numbers that no fit gives."""
        numbers = (*vars(self.presence).values(), *vars(self.moment).values())
        if self.format != FORMAT:
            raise ContractError(f"{SCORES}: format {self.format}, this sdst reads {FORMAT}; calibrate the scores again")
        if not all(map(math.isfinite, numbers)) or min(self.presence.slope, self.moment.slope) <= 0:
            raise ContractError(f"{SCORES}: expected finite numbers and slopes above 0; calibrate the scores again")

    def apply(self, answer: Grounding) -> Grounding:
        """The answer with probabilities in place of the model's own scores; one without a presence stays as it is."""
        raw = answer.presence
        if raw is None:
            return answer
        moments = tuple(replace(moment, score=self.moment(moment.score, raw)) for moment in answer.moments)
        return replace(answer, presence=self.presence(raw), moments=moments)


def without_absent(answer: Grounding, threshold: float) -> Grounding:
    """Without moments where the presence is below `threshold`; one without a presence stays as it is."""
    absent = answer.presence is not None and answer.presence < threshold
    return replace(answer, moments=()) if absent else answer


def read_scores(path: Path) -> Scores:
    """Raises InputError or ContractError for a file that is missing, damaged or of another format."""
    return read_strict(Scores, path, "calibrate the scores again")


def logit(p: float) -> float:
    """Of a probability, which is kept `LEAST` away from 0 and 1."""
    p = min(max(p, LEAST), 1 - LEAST)
    return math.log(p) - math.log1p(-p)


def sigmoid(x: float) -> float:
    """0..1, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
