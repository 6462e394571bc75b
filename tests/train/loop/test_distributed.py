"""Two gloo processes are one: the same losses, the same weights, one set of files."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from processes import alive, descendants, wait_until
from tiny_world import TINY, make_samples, write_config, write_dataset

from sdst.cli import main
from sdst_runtime.errors import InputError
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.loop.distributed import ALONE, join_team

torch.set_num_threads(1)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TRAIN = ["-m", "sdst", "train"]


@pytest.mark.parametrize("negatives", [0.0, 0.5])
def test_two_processes_equal_one(tmp_path, negatives):
    """No dropout, since processes draw their own; 11 samples in batches of 4, so that parts differ in size.

    With half of the queries absent a process has none present in some steps, which then has nothing to align.
    """
    data = write_dataset(tmp_path / "data", make_samples(11), make_samples(5, seed=1))
    data = dataclasses.replace(data, negatives=negatives)
    model = dataclasses.replace(TINY.model, input_dropout=0.0, drop_path=0.0)
    config = dataclasses.replace(TINY, epochs=3, model=model, data=data)
    file = str(write_config(tmp_path / "config.json", config))
    assert main(["train", file, "--out", str(tmp_path / "one")]) == 0
    run([*TORCHRUN, *TRAIN, file, "--out", str(tmp_path / "two")])

    one, two = ([json.loads(line) for line in (tmp_path / name / "steps.jsonl").open()] for name in ("one", "two"))
    assert [row["step"] for row in two] == list(range(1, 19 if negatives else 10))
    for a, b in zip(one, two, strict=True):
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-7), (a["step"], name)
    first, second = (load_checkpoint(tmp_path / name / "last.safetensors").model for name in ("one", "two"))
    for name, weight in first.state_dict().items():
        if name.endswith("key.bias"):  # softmax ignores it: its gradient is rounding, which Adam makes large
            continue
        np.testing.assert_allclose(second.state_dict()[name], weight, atol=2e-5, err_msg=name)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["world_size"] == 2


def test_two_processes_resume_bit_by_bit(tmp_path):
    """Killed with all its processes, and gone on with: dropout and the order of sums are those of the whole run."""
    data = write_dataset(tmp_path / "data", make_samples(24), make_samples(4, seed=1))
    file = str(
        write_config(tmp_path / "config.json", dataclasses.replace(TINY, epochs=4, save_every_steps=3, data=data))
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run([*TORCHRUN, *TRAIN, file, "--out", str(whole)])
    process = subprocess.Popen(
        [*TORCHRUN, *TRAIN, file, "--out", str(stopped)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not ((stopped / "steps.jsonl").is_file() and '{"step": 8, ' in (stopped / "steps.jsonl").read_text()):
        assert process.poll() is None
        time.sleep(0.002)
    team = [process.pid, *descendants(process.pid)]  # torchrun starts its processes in sessions of their own
    for pid in team:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(alive, team)))
    run([*TORCHRUN, *TRAIN, "--resume", str(stopped)])
    assert (whole / "steps.jsonl").read_text() == (stopped / "steps.jsonl").read_text()
    assert (whole / "last.safetensors").read_bytes() == (stopped / "last.safetensors").read_bytes()


def test_a_finished_run_is_told_by_the_leader(tmp_path):
    data = write_dataset(tmp_path / "data", make_samples(4), make_samples(2, seed=1))
    file = str(write_config(tmp_path / "config.json", dataclasses.replace(TINY, epochs=1, data=data)))
    assert main(["train", file, "--out", str(tmp_path / "run")]) == 0
    told = run([*TORCHRUN, *TRAIN, "--resume", str(tmp_path / "run")])
    assert told.count("has finished already") == 1


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_alone_everything_stays_as_it_is():
    x = torch.arange(3.0, requires_grad=True)
    assert ALONE.total(x) is x
    assert ALONE.gather(x) is x
    assert ALONE.mean_over_batch(x).item() == 1
    assert ALONE.tell("value") == "value"
    assert ALONE.leads


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there():
    with (
        pytest.raises(InputError, match="expected a CUDA GPU, and torch sees none; use --device cpu"),
        join_team("cuda"),
    ):
        pass
    with join_team("auto") as team:
        assert team.device.type == "cpu"
