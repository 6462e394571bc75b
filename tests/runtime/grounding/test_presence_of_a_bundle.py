"""A bundle whose head says whether the event is there: against torch, with a threshold, calibrated, and one without."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sdst_runtime import Grounder
from sdst_runtime.contracts import Grounding
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import InputError
from sdst_runtime.files import write_json
from sdst_runtime.grounding.bundle import Bundle, write_manifest
from sdst_runtime.grounding.scores import MomentLine, PresenceLine, Scores
from sdst_train.backbone.towers import load_backbone
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.torch_session import TorchSession

QUERIES = ["a red circle moves to the left", "a ring grows", "a blue square blinks"]
SCORES = Scores(1, PresenceLine(2.0, -0.5), MomentLine(1.5, 0.25, -1.0), 90, 30)


def calibrated(source: Path, to: Path) -> Path:
    """The same bundle with scores.json."""
    shutil.copytree(source, to)
    write_json(to / "scores.json", dataclasses.asdict(SCORES))
    manifest = Bundle.open(source).manifest
    write_manifest(to, manifest.spec, manifest.models, manifest.sdst_version)
    return to


@pytest.fixture(scope="module")
def answers(exported_presence, video) -> list[Grounding]:
    grounder = Grounder(exported_presence.directory, threads=1)
    return grounder.ground(grounder.encode(video), QUERIES)


def test_the_presence_is_that_of_torch(exported_presence, exported, answers, video):
    grounder = Grounder(exported_presence.directory, threads=1)
    features = grounder.encode(video)
    ids, mask = grounder.tokenizer.encode_batch(QUERIES, grounder.spec.max_tokens)
    with torch.no_grad():
        text = (
            load_backbone(exported_presence.backbone_path).text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        )
    texts = [row[:, :n] for row, n in zip(text, mask.sum(1), strict=True)]
    head = TorchSession(load_checkpoint(exported_presence.checkpoint_path).model)
    expected = head.run(pad_inputs([features.features] * 3, texts))["presence"]
    found = [answer.presence for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(set(np.round(found, 4))) == 3
    assert answers[0].to_dict()["presence"] == found[0]
    plain = Grounder(exported.directory, threads=1)
    for ours, theirs in zip(answers, plain.ground(plain.encode(video), QUERIES), strict=True):
        assert theirs.presence is None
        assert np.abs(ours.saliency - theirs.saliency).max() < 1e-5
        for one, other in zip(ours.moments, theirs.moments, strict=True):
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-4)


def test_below_the_threshold_nothing_was_found(exported_presence, answers, video):
    low, middle, high = sorted(answer.presence for answer in answers)
    assert low < middle < high
    grounder = Grounder.load(exported_presence.directory, threads=1, threshold=(middle + high) / 2)
    found = grounder.ground(grounder.encode(video), QUERIES)
    for answer, whole in zip(found, answers, strict=True):
        assert answer.presence == pytest.approx(whole.presence, abs=1e-6)
        assert len(answer.moments) == (len(whole.moments) if whole.presence == high else 0)
        assert len(answer.saliency) == len(whole.saliency)
    everything = Grounder(exported_presence.directory, threads=1, threshold=0.0)
    assert all(answer.moments for answer in everything.ground(everything.encode(video), QUERIES))


def test_calibrated_answers_are_probabilities(exported_presence, answers, video, tmp_path):
    bundle = calibrated(exported_presence.directory, tmp_path / "bundle")
    assert Bundle.open(bundle).scores() == SCORES
    assert Bundle.open(exported_presence.directory).scores() is None
    raised = sorted(SCORES.presence(answer.presence) for answer in answers)
    grounder = Grounder(bundle, threads=1, threshold=(raised[0] + raised[1]) / 2)  # of what the bundle says
    for found, raw in zip(grounder.ground(grounder.encode(video), QUERIES), answers, strict=True):
        assert found.presence == pytest.approx(SCORES.presence(raw.presence), abs=1e-5)
        expected = () if found.presence < (raised[0] + raised[1]) / 2 else SCORES.apply(raw).moments
        assert len(found.moments) == len(expected)
        for one, other in zip(found.moments, expected, strict=True):
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-3)


def test_a_bundle_without_a_presence_refuses_a_threshold(exported):
    with pytest.raises(InputError, match=r"threshold: .*does not say whether an event is there; .*--data\.negatives"):
        Grounder(exported.directory, threads=1, threshold=0.5)


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(exported_presence, threshold):
    with pytest.raises(InputError, match="threshold: expected a probability of 0 to 1"):
        Grounder(exported_presence.directory, threads=1, threshold=threshold)
