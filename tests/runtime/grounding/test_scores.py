"""Calibrated scores: probabilities that keep the order, at the ends too, in answers and as a file of the bundle."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from sdst_runtime.contracts import Grounding, Moment
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_json
from sdst_runtime.grounding.scores import LEAST, MomentLine, PresenceLine, Scores, logit, read_scores, sigmoid

SCORES = Scores(1, PresenceLine(2.0, 0.5), MomentLine(1.5, 0.25, -1.0), 90, 30)


def answer(presence: float | None, *scores: float) -> Grounding:
    moments = tuple(Moment(float(i), i + 1.0, score) for i, score in enumerate(scores))
    return Grounding("q", moments, np.array([0.5, -0.5], np.float32), 1.0, ("zzz",), presence)


# ---------------------------------------------------------------- numbers


def test_logit_and_sigmoid_are_inverse_and_finite():
    for p in (LEAST, 0.01, 0.25, 0.5, 0.99, 1 - LEAST):
        assert sigmoid(logit(p)) == pytest.approx(p, rel=1e-9)
    assert (logit(0.0), logit(1.0)) == (logit(LEAST), logit(1 - LEAST))
    assert logit(0.0) == pytest.approx(-logit(1.0)) == pytest.approx(math.log(LEAST), abs=1e-5)
    assert (sigmoid(-1e4), sigmoid(1e4), sigmoid(0)) == (0, 1, 0.5)
    assert sigmoid(-3) == pytest.approx(1 - sigmoid(3), rel=1e-12)


def test_the_lines_by_hand():
    assert SCORES.presence(0.5) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert SCORES.presence(0.8) == pytest.approx(1 / (1 + math.exp(-(2 * math.log(4) + 0.5))))
    x = 1.5 * math.log(0.25) + 0.25 * math.log(4) - 1
    assert SCORES.moment(0.2, 0.8) == pytest.approx(1 / (1 + math.exp(-x)))
    for certain in (0.0, 1.0):
        assert 0 <= SCORES.presence(certain) <= 1
        assert 0 <= SCORES.moment(certain, 1 - certain) <= 1


def test_the_order_of_moments_is_kept():
    raw = answer(0.3, 1.0, 0.9, 0.5, 0.5, 0.1, 1e-4, 0.0)
    told = SCORES.apply(raw)
    scores = [moment.score for moment in told.moments]
    assert scores == sorted(scores, reverse=True)
    assert scores[2] == scores[3]
    assert len(set(scores)) == 6
    assert scores == [SCORES.moment(moment.score, 0.3) for moment in raw.moments]
    assert [(m.start_s, m.end_s) for m in told.moments] == [(m.start_s, m.end_s) for m in raw.moments]
    assert told.presence == SCORES.presence(0.3)
    assert (told.query, told.unknown_words, told.clip_s) == ("q", ("zzz",), 1.0)
    assert told.saliency is raw.saliency


def test_an_answer_without_a_presence_stays():
    raw = answer(None, 0.9)
    assert SCORES.apply(raw) is raw


# ---------------------------------------------------------------- the file


def test_the_file_comes_back(tmp_path):
    write_json(tmp_path / "scores.json", dataclasses.asdict(SCORES))
    assert read_scores(tmp_path / "scores.json") == SCORES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this sdst reads 1"),
        ({"presence": {"slope": 0.0, "offset": 0.5}}, "slopes above 0"),
        ({"presence": {"slope": -1.0, "offset": 0.5}}, "slopes above 0"),
        ({"moment": {"slope": -0.1, "presence_slope": 0.0, "offset": 0.5}}, "slopes above 0"),
    ],
)
def test_numbers_that_no_fit_gives(tmp_path, changes, message):
    write_json(tmp_path / "scores.json", dataclasses.asdict(SCORES) | changes)
    with pytest.raises(ContractError, match=rf"scores\.json: .*{message}.*calibrate the scores again"):
        read_scores(tmp_path / "scores.json")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(tmp_path, value):
    with pytest.raises(ContractError, match="expected finite numbers"):
        dataclasses.replace(SCORES, presence=PresenceLine(1.0, value))
    text = json.dumps(dataclasses.asdict(SCORES)).replace("-1.0", str(value).replace("inf", "Infinity"))
    (tmp_path / "scores.json").write_text(text.replace("nan", "NaN"))
    with pytest.raises((ContractError, InputError), match=r"scores\.json"):
        read_scores(tmp_path / "scores.json")


def test_a_file_that_is_damaged_or_missing(tmp_path):
    (tmp_path / "scores.json").write_text('{"format": 1}')
    with pytest.raises(ContractError, match=r"scores\.json.*calibrate the scores again"):
        read_scores(tmp_path / "scores.json")
    with pytest.raises(InputError, match=r"none\.json"):
        read_scores(tmp_path / "none.json")
