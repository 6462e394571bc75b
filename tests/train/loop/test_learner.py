"""One update of the learner: rates, groups, clipping, averaged weights, precision, and the batches it is fed."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from tiny_world import CONFIG, MODEL, TINY, make_samples, sample_of, write_dataset

from sdst_runtime.data.dataset import load_split
from sdst_runtime.data.features import video_feature_path
from sdst_runtime.errors import InputError
from sdst_train.config import ModelConfig, TrainConfig
from sdst_train.loop.batches import COMPILED_MULTIPLES, RunBatches, collate, load_batches, needed_layers, plan_epoch
from sdst_train.loop.distributed import Team
from sdst_train.loop.learner import Learner, ema_decay, make_optimizer, rate_factor, resolve_precision, step_seed
from sdst_train.model.sdst import SDST

torch.set_num_threads(1)
FP32 = dataclasses.replace(TINY, precision="fp32")


def batch_of(count: int, seed: int = 0):
    return collate(make_samples(count, seed), [0.5] * count)


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


def test_rates_are_applied():
    """Each step is taken with the base rate of its group times the factor of the schedule."""
    learner, batch = Learner(dataclasses.replace(FP32, warmup_steps=2), 4), batch_of(2)
    for step, factor in enumerate([0.5, 1, 0.5, 0], 1):
        before = learner.model.classify.weight.clone()
        learner.update(batch, step)
        rates = sorted({group["lr"] for group in learner.optimizer.param_groups})
        np.testing.assert_allclose(rates, sorted({3e-4 * factor, 3e-3 * factor}), rtol=1e-9, atol=1e-15)
        assert torch.equal(before, learner.model.classify.weight) == (factor == 0)


def test_a_step_starts_from_no_gradient_and_clips_it():
    """Two steps on one batch at rate 0 leave the same gradients; their norm is the clip's."""
    config = dataclasses.replace(FP32, gradient_clip=0.25, model=dataclasses.replace(TINY.model, input_dropout=0.0))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, drop_path=0.0))
    learner, batch = Learner(config, 4), batch_of(4)
    for group in learner.optimizer.param_groups:
        group["base_lr"] = 0.0
    first = learner.update(batch, 1)
    gradients = [p.grad.clone() for p in learner.model.parameters()]
    assert learner.update(batch, 2) == first
    assert all(torch.equal(p.grad, g) for p, g in zip(learner.model.parameters(), gradients, strict=True))
    assert torch.stack([g.norm() for g in gradients]).norm().item() == pytest.approx(0.25, rel=1e-4)


def test_one_call_for_all_parameters_is_adamw():
    """The losses of five steps are those of torch's loop over parameters."""

    def losses(fused: bool) -> list[float]:
        learner, batch = Learner(FP32, 10), batch_of(4)
        for group in learner.optimizer.param_groups:
            assert group["fused"] is True
            group["fused"] = fused
        learner.optimizer._step_supports_amp_scaling = fused
        return [learner.update(batch, step)["loss"] for step in range(1, 6)]

    np.testing.assert_allclose(losses(True), losses(False), rtol=1e-6)


# --- averaged weights, precision, random numbers ---------------------------------------------------------------------


