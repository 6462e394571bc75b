"""The runtime from file to moments, against torch on the same frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sdst_runtime import Grounder
from sdst_runtime.dataset import pad_inputs
from sdst_runtime.decode import decode, prediction_row
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.media import read_clips
from sdst_train.backbone.pipeline import extract_sentences, extract_videos
from sdst_train.backbone.towers import load_backbone
from sdst_train.checkpoint import load_checkpoint
from sdst_train.session import TorchSession

QUERIES = ["a red circle moves to the left", "a ring grows", "when does something cyan shaped like a donut blink?"]


@pytest.fixture(scope="module")
def grounder(exported) -> Grounder:
    return Grounder.load(exported.directory, threads=1)


def test_encode_equals_the_tower_that_trained(grounder, exported, video):
    features = grounder.encode(video)
    clips, duration_s = read_clips(video, grounder.spec)
    with torch.no_grad():
        expected = load_backbone(exported.backbone_path).vision(torch.from_numpy(clips)).numpy()
    assert features.features.shape == (8, 2, 12)
    assert np.abs(features.features - expected).max() < 1e-5
    assert features.duration_s == duration_s == pytest.approx(7.4)
    assert grounder.warnings == []


def test_training_features_equal_inference_features(grounder, exported, video, tmp_path):
    """Train/serve skew: the files that training reads hold what inference computes."""
    from sdst_runtime.features import read_text_features, read_video_features, text_feature_path, video_feature_path

    backbone = load_backbone(exported.backbone_path)
    extract_videos({"v": video}, backbone.vision, tmp_path, workers=1, dtype="float32")
    extract_sentences([QUERIES[0], QUERIES[0]], backbone, tmp_path, dtype="float32")
    stored = read_video_features(video_feature_path(tmp_path, "v"), grounder.spec)
    live = grounder.encode(video)
    assert np.abs(stored.features - live.features).max() < 1e-5
    assert stored.duration_s == live.duration_s
    ids, mask = grounder.tokenizer.encode_batch([QUERIES[0]], grounder.spec.max_tokens)
    text = grounder.text.run({"token_ids": ids, "token_mask": mask})["features"][0]
    assert np.abs(read_text_features(text_feature_path(tmp_path, QUERIES[0])).features - text).max() < 1e-5
    assert len(list((tmp_path / "text").iterdir())) == 1


def test_ground_equals_torch(grounder, exported, video):
    """The same question to the trained model in torch, step by step."""
    features = grounder.encode(video)
    backbone, head = (
        load_backbone(exported.backbone_path),
        TorchSession(load_checkpoint(exported.checkpoint_path).model),
    )
    ids, mask = grounder.tokenizer.encode_batch(QUERIES, grounder.spec.max_tokens)
    with torch.no_grad():
        text = backbone.text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    texts = [row[:, :n] for row, n in zip(text, mask.sum(1), strict=True)]
    outputs = head.run(pad_inputs([features.features] * 3, texts))
    expected = decode(outputs, QUERIES, [8] * 3, [7.4] * 3, 1.0)
    for one, other in zip(grounder.ground_batch(features, QUERIES), expected, strict=True):
        assert one.query == other.query
        assert np.abs(one.saliency - other.saliency).max() < 1e-4
        for mine, theirs in zip(one.moments, other.moments, strict=True):
            assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), abs=1e-3)


def test_a_batch_of_queries_equals_single_ones(grounder, video):
    features = grounder.encode(video)
    for query, batched in zip(QUERIES, grounder.ground_batch(features, QUERIES), strict=True):
        alone = grounder.ground(features, query)
        assert np.abs(alone.saliency - batched.saliency).max() < 1e-5
        for one, other in zip(alone.moments, batched.moments, strict=True):
            assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=1e-4)


def test_timings_have_a_sample_a_call(exported, video):
    grounder = Grounder.load(exported.directory, threads=1)
    features = grounder.encode(video)
    grounder.ground(features, QUERIES[0])
    grounder.ground_batch(features, QUERIES)
    assert {stage: len(seconds) for stage, seconds in grounder.timings.samples.items()} == {
        "decode": 1,
        "vision": 1,
        "text": 2,
        "head": 2,
    }
    assert all(second > 0 for seconds in grounder.timings.samples.values() for second in seconds)


def test_features_of_another_contract_are_refused(grounder, video):
    features = grounder.encode(video)
    other = dataclasses.replace(features, spec=dataclasses.replace(features.spec, frames_per_clip=8))
    with pytest.raises(
        ContractError, match="disagree on frames_per_clip: the video features has 8, the bundle needs 2"
    ):
        grounder.ground(other, QUERIES[0])


def test_queries_must_be_a_list(grounder, video):
    features = grounder.encode(video)
    with pytest.raises(InputError, match=r"use ground\(\) for one"):
        grounder.ground_batch(features, QUERIES[0])
    with pytest.raises(InputError, match="at least one sentence"):
        grounder.ground_batch(features, [])


def test_decode_clamps_sorts_and_cuts():
    outputs = {
        "spans": np.array([[[0.0, 0.5], [0.5, 1.0], [0.1, 0.2]]], np.float32),
        "scores": np.array([[0.2, 0.9, 0.2]], np.float32),
        "saliency": np.array([[0.1, 0.2, 0.3, -1.0]], np.float32),
    }
    answer = decode(outputs, ["q"], [3], [5.5], 2.0)[0]  # three clips of 2 s, the last one cut short
    assert [(m.start_s, m.end_s) for m in answer.moments] == [
        pytest.approx((3.0, 5.5)),
        pytest.approx((0.0, 3.0)),
        pytest.approx((0.6, 1.2)),
    ]
    assert [m.score for m in answer.moments] == pytest.approx([0.9, 0.2, 0.2])
    assert answer.saliency.tolist() == pytest.approx([0.1, 0.2, 0.3])
    row = prediction_row({"qid": 4, "vid": "v", "query": "q"}, answer)
    assert row["pred_relevant_windows"][0] == pytest.approx([3.0, 5.5, 0.9])
    assert len(row["pred_saliency_scores"]) == 3
