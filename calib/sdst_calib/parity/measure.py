"""How far apart copies of one model are, on real inputs: in their numbers, in what they decide, and in the metric.

Every batch holds videos of one length, so that nothing compared is padding. Shapes: B batch, T clips, M moments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, pad_inputs
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.grounding.decode import decode, prediction_row
from sdst_runtime.sessions.base import Session

from ..tensor_errors import TensorSums
from .decisions import Answer, Decisions, decisions
from .runners import OutputError, Outputs, SessionRunner, compare, outputs_of, run_runners
from .task import Metric, metrics, metrics_by_query
from .tolerances import Check, Tolerances, checks

BATCH = 32  # queries at once


@dataclass(frozen=True)
class Candidate:
    """A copy of the model: its name in the report, its head, and what it is held to."""

    name: str
    session: Session  # video, video_mask, text, text_mask -> spans, scores, saliency, perhaps presence
    precision: str  # fp32, fp16, int8; torch for a checkpoint
    tolerances: Tolerances


@dataclass(frozen=True)
class OutputParity:
    """One output against the reference's, over all queries. The first four are Polygraphy's."""

    max_abs: float
    mean_abs: float
    max_rel: float  # element by element: large where the reference is nearly 0
    mean_rel: float
    cosine: float
    snr_db: float
    not_finite: int


@dataclass(frozen=True)
class CandidateParity:
    """One copy against the reference."""

    name: str
    precision: str
    tensors: dict[str, OutputParity]  # by output
    decisions: Decisions | None  # None where an output is not finite: there is nothing to decide on
    metrics: list[Metric]  # of the queries with windows; none without such, and where an output is not finite
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether everything that was checked is within its tolerance."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Parity:
    """All copies against one reference."""

    reference: str
    reference_precision: str
    queries: int
    labelled: int  # queries with windows: those that the metrics are of
    reference_metrics: dict[str, float]
    candidates: list[CandidateParity]


def measure_parity(
    reference: Candidate,
    others: Sequence[Candidate],
    samples: Sequence[Sample],
    data: DataConfig,
    spec: FeatureSpec,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run all copies on all samples, batch by batch, and compare them on three levels.

    Their names tell them apart. Metrics are of the queries with windows, all else is of all queries. Outputs of all
    queries are kept, features are not. `on_done` gets (queries done, of all). Raises InputError without samples and
    when outputs differ in shape.
    """
    if not samples:
        raise InputError("expected queries to compare on, the split has none; name another with --split")
    gathered = _gather((reference, *others), samples, spec, on_done)
    labelled = [place for place, sample in enumerate(samples) if sample.row.get("relevant_windows")]
    scored = _scored(gathered, samples, labelled, data)
    own = scored.get(reference.name, {})
    return Parity(
        reference.name,
        reference.precision,
        len(samples),
        len(labelled),
        {name: float(values.mean()) for name, values in own.items()},
        [_of_candidate(candidate, reference.name, gathered, scored, data) for candidate in others],
    )