def test_averaged_weights_follow_the_formula():
    learner, batch = Learner(dataclasses.replace(FP32, ema_decay=0.3), 10), batch_of(4)
    expected = None
    for step in range(1, 6):
        learner.update(batch, step)
        now = learner.model.classify.weight.detach().double()
        decay = ema_decay(0.3, step - 1)
        expected = now if expected is None else decay * expected + (1 - decay) * now
        np.testing.assert_allclose(learner.averaged.classify.weight.detach(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.equal(learner.averaged.classify.weight, learner.model.classify.weight)
    assert [ema_decay(0.3, n) for n in (0, 1, 5)] == [0.1, 2 / 11, 0.3]


def test_without_averaging_the_weights_are_the_models():
    learner = Learner(dataclasses.replace(FP32, ema_decay=0.0), 4)
    assert learner.averaged is learner.model


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_near_float32(precision):
    def run(kind: str) -> tuple[Learner, list[float]]:
        learner, batch = Learner(dataclasses.replace(CONFIG, precision=kind), 40), batch_of(16)
        return learner, [learner.update(batch, step)["loss"] for step in range(1, 13)]

    (plain, exact), (mixed, losses) = run("fp32"), run(precision)
    assert losses[0] == pytest.approx(exact[0], rel=0.01)
    np.testing.assert_allclose(losses, exact, rtol=0.15)  # fp16 skips its first step to find its scale
    assert losses != exact
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert mixed.scaler.is_enabled() == (precision == "fp16")
    assert set(plain.state()["scaler"]) == set()


def test_automatic_precision_is_float32_on_a_cpu():
    assert resolve_precision(TINY, Team()).precision == "fp32"


def test_a_step_draws_from_its_own_seed():
    """Whatever was drawn before, the same step of the same weights gives the same losses; another step others."""

    def losses(step: int) -> dict[str, float]:
        learner = Learner(FP32, 10)
        torch.rand(step * 3 + 1)
        return learner.update(batch_of(4), step)

    assert losses(5) == losses(5)
    assert losses(5) != losses(6)
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_compiled_is_the_same_model(monkeypatch):
    """Traced as one graph without breaks; the backend here is torch's own operators, so that no C++ is compiled."""
    compile_module, compiled = torch.nn.Module.compile, []

    def compile_quickly(module: torch.nn.Module, **options) -> None:
        compiled.append(module)
        compile_module(module, **options, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    config = dataclasses.replace(FP32, model=dataclasses.replace(TINY.model, input_dropout=0.0, drop_path=0.0))
    plain, traced = Learner(config, 4), Learner(dataclasses.replace(config, compile=True), 4)
    assert compiled == [traced.model]
    assert list(traced.model.state_dict()) == list(SDST(TINY.model).state_dict())
    padded = collate(make_samples(4), [0.5] * 4, multiples=COMPILED_MULTIPLES)
    assert padded.inputs["video"].shape[1] == 16
    assert padded.inputs["text"].shape[2] == 8
    for step in (1, 2):
        assert traced.update(padded, step) == pytest.approx(plain.update(batch_of(4), step), rel=1e-4)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_collate_pads_and_aims():
    samples = [sample_of(5, duration=10.0, relevant_windows=[[2, 4]]), sample_of(relevant_windows=[[0, 4], [10, 20]])]
    batch = collate(samples, [0.0, 0.0])
    targets = batch.targets
    np.testing.assert_allclose(targets.windows_BW2, [[[0.2, 0.4], [0, 0]], [[0, 0.2], [0.5, 1]]], atol=1e-6)
    assert targets.window_mask_BW.tolist() == [[True, False], [True, True]]
    assert targets.saliency_BT.tolist() == [[0, 1] + [0] * 8, [1, 1, 0, 0, 0] + [1] * 5]
    assert batch.inputs["video_mask"].tolist() == [[True] * 5 + [False] * 5, [True] * 10]
    assert targets.video_mask_BT is batch.inputs["video_mask"]
    drawn = [collate(samples, [0.999, draw]).targets.positive_clip_B.tolist() for draw in np.arange(7) / 7 + 1e-9]
    assert drawn == [[1, clip] for clip in (0, 1, 5, 6, 7, 8, 9)]


def test_collate_keeps_the_last_layers():
    samples = make_samples(3)
    whole, last = (collate(samples, [0.5] * 3, layers) for layers in (None, 1))
    assert torch.equal(last.inputs["video"], whole.inputs["video"][:, :, -1:])
    assert torch.equal(last.inputs["text"], whole.inputs["text"][:, -1:])


@pytest.mark.parametrize(("count", "batch_size"), [(21, 4), (64, 16), (3, 8), (1, 1), (700, 4)])
def test_an_epoch_visits_every_sample_once(count, batch_size):
    lengths = np.random.default_rng(0).integers(1, 76, count)
    plan = plan_epoch(lengths, batch_size, seed=1, epoch=0)
    sizes = [len(batch) for batch in plan.batches]
    assert sorted(np.concatenate(plan.batches)) == list(range(count))
    assert len(sizes) == -(-count // batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert ((plan.draws >= 0) & (plan.draws < 1)).all()


def test_batches_are_of_similar_length_and_differ_by_epoch_and_seed():
    lengths = np.random.default_rng(0).integers(1, 76, 640)
    plans = [plan_epoch(lengths, 16, seed, epoch) for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    spread = np.mean([np.ptp(lengths[batch]) for batch in plans[0].batches])
    assert spread < 12  # at random it is about 66
    same, *others = [np.concatenate(plan.batches).tolist() == np.concatenate(plans[0].batches).tolist()
                     for plan in plans[1:]]  # fmt: skip
    assert same
    assert not any(others)
    firsts = [lengths[plan.batches[0]].mean() for plan in (plan_epoch(lengths, 16, 1, e) for e in range(20))]
    assert np.std(firsts) > 8  # short and long batches come in any order


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_from_any_step(workers):
    samples = make_samples(10)
    config = dataclasses.replace(TINY, epochs=2, workers=workers)
    batches = RunBatches(samples, config, Team())
    whole = [batch.inputs["video"] for batch in load_batches(batches, 0)]
    rest = [batch.inputs["video"] for batch in load_batches(pickle.loads(pickle.dumps(batches)), 4)]
    assert len(whole) == len(batches) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_a_team_shares_each_batch():
    samples = make_samples(10)
    config = dataclasses.replace(TINY, epochs=1)
    alone = RunBatches(samples, config, Team())
    team = [RunBatches(samples, config, Team(rank, 2)) for rank in range(2)]
    for step in range(len(alone)):
        whole = alone[step].inputs["text"]
        parts = [batches[step].inputs["text"] for batches in team]
        assert sorted(row.sum().item() for row in whole) == sorted(row.sum().item() for part in parts for row in part)
        assert {len(part) for part in parts} <= {1, 2}


def drawn(batches: RunBatches, epoch: int) -> list[tuple[float, float]]:
    """What tells the absent queries of an epoch apart, step by step: the sums of their videos and sentences."""
    first = epoch * batches.per_epoch
    whole = [batches[step] for step in range(first, first + batches.per_epoch)]
    return [
        (batch.inputs["video"][b].sum().item(), batch.inputs["text"][b].sum().item())
        for batch in whole
        for b in torch.nonzero(~batch.targets.present_B).flatten().tolist()
    ]


def test_an_epoch_with_negatives_visits_every_sample_and_its_own_draw():
    samples = make_samples(10)
    config = dataclasses.replace(TINY, epochs=3, data=dataclasses.replace(TINY.data, negatives=1 / 3))
    batches = RunBatches(samples, config, Team())
    assert (batches.negatives, batches.per_epoch, len(batches)) == (5, 4, 12)
    videos = sorted(sample.video.sum().item() for sample in samples)
    for epoch in range(3):
        some = [batches[step] for step in range(4 * epoch, 4 * epoch + 4)]
        there = [video.sum().item() for b in some for video in b.inputs["video"][b.targets.present_B]]
        assert sorted(there) == pytest.approx(videos, rel=1e-3, abs=1e-3)
        assert len(drawn(batches, epoch)) == 5
    assert drawn(batches, 0) != drawn(batches, 1)


def test_negatives_are_a_function_of_seed_and_epoch():
    samples = make_samples(10)
    data = dataclasses.replace(TINY.data, negatives=0.5)
    config = dataclasses.replace(TINY, epochs=3, data=data)
    batches, again = RunBatches(samples, config, Team()), RunBatches(samples, config, Team())
    later = drawn(again, 2)  # without the epochs before
    assert [drawn(batches, epoch) for epoch in range(3)][2] == later
    assert drawn(RunBatches(samples, dataclasses.replace(config, seed=1), Team()), 2) != later
    team = [RunBatches(samples, config, Team(rank, 2)) for rank in range(2)]
    shared = np.array(sorted(drawn(team[0], 2) + drawn(team[1], 2)))
    np.testing.assert_allclose(shared, sorted(later), rtol=1e-3, atol=1e-3)  # padded to other lengths
    none = RunBatches(samples, dataclasses.replace(config, data=TINY.data), Team())
    plain = plan_epoch(np.array([len(s.video) for s in samples]), config.batch_size, config.seed, 0)
    assert none.negatives == 0
    assert [len(none[step].inputs["video"]) for step in range(3)] == [len(batch) for batch in plain.batches]


def test_absent_rows_of_the_data_are_counted_among_the_negatives():
    samples = make_samples(10)
    absent = sample_of(qid=99, vid="w", query="nothing of it", relevant_windows=[], absent=True)
    data = dataclasses.replace(TINY.data, negatives=1 / 3)
    batches = RunBatches([*samples, absent], dataclasses.replace(TINY, data=data), Team())
    assert batches.negatives == 4
    assert len(drawn(batches, 0)) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_feature_file_is_named(tmp_path, workers):
    """With the line that reading it raises, whichever process reads it."""
    data = write_dataset(tmp_path, make_samples(6), make_samples(1))
    samples = load_split(data, "train").samples
    path = video_feature_path(tmp_path / "features", "v3")
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")  # NaN
    batches = RunBatches(samples, dataclasses.replace(TINY, workers=workers), Team())
    with pytest.raises(InputError, match=r"v3\.safetensors: contains NaN or infinity; extract it again$"):
        list(load_batches(batches, 0))


def test_half_features_travel_as_half():
    halves = [
        dataclasses.replace(s, video=s.video.astype(np.float16), text=s.text.astype(np.float16))
        for s in make_samples(3)
    ]
    batch = collate(halves, [0.5] * 3)
    assert batch.inputs["video"].dtype == batch.inputs["text"].dtype == torch.float16
    moved = batch.to(torch.device("cpu"))
    assert moved.inputs["video"].dtype == torch.float32
    assert torch.equal(moved.inputs["video"], batch.inputs["video"].float())
    assert moved.inputs["video_mask"].dtype == torch.bool


def test_too_many_processes_for_the_batch():
    with pytest.raises(InputError, match="3 samples a batch are too few for 4 processes: raise batch_size"):
        RunBatches(make_samples(10), TINY, Team(0, 4))


def test_layers_that_a_model_needs():
    assert needed_layers(ModelConfig(layers=3)) == 3
    assert needed_layers(ModelConfig(layers=3, feature_mode="last_repeat")) == 1
