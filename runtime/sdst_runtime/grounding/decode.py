"""Raw head outputs to moments in seconds, and to prediction rows in the QVHighlights form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contracts import Grounding, Moment, VideoFeatures
from ..errors import SessionError
from ..sessions.base import Session

if TYPE_CHECKING:
    from ..data.dataset import Sample

HEAD_OUTPUTS = ("spans", "scores", "saliency")
PRESENCE = "presence"  # one more output, of heads that were trained with absent queries


def decode(
    outputs: Mapping[str, np.ndarray], queries: Sequence[str], clips: Sequence[int], durations_s: Sequence[float],
    clip_s: float, model: str = "head",
) -> list[Grounding]:  # fmt: skip
    """One Grounding a row of the head's outputs. Raises SessionError naming `model` and the output with a NaN in it.

    outputs: spans B M 2 (start, end, fractions of the valid clips), scores B M, saliency B T, perhaps presence B.
    Moments are clamped to the video and sorted by descending score; saliency is cut to the valid clips.
    """
    presence = outputs.get(PRESENCE)
    for name in (*HEAD_OUTPUTS[:2], *([] if presence is None else [PRESENCE])):
        require_finite(model, name, outputs[name])
    groundings = []
    for i, query in enumerate(queries):
        spans_s = np.clip(outputs["spans"][i].astype(np.float64) * (clips[i] * clip_s), 0, durations_s[i])
        scores = outputs["scores"][i]
        order = np.argsort(-scores, kind="stable")
        moments = tuple(Moment(float(spans_s[m, 0]), float(spans_s[m, 1]), float(scores[m])) for m in order)
        saliency = outputs["saliency"][i, : clips[i]].astype(np.float32)
        require_finite(model, HEAD_OUTPUTS[2], saliency)
        there = None if presence is None else float(presence[i])
        groundings.append(Grounding(query, moments, saliency, clip_s, presence=there))
    return groundings


def require_finite(model: str, output: str, values: np.ndarray) -> None:
    """Raise SessionError, naming both, where a model's output holds NaN or infinity: no answer comes of that."""
    if not np.isfinite(values).all():
        count = values.size - np.isfinite(values).sum()
        raise SessionError(
            f"{model}: {count} of {values.size} values of its output {output} are NaN or infinite; the weights are "
            "damaged or the precision is too small for them: export the model again, in fp32 or with more of it kept so"
        )


def answer_json(video: str, features: VideoFeatures, answers: Sequence[Grounding]) -> dict[str, Any]:
    """The documented JSON of `sdst ground --json` and of the server: all answers about one video, called `video`."""
    return {
        "video": video,
        "duration_s": features.duration_s,
        "clip_s": features.spec.clip_s,
        "results": [answer.to_dict() for answer in answers],
    }


def predict(
    head: Session,
    samples: Sequence[Sample],
    clip_s: float,
    batch_size: int = 32,
    *,
    layers: int | None = None,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Prediction rows (`prediction_row`) for all samples, by qid order.

    `layers`: how many of the stored layers the head takes, the last ones; default all. `on_done` hears of
    (queries done, all queries) after each batch.
    """
    from ..data.dataset import batches_by_length, pad_inputs  # annotations and stores, which no video file needs

    rows = []
    for batch in batches_by_length(samples, batch_size):
        outputs = head.run(pad_inputs([s.video for s in batch], [s.text for s in batch], layers=layers))
        clips, durations = [len(s.video) for s in batch], [s.row["duration"] for s in batch]
        name = getattr(head, "name", "the grounding model")
        groundings = decode(outputs, [s.row["query"] for s in batch], clips, durations, clip_s, name)
        rows += [prediction_row(s.row, g) for s, g in zip(batch, groundings, strict=True)]
        on_done(len(rows), len(samples))
    return sorted(rows, key=lambda row: row["qid"])


def prediction_row(row: Mapping[str, Any], grounding: Grounding) -> dict[str, Any]:
    """One line of a QVHighlights submission; with pred_presence where the model gives it."""
    presence = {} if grounding.presence is None else {"pred_presence": grounding.presence}
    return {
        "qid": row["qid"],
        "query": row["query"],
        "vid": row["vid"],
        "pred_relevant_windows": [[m.start_s, m.end_s, m.score] for m in grounding.moments],
        "pred_saliency_scores": grounding.saliency.tolist(),
        **presence,
    }
