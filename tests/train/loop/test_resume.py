"""A run that was stopped goes on bit by bit: killed, interrupted, with a broken state, and when it must not."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_world import SPEC, TINY, make_samples, write_config, write_dataset

from sdst.cli import main
from sdst_runtime.data.absent import with_absent
from sdst_runtime.errors import ContractError, InputError
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.loop.state import load_state, save_state
from sdst_train.loop.train import Progress, train

torch.set_num_threads(1)
CONFIG = dataclasses.replace(TINY, epochs=3, save_every_steps=2)  # 10 samples in batches of 4: 3 steps an epoch
SAMPLES = make_samples(10)


class Stop(Exception):
    """Ends a run from within, as a kill does."""


def run(directory: Path, config: TrainConfig = CONFIG, stop_at: int = 0, val=SAMPLES, **options) -> None:
    def on_step(progress: Progress) -> None:
        if progress.step == stop_at:
            raise Stop

    if not stop_at:
        train(config, SAMPLES, val, SPEC, directory, on_step=on_step, **options)
        return
    with pytest.raises(Stop):
        train(config, SAMPLES, val, SPEC, directory, on_step=on_step, **options)


def lines(directory: Path, name: str = "steps.jsonl") -> list[dict]:
    rows = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    assert lines(one, "metrics.jsonl") == lines(other, "metrics.jsonl")
    for name in ("best.safetensors", "last.safetensors"):
        a, b = (load_checkpoint(directory / name) for directory in (one, other))
        assert (a.epoch, a.metrics) == (b.epoch, b.metrics)
        assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    run(directory)
    return directory


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 8, 9])
def test_stopped_after_any_step(whole, tmp_path, stop_at):
    """Before the first state, on one, at the end of an epoch before it was written down, and in the last step."""
    said: list[str] = []
    run(tmp_path / "run", stop_at=stop_at)
    torch.rand(17)  # what else draws random numbers must not matter
    run(tmp_path / "run", resume=True, say=said.append)
    assert_same_run(whole, tmp_path / "run")
    assert len(said) == 1
    assert said[0].startswith("no whole state was written" if stop_at <= 2 else "resuming after step")
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_stopped_in_mixed_precision_without_averaging(tmp_path, precision):
    config = dataclasses.replace(CONFIG, precision=precision, ema_decay=0.0, epochs=2)
    run(tmp_path / "whole", config)
    run(tmp_path / "run", config, stop_at=5)
    run(tmp_path / "run", config, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("stop_at", [4, 7])
def test_stopped_with_absent_queries(tmp_path, stop_at):
    """At the end of an epoch and within one: the rest of its draw and those of later epochs are what they would be."""
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, negatives=0.33))
    val = with_absent(SAMPLES, 0.33)
    run(tmp_path / "whole", config, val=val)
    run(tmp_path / "run", config, stop_at=stop_at, val=val)
    run(tmp_path / "run", config, resume=True, val=val)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 12  # 15 samples an epoch
    assert all(0 < row["presence"] < 2 for row in lines(tmp_path / "run"))
    assert all(0 <= row["presence-AUROC"] <= 100 for row in lines(tmp_path / "run", "metrics.jsonl"))
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.config.model.presence
    assert json.loads((tmp_path / "run" / "val_metrics.json").read_text())["presence"]["absent"] == 5


def test_early_stop_counts_on(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, epochs=9, patience=2)
    scores = [5.0, 9.0, 7.0, 10.0, 8.0, 9.0, 11.0]
    monkeypatch.setattr(
        "sdst_train.loop.train.validate",
        lambda *args: {"MR-full-mAP": scores[len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())]},
    )
    run(tmp_path / "run", config, stop_at=11)  # in epoch 4, one bad epoch behind it, the state of step 10
    run(tmp_path / "run", config, resume=True)
    assert [row["MR-full-mAP"] for row in lines(tmp_path / "run", "metrics.jsonl")] == scores[:6]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]["reason"] == "early stop"


def test_the_best_file_of_a_later_epoch_is_trusted(tmp_path, monkeypatch):
    """Killed after best.safetensors and before the state of its epoch; the replayed epoch comes out worse."""
    values = iter([5.0, 9.0, 4.0, 4.5])
    monkeypatch.setattr("sdst_train.loop.train.validate", lambda *args: {"MR-full-mAP": next(values)})
    save, calls = save_state, []

    def killed(run: Path, state) -> None:
        calls.append(state.step)
        if state.step == 6:
            raise Stop
        save(run, state)

    monkeypatch.setattr("sdst_train.loop.train.save_state", killed)
    with pytest.raises(Stop):
        train(CONFIG, SAMPLES, SAMPLES, SPEC, tmp_path / "run")
    monkeypatch.setattr("sdst_train.loop.train.save_state", save)
    best = train(CONFIG, SAMPLES, SAMPLES, SPEC, tmp_path / "run", resume=True)
    assert (best.epoch, best.metrics["MR-full-mAP"]) == (2, 9.0)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]["best_epoch"] == 2


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_broken_state_falls_back_to_the_one_before(whole, tmp_path, damage):
    said: list[str] = []
    run(tmp_path / "run", stop_at=8)
    older, newest = sorted((tmp_path / "run" / "state").glob("*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data[:-100] if damage == "cut" else data)
    run(tmp_path / "run", resume=True, say=said.append)
    assert said[0].startswith(f"{newest}: broken")
    assert said[1] == f"resuming after step {int(older.name[5:13])} of 9"
    assert_same_run(whole, tmp_path / "run")


def test_logs_that_were_cut_or_ran_ahead(whole, tmp_path):
    run(tmp_path / "run", stop_at=8)
    steps = tmp_path / "run" / "steps.jsonl"
    assert len(lines(tmp_path / "run")) == 8  # the newest state is of step 6
    with steps.open("a") as file:
        file.write('{"step": 9, "epo')
    run(tmp_path / "run", resume=True)
    assert_same_run(whole, tmp_path / "run")


def test_tensorboard_shows_each_step_once(whole, tmp_path):
    run(tmp_path / "run", stop_at=8)
    run(tmp_path / "run", resume=True)
    shown = [
        EventAccumulator(str(directory / "tensorboard")).Reload().Scalars("step/loss")
        for directory in (whole, tmp_path / "run")
    ]
    assert [(e.step, e.value) for e in shown[0]] == [(e.step, e.value) for e in shown[1]]


def test_only_the_newest_states_stay(tmp_path):
    run(tmp_path / "run", stop_at=8)
    assert [int(path.name[5:13]) for path in sorted((tmp_path / "run" / "state").iterdir())] == [4, 6]


def test_state_round_trip(tmp_path):
    run(tmp_path / "run", stop_at=8)
    state = load_state(tmp_path / "run", pytest.fail)
    save_state(tmp_path / "copy", state)
    again = load_state(tmp_path / "copy", pytest.fail)
    assert (again.step, again.best, again.best_epoch, again.config) == (6, state.best, state.best_epoch, state.config)
    assert all(torch.equal(again.model[name], state.model[name]) for name in state.model)
    moments = [tensor for entry in again.optimizer["state"].values() for tensor in entry.values()]
    assert len(moments) == 3 * len(state.model)


# --- what cannot be resumed ------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run(whole):
    with pytest.raises(InputError, match=r"holds a run already: go on with  sdst train --resume"):
        run(whole)


def test_a_finished_run(whole):
    with pytest.raises(InputError, match=r"has finished \(all epochs\): there is nothing to resume"):
        run(whole, resume=True)


def test_another_model(tmp_path):
    run(tmp_path / "run", stop_at=4)
    wider = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, queries=6))
    with pytest.raises(ContractError, match=r"it began with model.queries = 5, not 6; set it back"):
        run(tmp_path / "run", wider, resume=True)
    with pytest.raises(ContractError, match=r"it began with epochs = 3, not 4; set it back"):
        run(tmp_path / "run", dataclasses.replace(CONFIG, epochs=4), resume=True)


def test_other_annotations(tmp_path):
    run(tmp_path / "run", stop_at=4)
    with pytest.raises(InputError, match="the annotations are not those the run began with"):
        train(CONFIG, make_samples(9), SAMPLES, SPEC, tmp_path / "run", resume=True)


def test_another_number_of_threads_is_said(tmp_path):
    said: list[str] = []
    run(tmp_path / "run", stop_at=4)
    torch.set_num_threads(2)
    try:
        run(tmp_path / "run", resume=True, say=said.append)
    finally:
        torch.set_num_threads(1)
    assert "1 CPU threads" in said[0]
    assert "losses may differ in their last digits" in said[0]


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def test_killed_three_times_at_random_steps(tmp_path):
    """A process on files: SIGKILL at three random steps, gone on with here, compared with a run that was left alone."""
    data = write_dataset(tmp_path / "data", make_samples(40), make_samples(6, seed=1))
    config = dataclasses.replace(TINY, epochs=5, save_every_steps=3, data=data)  # 50 steps
    config_file = write_config(tmp_path / "config.json", config)
    new = [sys.executable, "-m", "sdst", "train", str(config_file), "--out"]
    old = [sys.executable, "-m", "sdst", "train", "--resume"]
    run_directory, whole_directory = tmp_path / "run", tmp_path / "whole"
    assert main(["train", str(config_file), "--out", str(whole_directory)]) == 0
    assert len(lines(whole_directory)) == 50

    rng, command = random.Random(20261122), [*new, str(run_directory)]
    kills = sorted(rng.sample(range(2, 46), 3))
    print("killed after steps", kills)
    for step in kills:
        kill_after(step, command, run_directory / "steps.jsonl")
        command = [*old, str(run_directory)]
    assert main(command[3:]) == 0
    assert_same_run(whole_directory, run_directory)
    assert (whole_directory / "best.safetensors").read_bytes() == (run_directory / "best.safetensors").read_bytes()


def kill_after(step: int, command: list[str], log: Path) -> None:
    """Start a command and SIGKILL it as soon as the log tells of a step."""
    mark = f'{{"step": {step}, '
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while not (log.is_file() and mark in log.read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert process.returncode == -9