def max_abs_error(
    reference: Session, other: Session, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:  # fmt: skip
    """Largest absolute difference of each output over all batches; NaN where either session gives NaN.

    Raises ContractError when the sessions differ in the names or shapes of their outputs.
    """
    worst: dict[str, float] = {}
    for inputs in batches:
        expected, got = reference.run(inputs), other.run(inputs)
        shapes = [{name: array.shape for name, array in outputs.items()} for outputs in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ContractError(f"the sessions' outputs differ in shape: {shapes[0]} and {shapes[1]}")
        for name, array in expected.items():
            error = float(np.abs(array.astype(np.float64) - got[name].astype(np.float64)).max())
            worst[name] = float(np.maximum(worst.get(name, 0.0), error))  # keeps NaN
    return worst


def batches_of_one_length(samples: Sequence[Sample], most: int = BATCH) -> Iterator[list[int]]:
    """Places of the samples, in batches of videos that have equally many clips."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        by_length[len(sample.video)].append(place)
    for _, places in sorted(by_length.items()):
        for start in range(0, len(places), most):
            yield places[start : start + most]


def inputs_of(samples: Sequence[Sample], spec: FeatureSpec) -> dict[str, np.ndarray]:
    """The head's inputs for some samples, with the layers that the model takes."""
    return pad_inputs([s.video for s in samples], [s.text for s in samples], layers=spec.layers)


class _Gathered:
    """What all copies said: errors by copy and output, answers by copy and place of the query."""

    def __init__(self, queries: int) -> None:
        self.queries = queries
        self.sums: dict[tuple[str, str], TensorSums] = defaultdict(TensorSums)
        self.errors: dict[tuple[str, str], list[tuple[int, OutputError]]] = defaultdict(list)
        self.answers: dict[str, dict[int, Answer]] = defaultdict(dict)
        self.not_finite: set[str] = set()  # copies

    def answers_of(self, name: str) -> list[Answer]:
        """By place."""
        return [self.answers[name][place] for place in range(self.queries)]

    def output(self, name: str, output: str) -> OutputParity:
        """One output of one copy, over all batches."""
        values = np.array([size for size, _ in self.errors[name, output]], np.float64)
        errors = [error for _, error in self.errors[name, output]]
        share = values / values.sum()
        sums = self.sums[name, output].error()
        return OutputParity(
            _max(error.max_abs for error in errors),
            float(share @ [error.mean_abs for error in errors]),
            _max(error.max_rel for error in errors),
            float(share @ [error.mean_rel for error in errors]),
            sums.cosine,
            sums.snr_db,
            sums.not_finite,
        )


def _max(values: Iterable[float]) -> float:
    return float(np.max(list(values)))  # NaN when one is


def _gather(
    candidates: Sequence[Candidate],
    samples: Sequence[Sample],
    spec: FeatureSpec,
    on_done: Callable[[int, int], None],
) -> _Gathered:
    runners = [SessionRunner(candidate.session, candidate.name) for candidate in candidates]
    names = [candidate.name for candidate in candidates]
    gathered, done = _Gathered(len(samples)), 0
    for places in batches_of_one_length(samples):
        batch = [samples[place] for place in places]
        results = run_runners(runners, inputs_of(batch, spec))
        outputs = {name: outputs_of(results, name) for name in names}
        for name, errors in compare(results, names).items():
            for output, error in errors.items():
                gathered.errors[name, output].append((outputs[name][output].size, error))
                gathered.sums[name, output].add(outputs[names[0]][output], outputs[name][output])
        for name in names:
            if not all(np.isfinite(array).all() for array in outputs[name].values()):
                gathered.not_finite.add(name)  # such outputs are no answers
                continue
            answers = _answers(outputs[name], batch, spec.clip_s)
            gathered.answers[name].update(zip(places, answers, strict=True))
        done += len(places)
        on_done(done, len(samples))
    return gathered


def _answers(outputs: Outputs, batch: Sequence[Sample], clip_s: float) -> list[Answer]:
    queries = [sample.row["query"] for sample in batch]
    durations_s = [sample.row["duration"] for sample in batch]
    groundings = decode(outputs, queries, [len(sample.video) for sample in batch], durations_s, clip_s)
    return [Answer(grounding, scores) for grounding, scores in zip(groundings, outputs["scores"], strict=True)]


def _scored(
    gathered: _Gathered, samples: Sequence[Sample], labelled: Sequence[int], data: DataConfig
) -> dict[str, dict[str, np.ndarray]]:
    """Copy -> metric -> a value a labelled query; only copies that gave numbers."""
    if not labelled:
        return {}
    scored, asked = {}, [samples[place] for place in labelled]
    for name in gathered.answers.keys() - gathered.not_finite:
        groundings = [gathered.answers[name][place].grounding for place in labelled]
        rows = [prediction_row(sample.row, grounding) for sample, grounding in zip(asked, groundings, strict=True)]
        scored[name] = metrics_by_query(rows, asked, data)
    return scored


def _of_candidate(
    candidate: Candidate,
    reference: str,
    gathered: _Gathered,
    scored: Mapping[str, dict[str, np.ndarray]],
    data: DataConfig,
) -> CandidateParity:
    name = candidate.name
    tensors = {output: gathered.output(name, output) for copy, output in list(gathered.errors) if copy == name}
    finite = not {name, reference} & gathered.not_finite
    decided = decisions(gathered.answers_of(reference), gathered.answers_of(name)) if finite else None
    both = name in scored and reference in scored
    measured = metrics(scored[reference], scored[name]) if both else []
    checked = checks(candidate.tolerances, data.metrics, tensors, decided, measured)
    return CandidateParity(name, candidate.precision, tensors, decided, measured, checked)
