"""The presence of an answer: where it comes from, what a threshold does with it, and how an answer shows it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from present_world import calibrated

from sdst_runtime import Grounder, Grounding
from sdst_runtime.contracts import Moment, VideoFeatures
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.scores import MomentLine, PresenceLine, logit, sigmoid
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.torch_session import TorchSession

QUERIES = ["a red circle moves to the left", "a ring grows", "a blue square blinks", "a green star spins"]


@pytest.fixture(scope="module")
def answers(present, video) -> list[Grounding]:
    with Grounder.load(present.directory, threads=1) as grounder:
        return grounder.ground(video, QUERIES)


def between(answers: list[Grounding]) -> float:
    """A threshold that half of the answers are below of."""
    known = sorted(answer.presence for answer in answers if answer.presence is not None)
    assert known[2] - known[1] > 1e-3
    return (known[1] + known[2]) / 2


def test_the_presence_is_that_of_torch(present, video, answers):
    with Grounder.load(present.directory, threads=1) as grounder:
        features, (text, mask) = grounder.encode(video), grounder.read(QUERIES)
    texts = [row[:, :n] for row, n in zip(text, mask.sum(1), strict=True)]
    outputs = TorchSession(load_checkpoint(present.checkpoint_path).model).run(
        pad_inputs([features.features] * len(QUERIES), texts)
    )
    np.testing.assert_allclose([answer.presence for answer in answers], outputs["presence"], atol=1e-5)


def test_an_answer_below_the_threshold_has_no_moments_and_the_others_are_as_they_were(present, video, answers):
    limit = between(answers)
    with Grounder.load(present.directory, threads=1, threshold=limit) as grounder:
        found = grounder.ground(video, QUERIES)
    assert [bool(answer.moments) for answer in found].count(False) == 2
    for answer, free in zip(found, answers, strict=True):
        assert answer.presence == free.presence
        assert answer.moments == (() if answer.presence < limit else free.moments)
        np.testing.assert_array_equal(answer.saliency, free.saliency)


def test_a_long_video_is_there_when_a_window_has_it(present, answers):
    with Grounder.load(present.directory, threads=1) as grounder:
        spec = grounder.spec
        features = np.random.default_rng(0).standard_normal((20, spec.layers, spec.video_width)).astype(np.float32)
        whole = VideoFeatures(features, 20.0, spec)
    with Grounder.load(present.directory, threads=1, window_clips=8) as grounder:
        long, projected = grounder.ground(whole, QUERIES[0]), grounder.project(whole)
        parts = [
            VideoFeatures(features[window.start : window.stop], window.clips * spec.clip_s, spec)
            for window in projected.windows
        ]
        of_parts = [grounder.ground(part, QUERIES[0]).presence for part in parts]
    assert len(of_parts) > 2
    assert long.presence == pytest.approx(max(of_parts), abs=1e-5)


def test_calibrated_scores_are_used_and_the_threshold_is_of_these(present, video, answers, tmp_path):
    bundle = calibrated(present.directory, tmp_path / "calibrated", PresenceLine(2.0, -1.0), MomentLine(1.5, 0.5, 0.25))
    with Grounder(bundle, threads=1) as grounder:
        found = grounder.ground(video, QUERIES)
    for answer, raw in zip(found, answers, strict=True):
        assert answer.presence == pytest.approx(sigmoid(2 * logit(raw.presence) - 1))
        for moment, before in zip(answer.moments, raw.moments, strict=True):
            expected = sigmoid(1.5 * logit(before.score) + 0.5 * logit(raw.presence) + 0.25)
            assert moment == dataclasses.replace(before, score=pytest.approx(expected))
    limit = between(found)
    with Grounder(bundle, threads=1, threshold=limit) as grounder:
        cut = grounder.ground(video, QUERIES)
    assert [bool(answer.moments) for answer in cut] == [answer.presence >= limit for answer in found]


def test_a_threshold_is_refused_for_a_bundle_without_presence_and_out_of_range(exported, present, video):
    with pytest.raises(InputError, match=r"does not say whether an event is there; train with --data\.negatives"):
        Grounder.load(exported.directory, threads=1, threshold=0.5)
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(InputError, match=r"threshold: expected a probability of 0 to 1, got"):
            Grounder.load(present.directory, threads=1, threshold=threshold)
    with Grounder.load(exported.directory, threads=1) as grounder:
        assert grounder.ground(video, QUERIES[0]).presence is None


# ---------------------------------------------------------------- how it is shown

THERE = Grounding("q", (Moment(1, 2.5, 0.75),), np.array([0.5, -0.25], np.float32), 2.0, presence=0.974)
ABSENT = dataclasses.replace(THERE, moments=(), presence=0.031)


def test_words_dicts_and_html():
    assert "presence 0.974" in repr(THERE)
    assert (ABSENT.to_dict()["presence"], ABSENT.to_dict()["moments"]) == (0.031, [])
    page = THERE._repr_html_()
    assert "<p>presence 0.97</p>" in page
    assert "<td>1.00</td>" in page
    assert ABSENT._repr_html_() == "<table><caption>q</caption></table><p>nothing found (presence 0.03)</p>"


def test_the_drawing_says_it():
    import matplotlib as mpl

    mpl.use("agg")
    assert THERE.plot().get_title() == "q\npresence 0.97"
    axes = ABSENT.plot()
    assert axes.get_title() == "q\nnothing found (presence 0.03)"
    assert len(axes.patches) == 0
