"""The training loop and its files: that it learns, says what it does, repeats itself, refuses what does not fit."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import CONFIG, MODEL, SPEC, TINY, make_samples, sample_of

from sdst_runtime.data.dataset import Sample
from sdst_runtime.errors import InputError
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint
from sdst_train.loop.train import Progress, train, validate
from sdst_train.model.sdst import SDST

torch.set_num_threads(1)


@dataclass(frozen=True)
class Run:
    directory: Path
    best: Checkpoint
    steps: list[Progress]
    samples: list[Sample]

    def lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.directory / name).read_text().splitlines()]


def resolved(config: TrainConfig) -> TrainConfig:
    return dataclasses.replace(config, precision="fp32")


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Run:
    """One run on 64 samples, validated on the same; shared by the tests that only look at it."""
    directory, steps, samples = tmp_path_factory.mktemp("learned") / "run", [], make_samples(64)
    best = train(CONFIG, samples, samples, SPEC, directory, on_step=steps.append, repairs=["one window swapped"])
    return Run(directory, best, steps, samples)


def test_learns(learned):
    torch.manual_seed(CONFIG.seed)
    start = validate(SDST(MODEL), learned.samples, CONFIG.data)["MR-full-R1@0.5"]
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


def test_logs_say_what_was_told(learned):
    steps, epochs = learned.lines("steps.jsonl"), learned.lines("metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(1, 81))
    assert [(row["epoch"], row["step"]) for row in epochs] == [(e, 4 * e) for e in range(1, 21)]
    for row, told in zip(steps, learned.steps, strict=True):
        parts = sum(value for name, value in row.items() if name not in ("step", "epoch", "lr", "loss"))
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        if told.metrics is None:
            assert told.losses.items() <= row.items()
    for row in epochs:
        of_epoch = [step["loss"] for step in steps if step["epoch"] == row["epoch"]]
        told = learned.steps[row["step"] - 1]
        assert row["loss"] == told.losses["loss"] == float(np.mean(of_epoch))
        assert told.metrics.items() <= row.items()
        assert row["seconds"] > 0
    assert steps[5]["lr"] == CONFIG.learning_rate  # the warm-up of 6 steps is over


def test_tensorboard_holds_the_same(learned):
    board = EventAccumulator(str(learned.directory / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("step/loss")]
    np.testing.assert_allclose(shown, [(row["step"], row["loss"]) for row in learned.lines("steps.jsonl")], rtol=1e-6)
    shown = [(event.step, event.value) for event in board.Scalars("epoch/MR-full-mAP")]
    rows = [(row["step"], row["MR-full-mAP"]) for row in learned.lines("metrics.jsonl")]
    np.testing.assert_allclose(shown, rows, rtol=1e-6)


def test_run_directory_when_finished(learned):
    names = {p.name for p in learned.directory.iterdir() if not p.name.startswith(".")}
    assert names == {
        "best.safetensors", "last.safetensors", "config.json", "run.json", "steps.jsonl", "metrics.jsonl",
        "val_metrics.json", "tensorboard",
    }  # fmt: skip
    facts = json.loads((learned.directory / "run.json").read_text())
    assert facts["finished"]["reason"] == "all epochs"
    assert facts["finished"]["best_epoch"] == learned.best.epoch
    assert facts["versions"]["torch"] == torch.__version__
    assert (facts["train_queries"], facts["val_queries"], facts["world_size"]) == (64, 64, 1)
    assert facts["repairs"] == ["one window swapped"]
    assert facts["parameters"] == sum(p.numel() for p in learned.best.model.parameters())
    stored = json.loads((learned.directory / "val_metrics.json").read_text())
    assert stored["brief"] == learned.best.metrics


def test_best_is_the_epoch_of_highest_map(learned):
    scores = [row["MR-full-mAP"] for row in learned.lines("metrics.jsonl")]
    assert learned.best.epoch == int(np.argmax(scores)) + 1
    assert learned.best.metrics["MR-full-mAP"] == max(scores)
    last = load_checkpoint(learned.directory / "last.safetensors")
    assert last.epoch == 20
    assert last.metrics["MR-full-mAP"] == scores[-1]


@pytest.mark.parametrize("name", ["best", "last"])
def test_weights_are_those_that_were_measured(learned, name):
    """The file's own metrics come out again from the file's own weights, averaged as they are."""
    stored = load_checkpoint(learned.directory / f"{name}.safetensors")
    assert validate(stored.model, learned.samples, CONFIG.data) == stored.metrics
    assert (stored.config, stored.spec) == (resolved(CONFIG), SPEC)
    clips = sorted(len(sample.video) for sample in learned.samples)
    assert (stored.usual_clips, stored.longest_clips) == (int(np.median(clips)), clips[-1])
    assert clips[0] < stored.usual_clips < clips[-1]


def test_best_is_kept_when_later_epochs_are_worse(tmp_path, monkeypatch):
    scores = iter([5.0, 9.0, 7.0, 9.0])
    monkeypatch.setattr("sdst_train.loop.train.validate", lambda *args: {"MR-full-mAP": next(scores)})
    best = train(dataclasses.replace(TINY, epochs=4), make_samples(4), make_samples(2), SPEC, tmp_path)
    assert (best.epoch, best.metrics) == (2, {"MR-full-mAP": 9.0})
    last = load_checkpoint(tmp_path / "last.safetensors")
    assert (last.epoch, last.metrics) == (4, {"MR-full-mAP": 9.0})
    assert not torch.equal(best.model.classify.weight, last.model.classify.weight)


def test_stops_early_when_nothing_gets_better(tmp_path, monkeypatch):
    scores = iter([5.0, 9.0, 7.0, 9.0, 8.0, 10.0])
    monkeypatch.setattr("sdst_train.loop.train.validate", lambda *args: {"MR-full-mAP": next(scores)})
    config = dataclasses.replace(TINY, epochs=6, patience=3)
    best = train(config, make_samples(4), make_samples(2), SPEC, tmp_path)
    assert (best.epoch, best.metrics["MR-full-mAP"]) == (2, 9.0)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "run.json").read_text())["finished"]["reason"] == "early stop"


def test_selects_by_another_metric(tmp_path, monkeypatch):
    values = iter([(5.0, 1.0), (4.0, 3.0), (6.0, 2.0)])
    names = ("MR-full-mAP", "MR-full-R1@0.7")
    monkeypatch.setattr("sdst_train.loop.train.validate", lambda *args: dict(zip(names, next(values), strict=True)))
    config = dataclasses.replace(TINY, epochs=3, select_by="MR-full-R1@0.7")
    assert train(config, make_samples(4), make_samples(2), SPEC, tmp_path).epoch == 2


def test_same_seed_same_bits_other_seed_other_bits(tmp_path):
    def losses(name: str, seed: int) -> tuple[list[dict], dict[str, torch.Tensor]]:
        torch.manual_seed(int.from_bytes(name.encode(), "big"))  # whatever came before must not matter
        steps: list[Progress] = []
        config, samples = dataclasses.replace(TINY, seed=seed), make_samples(10)
        train(config, samples, samples[:2], SPEC, tmp_path / name, on_step=steps.append)
        return [s.losses for s in steps], load_checkpoint(tmp_path / name / "last.safetensors").model.state_dict()

    first, second, third = losses("a", 0), losses("b", 0), losses("c", 1)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[0][0]["loss"] != third[0][0]["loss"]


def test_deterministic_mode_is_for_the_run_alone(tmp_path):
    seen = []
    config = dataclasses.replace(TINY, epochs=1, deterministic=True)
    train(
        config, make_samples(4), make_samples(2), SPEC, tmp_path / "run",
        on_step=lambda _: seen.append(torch.are_deterministic_algorithms_enabled()),
    )  # fmt: skip
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_charades_metrics(tmp_path):
    data = dataclasses.replace(TINY.data, metrics="moments")
    config = dataclasses.replace(TINY, epochs=1, select_by="mIoU", data=data)
    best = train(config, make_samples(4), make_samples(4), SPEC, tmp_path / "run")
    assert list(best.metrics) == ["R1@0.3", "R1@0.5", "R1@0.7", "mIoU"]


def test_stops_when_the_loss_is_not_finite(tmp_path):
    samples = make_samples(4)
    broken = [dataclasses.replace(s, video=np.full_like(s.video, np.inf)) for s in samples]
    with pytest.raises(InputError, match=r"step 1: the loss is nan: lower learning_rate, now 0.003"):
        train(TINY, broken, samples, SPEC, tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_unwritable_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(TINY, make_samples(4), make_samples(4), SPEC, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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


def test_a_metric_that_does_not_exist(tmp_path):
    config = dataclasses.replace(TINY, select_by="mAP")
    with pytest.raises(InputError, match=r"select_by: expected one of MR-full-R1@0\.5, .*, got 'mAP'"):
        train(config, make_samples(2), make_samples(2), SPEC, tmp_path / "run")


def test_widths_are_taken_from_the_features(tmp_path):
    model = dataclasses.replace(TINY.model, video_width=768, text_width=1024)
    config = dataclasses.replace(TINY, epochs=1, model=model)
    best = train(config, make_samples(4), make_samples(4), SPEC, tmp_path / "run")
    assert (best.config.model.video_width, best.config.model.text_width) == (SPEC.video_width, SPEC.text_width)


def test_last_repeat_may_take_more_steps_than_stored_layers(tmp_path):
    model = dataclasses.replace(TINY.model, layers=3, feature_mode="last_repeat")
    best = train(dataclasses.replace(TINY, epochs=1, model=model), make_samples(4), make_samples(4), SPEC, tmp_path)
    assert best.model.dense.gate.shape == (3,)
