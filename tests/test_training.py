"""Samples, batches, the training loop and its files: that it learns, repeats itself, and refuses what does not fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.dataset import Sample, check_annotation, load_samples, make_sample, pad_inputs
from sdst_runtime.decode import decode, predict
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.features import (
    read_video_features,
    text_feature_path,
    video_feature_path,
    write_text_features,
    write_video_features,
)
from sdst_runtime.files import pack_header, write_jsonl
from sdst_train.checkpoint import Checkpoint, load_checkpoint, parse_config, save_checkpoint
from sdst_train.config import LossConfig, ModelConfig, TrainConfig
from sdst_train.data import collate, epoch_batches
from sdst_train.model import SDST
from sdst_train.session import TorchSession
from sdst_train.train import Progress, make_optimizer, rate_factor, train, train_step, validate

torch.set_num_threads(1)
WIDTH, LAYERS, CLIP_S = 24, 2, 2.0
SPEC = FeatureSpec(
    backbone="test", backbone_sha256="0" * 64, layers=LAYERS, pool="adaptive", frames_per_clip=4, clip_s=CLIP_S,
    image_size=56, resize="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), video_width=WIDTH,
    text_model="test", max_tokens=8, text_width=WIDTH,
)  # fmt: skip
MODEL = ModelConfig(
    video_width=WIDTH, text_width=WIDTH, layers=LAYERS, width=64, heads=4, points=4, queries=5, ffn_ratio=2,
    input_dropout=0.05, drop_path=0.0,
)  # fmt: skip
CONFIG = TrainConfig(
    epochs=20, batch_size=16, learning_rate=3e-3, schedule="cosine", warmup_steps=6, gradient_clip=1.0, model=MODEL,
    loss=LossConfig(highlight=0.3, overlap="giou"),
)  # fmt: skip
TINY_MODEL = dataclasses.replace(MODEL, width=16, heads=2, input_dropout=0.3, drop_path=0.1)
TINY = dataclasses.replace(CONFIG, epochs=2, batch_size=4, model=TINY_MODEL)
KINDS = np.random.default_rng(99).standard_normal((2, 6, WIDTH))  # what an event looks like, and its word


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """One sentence a video, that tells two or three events apart; the features are noise plus the events."""
    rng = np.random.default_rng(seed)
    samples = []
    for qid in range(count):
        T, wanted = int(rng.integers(10, 17)), int(rng.integers(6))
        video, events, t = rng.normal(size=(T, LAYERS, WIDTH)) * 0.5, [], int(rng.integers(0, 3))
        while t < T - 2:
            n = min(int(rng.integers(2, 5)), T - t)
            kind = wanted if not events else int((wanted + rng.integers(1, 6)) % 6)
            events.append((kind, t, n))
            t += n + int(rng.integers(1, 4))
        kinds = rng.permutation([kind for kind, _, _ in events])  # so that the wanted one is anywhere
        windows = []
        for kind, (_, start, n) in zip(kinds, events, strict=True):
            video[start : start + n] += KINDS[0, kind]
            if kind == wanted:
                windows.append([start * CLIP_S, (start + n) * CLIP_S])
        text = rng.normal(size=(LAYERS, 3, WIDTH)) * 0.3
        text[:, 1] += KINDS[1, wanted]
        clips = [t for start, end in windows for t in range(int(start / CLIP_S), int(end / CLIP_S))]
        row = {
            "qid": qid, "query": f"event {wanted}", "vid": f"v{qid}", "duration": T * CLIP_S,
            "relevant_windows": windows, "relevant_clip_ids": clips, "saliency_scores": [[3, 4, 3]] * len(clips),
        }  # fmt: skip
        samples.append(make_sample(row, video.astype(np.float32), text.astype(np.float32), CLIP_S))
    return samples


def make_row(**changes) -> dict:
    return {"qid": 7, "query": "q", "vid": "v", "duration": 20.0, "relevant_windows": [[4.0, 8.0]]} | changes


def sample_of(clips: int = 10, **changes) -> Sample:
    features = np.zeros((clips, LAYERS, WIDTH), np.float32), np.zeros((LAYERS, 3, WIDTH), np.float32)
    return make_sample(make_row(**changes), *features, CLIP_S)


@dataclasses.dataclass(frozen=True)
class Run:
    directory: Path
    best: Checkpoint
    steps: list[Progress]
    samples: list[Sample]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Run:
    """One run on 64 samples, validated on the same; shared by the tests that only look at it."""
    directory, steps, samples = tmp_path_factory.mktemp("run"), [], make_samples(64)
    best = train(CONFIG, samples, samples, SPEC, directory, steps.append)
    return Run(directory, best, steps, samples)


# --- the loop --------------------------------------------------------------------------------------------------------


def test_learns(learned):
    torch.manual_seed(CONFIG.seed)
    start = validate(SDST(MODEL), learned.samples, SPEC)["MR-full-R1@0.5"]
    losses = [step.losses["loss"] for step in learned.steps]
    assert len(losses) == 80
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
    assert learned.best.metrics["MR-full-R1@0.5"] > max(70, start + 40)
    assert learned.best.metrics["HL-min-Fair-Hit1"] > 80


def test_tells_each_step(learned):
    assert [s.step for s in learned.steps] == list(range(1, 81))
    assert [s.epoch for s in learned.steps] == [e for e in range(1, 21) for _ in range(4)]
    assert all((s.epochs, s.steps) == (20, 80) for s in learned.steps)
    assert [s.step for s in learned.steps if s.metrics is not None] == list(range(4, 81, 4))
    for s in learned.steps:
        parts = sum(value for name, value in s.losses.items() if name != "loss")
        assert s.losses["loss"] == pytest.approx(parts, rel=1e-5)


def test_log_says_what_was_told(learned):
    lines = [json.loads(line) for line in (learned.directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 21))
    for line in lines:
        steps = [s for s in learned.steps if s.epoch == line["epoch"]]
        assert line["loss"] == steps[-1].losses["loss"]  # the last one tells the epoch's means
        assert abs(line["loss"] - np.mean([s.losses["loss"] for s in steps[:-1]])) < 1.5
        assert line["MR-full-mAP"] == steps[-1].metrics["MR-full-mAP"]
        assert line["seconds"] > 0
    assert {p.name for p in learned.directory.iterdir()} == {
        "best.safetensors", "last.safetensors", "config.json", "metrics.jsonl",
    }  # fmt: skip


def test_best_is_the_epoch_of_highest_map(learned):
    lines = [json.loads(line) for line in (learned.directory / "metrics.jsonl").read_text().splitlines()]
    scores = [line["MR-full-mAP"] for line in lines]
    assert learned.best.epoch == int(np.argmax(scores)) + 1
    assert learned.best.metrics["MR-full-mAP"] == max(scores)
    last = load_checkpoint(learned.directory / "last.safetensors")
    assert last.epoch == 20
    assert last.metrics["MR-full-mAP"] == scores[-1]


@pytest.mark.parametrize("name", ["best", "last"])
def test_weights_are_those_that_were_measured(learned, name):
    """The file's own metrics come out again from the file's own weights."""
    stored = load_checkpoint(learned.directory / f"{name}.safetensors")
    assert validate(stored.model, learned.samples, SPEC) == stored.metrics
    assert (stored.config, stored.spec) == (CONFIG, SPEC)


def test_best_is_kept_when_later_epochs_are_worse(tmp_path, monkeypatch):
    scores = iter([5.0, 9.0, 7.0, 9.0])
    monkeypatch.setattr("sdst_train.train.validate", lambda *args: {"MR-full-mAP": next(scores)})
    best = train(dataclasses.replace(TINY, epochs=4), make_samples(4), make_samples(2), SPEC, tmp_path)
    assert (best.epoch, best.metrics) == (2, {"MR-full-mAP": 9.0})
    last = load_checkpoint(tmp_path / "last.safetensors")
    assert (last.epoch, last.metrics) == (4, {"MR-full-mAP": 9.0})
    assert not torch.equal(best.model.classify.weight, last.model.classify.weight)


def test_a_step_starts_from_no_gradient_and_clips_it():
    """Two steps on one batch at rate 0 leave the same gradients and weights; their norm is the clip's."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, gradient_clip=0.25)
    model = SDST(config.model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = collate(make_samples(4), np.random.default_rng(0))
    first = train_step(model, optimizer, batch, config)
    gradients = [p.grad.clone() for p in model.parameters()]
    assert train_step(model, optimizer, batch, config) == first
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.stack([g.norm() for g in gradients]).norm().item() == pytest.approx(0.25, rel=1e-4)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    def losses(name: str, seed: int) -> tuple[list[dict], dict[str, torch.Tensor]]:
        torch.manual_seed(int.from_bytes(name.encode()))  # whatever came before must not matter
        steps: list[Progress] = []
        config, samples = dataclasses.replace(TINY, seed=seed), make_samples(10)
        train(config, samples, samples[:2], SPEC, tmp_path / name, steps.append)
        return [s.losses for s in steps], load_checkpoint(tmp_path / name / "last.safetensors").model.state_dict()

    first, second, third = losses("a", 0), losses("b", 0), losses("c", 1)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[0][0]["loss"] != third[0][0]["loss"]


def test_stops_when_the_loss_is_not_finite(tmp_path):
    samples = make_samples(4)
    broken = [dataclasses.replace(s, video=np.full_like(s.video, np.inf)) for s in samples]
    with pytest.raises(InputError, match=r"the loss is nan: lower learning_rate, now 0.003"):
        train(TINY, broken, samples, SPEC, tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_unwritable_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(TINY, make_samples(4), make_samples(4), SPEC, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_width": 23}, "model.video_width is 23, the features have 24: set model.video_width to 24"),
        ({"text_width": 25}, "model.text_width is 25, the features have 24"),
        ({"layers": 3}, "model.layers is 3, the features hold 2"),
        ({"queries": 2}, "qid 7 has 3 windows, the model predicts 2 moments: set model.queries to 3"),
    ],
)
def test_samples_that_do_not_fit(tmp_path, changes, message):
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **changes))
    samples = [*make_samples(2), sample_of(relevant_windows=[[0, 2], [4, 8], [10, 12]])]
    with pytest.raises(InputError, match=message):
        train(config, samples, samples, SPEC, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_last_repeat_may_take_more_steps_than_stored_layers(tmp_path):
    model = dataclasses.replace(TINY.model, layers=3, feature_mode="last_repeat")
    best = train(dataclasses.replace(TINY, epochs=1, model=model), make_samples(4), make_samples(4), SPEC, tmp_path)
    assert best.model.dense.gate.shape == (3,)


# --- rates and groups ------------------------------------------------------------------------------------------------


def test_rate_warms_up_then_steps_down():
    config = TrainConfig(schedule="step", warmup_steps=10)
    factors = [rate_factor(step, 90, config) for step in range(1, 91)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert factors[10:60] == [1.0] * 50
    assert factors[60:] == [0.1] * 30


def test_rate_warms_up_then_follows_a_cosine():
    config = TrainConfig(schedule="cosine", warmup_steps=10)
    factors = [rate_factor(step, 90, config) for step in range(1, 91)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose([factors[29], factors[49], factors[69]], [0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_rate_of_runs_shorter_than_the_warm_up(schedule):
    config = TrainConfig(schedule=schedule, warmup_steps=500)
    np.testing.assert_allclose([rate_factor(step, 4, config) for step in range(1, 5)], [0.25, 0.5, 0.75, 1])
    none = TrainConfig(schedule=schedule, warmup_steps=0)
    assert rate_factor(1, 1000, none) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("attention", ["rdsa", "deformable_ca", "full_ca"])
def test_optimizer_groups(attention):
    config = TrainConfig(learning_rate=1e-3, weight_decay=0.01, offset_rate=0.1)
    model = SDST(dataclasses.replace(MODEL, attention=attention))
    groups = make_optimizer(model, config).param_groups
    found = {p: (g["lr"], g["base_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        rate = 1e-4 if name.startswith("sparse.sample.offset.") else 1e-3
        decay = 0.01 if name.endswith(".weight") and parameter.dim() > 1 else 0.0  # not norms, biases, embeddings
        assert found[parameter] == (pytest.approx(rate), pytest.approx(rate), decay), name
    slow = [name for name, p in model.named_parameters() if found[p][0] < 5e-4]
    assert len(slow) == (0 if attention == "full_ca" else 2)


def test_rates_are_applied(tmp_path, monkeypatch):
    """Each step is taken with the base rate of its group times the factor of the schedule."""
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *args: (seen.append(sorted({g["lr"] for g in self.param_groups})), step(self, *args))[1],
    )
    config = dataclasses.replace(TINY, epochs=2, batch_size=2, warmup_steps=2)
    train(config, make_samples(4), make_samples(2), SPEC, tmp_path)
    factors = [0.5, 1, 0.5, 0]
    np.testing.assert_allclose(seen[:3], [[3e-4 * f, 3e-3 * f] for f in factors[:3]], rtol=1e-9)
    assert max(seen[3]) == pytest.approx(0, abs=1e-12)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_collate_pads_and_aims():
    samples = [sample_of(5, duration=10.0, relevant_windows=[[2, 4]]), sample_of(relevant_windows=[[0, 4], [10, 20]])]
    batch = collate(samples, np.random.default_rng(0))
    targets = batch.targets
    np.testing.assert_allclose(targets.windows_BW2, [[[0.2, 0.4], [0, 0]], [[0, 0.2], [0.5, 1]]], atol=1e-6)
    assert targets.window_mask_BW.tolist() == [[True, False], [True, True]]
    assert targets.saliency_BT.tolist() == [[0, 1] + [0] * 8, [1, 1, 0, 0, 0] + [1] * 5]
    assert targets.positive_clip_B[0] == 1
    assert batch.inputs["video_mask"].tolist() == [[True] * 5 + [False] * 5, [True] * 10]
    assert targets.video_mask_BT is batch.inputs["video_mask"]
    drawn = [collate(samples, np.random.default_rng(seed)).targets.positive_clip_B[1].item() for seed in range(60)]
    assert set(drawn) == {0, 1, 5, 6, 7, 8, 9}


def test_pad_inputs_keeps_values():
    rng = np.random.default_rng(0)
    videos = [rng.standard_normal((n, 2, 3)).astype(np.float16) for n in (2, 4)]
    texts = [rng.standard_normal((2, n, 5)).astype(np.float32) for n in (3, 1)]
    padded = pad_inputs(videos, texts)
    np.testing.assert_array_equal(padded["video"][0, :2], videos[0])
    np.testing.assert_array_equal(padded["video"][1], videos[1])
    np.testing.assert_array_equal(padded["text"][1, :, :1], texts[1])
    assert not padded["video"][0, 2:].any()
    assert not padded["text"][1, :, 1:].any()
    assert padded["text_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert (padded["video"].dtype, padded["text"].dtype) == (np.float32, np.float32)


def test_an_epoch_visits_every_sample_once():
    samples = make_samples(21)
    seen, lengths = [], []
    for batch in epoch_batches(samples, 4, np.random.default_rng(0)):
        for video, mask in zip(batch.inputs["video"], batch.inputs["video_mask"], strict=True):
            seen.append(video[mask].numpy().tobytes())
        lengths.append(batch.inputs["video_mask"].sum(1))
    assert sorted(seen) == sorted(s.video.tobytes() for s in samples)
    assert sorted(len(x) for x in lengths) == [1, 4, 4, 4, 4, 4]
    assert np.mean([int(x.max() - x.min()) for x in lengths]) < 2  # of 10 to 16 clips: batches of similar length
    again = [b.inputs["video"] for b in epoch_batches(samples, 4, np.random.default_rng(0))]
    other = [b.inputs["video"] for b in epoch_batches(samples, 4, np.random.default_rng(1))]
    first = [b.inputs["video"] for b in epoch_batches(samples, 4, np.random.default_rng(0))]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "expected"),  # of 10 clips of 2 s, fractions
    [
        ([[4, 8]], [[0.2, 0.4]]),
        ([[8, 4]], [[0.2, 0.4]]),  # reversed
        ([[-3, 4]], [[0, 0.2]]),  # before the start
        ([[16, 99]], [[0.8, 1]]),  # beyond the end
        ([[5, 6]], [[0.225, 0.325]]),  # half a clip: widened about its centre
        ([[7, 7]], [[0.3, 0.4]]),  # nothing at all
        ([[0, 0.5]], [[0, 0.1]]),  # narrow at the start: moved inside
        ([[19.5, 20]], [[0.9, 1]]),  # narrow at the end
        ([[30, 40]], [[0.9, 1]]),  # wholly outside: the last clip
        ([[12, 10], [0, 2]], [[0.5, 0.6], [0, 0.1]]),  # order is kept
    ],
)
def test_windows_are_mended(windows, expected):
    sample = sample_of(relevant_windows=windows)
    np.testing.assert_allclose(sample.windows, expected, atol=1e-6)
    assert sample.windows.dtype == np.float32


def test_windows_end_with_the_video_and_not_with_the_last_clip():
    """A video of 19 s in 10 clips: fractions of the valid clips, cut at 19 s."""
    np.testing.assert_allclose(sample_of(duration=19.0, relevant_windows=[[14, 30]]).windows, [[0.7, 0.95]], atol=1e-6)
    np.testing.assert_allclose(sample_of(1, duration=1.5, relevant_windows=[[0.2, 0.4]]).windows, [[0, 1]], atol=1e-6)


@pytest.mark.parametrize("windows", [[], np.zeros((0, 2)).tolist()])
def test_no_window_is_refused(windows):
    with pytest.raises(InputError, match=r"train.jsonl, qid 7: no relevant window"):
        check_annotation(make_row(relevant_windows=windows), "train.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevant_clip_ids": [1]}, "for each of 1 relevant_clip_ids, got 0 rows"),
        ({"relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2], [1]]}, "all of one length"),
        (
            {"relevant_clip_ids": [1.5], "saliency_scores": [[1]]},
            "relevant_clip_ids.0: Input should be a valid int",
        ),
        ({"relevant_windows": [[1, 2, 3]]}, "relevant_windows.0"),
        ({"relevant_windows": [[1, math.nan]]}, "relevant_windows.0.1: Input should be a finite number"),
        ({"duration": "long"}, "duration: Input should be a valid number"),
        ({"duration": 0}, "duration is 0.0"),
        ({"query": None}, "query: Input should be a valid string"),
    ],
)
def test_malformed_annotations(changes, message):
    with pytest.raises(InputError, match=f"train.jsonl, qid 7: .*{re.escape(message)}"):
        check_annotation(make_row(**changes), "train.jsonl")


def test_saliency_is_the_mean_of_the_annotators():
    sample = sample_of(relevant_clip_ids=[2, 3], saliency_scores=[[4, 2, 3], [1, 1, 2]])
    np.testing.assert_allclose(sample.saliency, [0, 0, 3, 4 / 3, 0, 0, 0, 0, 0, 0], rtol=1e-6)
    assert sample.saliency.dtype == np.float32


def test_saliency_of_clips_that_were_not_extracted_is_left_out():
    sample = sample_of(relevant_clip_ids=[-1, 2, 10], saliency_scores=[[4, 4], [2, 2], [4, 4]])
    np.testing.assert_allclose(sample.saliency, [0, 0, 2, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("windows", "clips"),
    [
        ([[4, 8]], [2, 3]),
        ([[8, 4]], [2, 3]),  # reversed, as the windows
        ([[0, 2], [15, 20]], [0, 7, 8, 9]),  # a clip counts by its middle
        ([[6.2, 6.8]], [3]),  # no middle inside: the clip at the window's centre
        ([[25, 30]], [9]),
    ],
)
def test_unscored_saliency_is_spread_over_the_windows(windows, clips):
    saliency = sample_of(relevant_windows=windows).saliency
    assert np.flatnonzero(saliency).tolist() == clips
    assert set(saliency[clips]) == {1.0}


# --- feature files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path) -> Path:
    """An annotation of two queries on one video, with its feature files, made under SPEC."""
    rng = np.random.default_rng(0)
    rows = [make_row(qid=1, query="one"), make_row(qid=2, query="two", relevant_windows=[[0, 20]])]
    write_jsonl(tmp_path / "train.jsonl", rows)
    video = rng.standard_normal((10, LAYERS, WIDTH)).astype(np.float32)
    write_video_features(video_feature_path(tmp_path, "v"), VideoFeatures(video, 20.0, SPEC))
    for query, tokens in (("one", 3), ("two", 5)):
        text = rng.standard_normal((LAYERS, tokens, WIDTH)).astype(np.float16)
        write_text_features(text_feature_path(tmp_path, query), TextFeatures(text, query, SPEC))
    return tmp_path


def test_samples_are_read_as_written(stored):
    rng = np.random.default_rng(0)
    first, second = load_samples(stored / "train.jsonl", stored, SPEC)
    np.testing.assert_array_equal(first.video, rng.standard_normal((10, LAYERS, WIDTH)).astype(np.float32))
    np.testing.assert_array_equal(first.text, rng.standard_normal((LAYERS, 3, WIDTH)).astype(np.float16))
    assert second.video is first.video
    assert second.text.shape == (LAYERS, 5, WIDTH)
    np.testing.assert_allclose(second.windows, [[0, 1]])


@pytest.mark.parametrize(
    ("field", "value"), [("clip_s", 1.0), ("backbone_sha256", "f" * 64), ("mean", (0.4, 0.5, 0.5)), ("layers", 3)]
)
def test_features_of_another_contract(stored, field, value):
    needed = dataclasses.replace(SPEC, **{field: value})
    with pytest.raises(ContractError) as caught:
        load_samples(stored / "train.jsonl", stored, needed)
    message = str(caught.value)
    assert f"disagree on {field}" in message
    assert repr(value) in message
    assert repr(getattr(SPEC, field)) in message
    assert str(video_feature_path(stored, "v")) in message
    assert "\n" not in message


def test_more_layers_than_needed_are_welcome(stored):
    assert len(load_samples(stored / "train.jsonl", stored, dataclasses.replace(SPEC, layers=1))) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_with_nan(stored, bad):
    path = video_feature_path(stored, "v")
    features = np.zeros((10, LAYERS, WIDTH), np.float32)
    features[3, 1, 2] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        VideoFeatures(features, 20.0, SPEC)
    metadata = pack_header(spec=SPEC.to_json(), duration_s="20.0")
    save_file({"features": torch.from_numpy(features)}, path, metadata)
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        load_samples(stored / "train.jsonl", stored, SPEC)
    assert str(path) in str(caught.value)


def test_feature_files_that_cannot_be_used(stored):
    path = video_feature_path(stored, "v")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"v\.safetensors: not a readable feature file"):
        read_video_features(path)
    save_file({"features": torch.zeros(10, LAYERS, WIDTH)}, path)
    with pytest.raises(InputError, match="metadata lacks spec, duration_s"):
        read_video_features(path)
    save_file({"features": torch.zeros(10, LAYERS, WIDTH)}, path, pack_header(spec="{}", duration_s="20.0"))
    with pytest.raises(ContractError, match="feature contract does not parse: backbone"):
        read_video_features(path)
    metadata = pack_header(spec=SPEC.to_json(), duration_s="20.0")
    save_file({"features": torch.zeros(10, LAYERS, WIDTH + 1)}, path, metadata)
    with pytest.raises(InputError, match=r"v\.safetensors: video features: expected shape"):
        read_video_features(path)
    path.unlink()
    with pytest.raises(InputError, match=r"v\.safetensors: no such feature file"):
        load_samples(stored / "train.jsonl", stored, SPEC)


def test_annotations_that_cannot_be_used(stored):
    path = stored / "train.jsonl"
    for text, message in (
        ('{"qid": 4, "query": "one", "vid": "v"}\n', "qid 4: duration: Field required"),
        ("", "no annotations in it"),
        ('{"qid": 1}\n{"qid": \n', "line 2: not JSON"),
        ("[1]\n", "line 1: expected a JSON object"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_samples(path, stored, SPEC)
    path.write_bytes(b'{"query": "\xff"}\n')
    with pytest.raises(InputError, match="cannot read"):
        load_samples(path, stored, SPEC)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> tuple[Path, Checkpoint]:
    torch.manual_seed(3)
    model = SDST(TINY.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    made = Checkpoint(model, TINY, SPEC, 4, {"MR-full-mAP": 12.5})
    save_checkpoint(tmp_path / "model.safetensors", made)
    return tmp_path / "model.safetensors", made


def test_checkpoint_round_trip(checkpoint):
    path, made = checkpoint
    loaded = load_checkpoint(path)
    assert not loaded.model.training
    assert (loaded.config, loaded.spec, loaded.epoch, loaded.metrics) == (TINY, SPEC, 4, {"MR-full-mAP": 12.5})
    samples = make_samples(5)
    assert predict(TorchSession(loaded.model), samples, CLIP_S) == predict(TorchSession(made.model), samples, CLIP_S)


def test_config_round_trip(learned):
    text = (learned.directory / "config.json").read_text()
    assert parse_config(text, "config.json") == CONFIG
    for changed, message in (
        ({"epochs": "many"}, "epochs"), ({"speed": 1}, "speed"), ({"model": {"width": 1.5}}, "model.width"),
    ):  # fmt: skip
        with pytest.raises(ContractError, match=f"config.json: its config does not parse: {message}"):
            parse_config(json.dumps(json.loads(text) | changed), "config.json")


def rewrite(path: Path, weights=None, **metadata) -> None:
    """Store a checkpoint again with other weights or metadata; None removes an entry."""
    with safe_open(path, "pt") as stored:
        old = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
        header = json.loads(stored.metadata()["sdst"]) | metadata
    kept = pack_header(**{name: text for name, text in header.items() if text is not None})
    save_file(weights(old) if weights else old, path, kept)


def test_checkpoint_missing(tmp_path):
    with pytest.raises(InputError, match=r"none\.safetensors: no such checkpoint; .*sdst train"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_checkpoint_truncated(checkpoint, keep):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable checkpoint"):
        load_checkpoint(path)


def test_checkpoint_not_ours(checkpoint):
    path, _ = checkpoint
    path.write_bytes(b"PK\x03\x04 a zip file of somebody else's, long enough to look like something")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="its metadata lacks config, spec, epoch, metrics; make the file again"):
        load_checkpoint(path)


def test_checkpoint_of_another_shape(checkpoint):
    path, _ = checkpoint
    wider = dataclasses.asdict(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, queries=6)))
    rewrite(path, config=json.dumps(wider))
    with pytest.raises(ContractError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "sparse.reference_logit is [5, 2], expected [6, 2]" in message
    assert "sparse.position is [5, 16], expected [6, 16]" in message
    assert str(path) in message
    assert "\n" not in message


def test_checkpoint_with_other_names(checkpoint):
    path, _ = checkpoint
    rewrite(path, lambda old: {("klass" + k[8:] if k.startswith("classify") else k): v for k, v in old.items()})
    with pytest.raises(ContractError, match=r"classify.weight is missing; .*klass.weight is unknown"):
        load_checkpoint(path)
    rewrite(path, lambda old: {"x": torch.zeros(1)})
    with pytest.raises(ContractError, match=r" and \d+ more; check the model's config"):
        load_checkpoint(path)


def test_checkpoint_that_cannot_be_written(checkpoint, tmp_path):
    _, made = checkpoint
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", made)
    assert (tmp_path / "file").read_text() == "kept"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "model.safetensors"}


# --- decoding --------------------------------------------------------------------------------------------------------


def test_decode_by_hand():
    """Fractions of 5 valid clips of 2 s in a video of 9 s: sorted by score, cut at 9 s, saliency without padding."""
    outputs = {
        "spans": np.array([[[0.0, 0.5], [0.4, 1.0], [0.2, 0.3]]], np.float32),
        "scores": np.array([[0.2, 0.9, 0.5]], np.float32),
        "saliency": np.array([[0.1, 0.2, 0.3, 0.4, 0.5, -1, -1]], np.float32),
    }
    (answer,) = decode(outputs, ["q"], [5], [9.0], CLIP_S)
    found = [(m.start_s, m.end_s, m.score) for m in answer.moments]
    np.testing.assert_allclose(found, [(4, 9, 0.9), (2, 3, 0.5), (0, 5, 0.2)], rtol=1e-6)
    np.testing.assert_allclose(answer.saliency, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_predictions_do_not_depend_on_the_batch(checkpoint):
    _, made = checkpoint
    samples = make_samples(9)
    together, alone = (predict(TorchSession(made.model), samples, CLIP_S, batch_size=n) for n in (9, 1))
    assert [row["qid"] for row in together] == list(range(9))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a["pred_relevant_windows"], b["pred_relevant_windows"], atol=1e-4)
        np.testing.assert_allclose(a["pred_saliency_scores"], b["pred_saliency_scores"], atol=1e-5)


def test_session_switches_dropout_off():
    model = SDST(TINY.model).train()
    session = TorchSession(model)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    batch = pad_inputs([s.video for s in make_samples(3)], [s.text for s in make_samples(3)])
    first, second = session.run(batch), session.run(batch)
    assert set(first) == {"spans", "scores", "saliency"}
    assert all(np.array_equal(first[name], second[name]) for name in first)
