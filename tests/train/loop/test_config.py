"""Presets, config files and the command line's options: what resolves, and what is refused with a hint."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import get_args

import pytest

from sdst.cli import main
from sdst.data import check_options
from sdst.options import load_config, parse_options
from sdst.train import NewRun
from sdst_runtime.data.config import DataConfig, SplitName
from sdst_runtime.errors import ContractError, InputError
from sdst_train.config import LossConfig, ModelConfig, TrainConfig, parse_config
from sdst_train.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    text = json.dumps(dataclasses.asdict(PRESETS[name]))
    assert parse_config(text, "config.json") == PRESETS[name] == load_config(name)
    assert PRESETS[name].preset == name


def test_presets_hold_the_published_sizes():
    """docs/method.md, section 4."""
    sizes = {name: (c.batch_size, c.epochs, c.data.clip_s, c.loss.highlight) for name, c in PRESETS.items()}
    assert sizes["qvhighlights"] == (64, 60, 2.0, 0.1)
    assert sizes["charades"] == (32, 50, 1.0, 0.01)
    assert sizes["tacos"] == (32, 100, 2.0, 0.05)
    assert {c.data.metrics for n, c in PRESETS.items() if n in ("charades", "tacos")} == {"moments"}


def test_a_partial_config_keeps_the_defaults(tmp_path):
    (tmp_path / "mine.json").write_text('{"epochs": 3, "data": {"root": "/data"}, "model": {"queries": 12}}')
    config = load_config(str(tmp_path / "mine.json"))
    expected = TrainConfig(epochs=3, data=DataConfig(root="/data"), model=ModelConfig(queries=12))
    assert config == expected
    (tmp_path / "config.json").write_text('{"epochs": 4}')
    assert load_config(str(tmp_path)).epochs == 4  # a run's folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 3}', "epoch: no such field; did you mean epochs?"),
        ('{"model": {"point": 3}}', "model.point: no such field; did you mean points?"),
        ('{"data": {"rot": "x"}}', "data.rot: no such field; did you mean root?"),
        ('{"epochs": "many"}', "epochs: Input should be a valid integer"),
        ('{"model": {"width": 1.5}}', "model.width: Input should be a valid integer"),
        ('{"model": {"width": 30}}', "its config does not fit: model.width: expected a multiple of heads"),
        ('{"patience": -1}', "its config does not fit: patience: expected at least 0, got -1"),
        ('{"ema_decay": 1.0}', "ema_decay: expected 0 <= decay < 1, got 1.0"),
        ('{"data": {"clip_s": 0}}', "data.clip_s: expected at least 0.01 seconds, got 0.0"),
        ('{"seed": -1}', "seed: expected at least 0, got -1"),
        ('{"weight_decay": -0.1}', "weight_decay: expected at least 0, got -0.1"),
        ('{"loss": {"temperature": 0}}', "loss.temperature: expected a positive number, got 0"),
        ('{"loss": {"l1": -1}}', "loss.l1: expected 0 or more, got -1"),
        ("{", "Invalid JSON"),
    ],
)
def test_config_files_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ContractError) as caught:
        load_config(str(tmp_path / "mine.json"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.json"))


def test_a_name_that_is_neither_preset_nor_file():
    with pytest.raises(InputError, match=r"qvhighlight: expected one of .*; did you mean qvhighlights\?"):
        load_config("qvhighlight")


def test_any_field_is_an_option():
    arguments = ["--epochs", "3", "--model.attention", "full_ca", "--data.root", "D", "--loss.overlap", "giou"]
    config = parse_options(NewRun, "charades", [*arguments, "--compile"], "sdst train").config
    base = PRESETS["charades"]
    assert config == dataclasses.replace(
        base,
        epochs=3,
        compile=True,
        model=dataclasses.replace(base.model, attention="full_ca"),
        data=dataclasses.replace(base.data, root="D"),
        loss=dataclasses.replace(base.loss, overlap="giou"),
    )
    assert check_options(["tacos", "--root", "D"]).data == dataclasses.replace(PRESETS["tacos"].data, root="D")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "error: expected sdst train CONFIG ... where CONFIG is one of qvhighlights"),
        (["train", "qvhighlight"], "did you mean qvhighlights?"),
        (["train", "--resume=nowhere"], "error: nowhere holds no run: it has no config.json"),
        (["train", "--resume", "nowhere"], "error: nowhere holds no run: it has no config.json"),
        (["train", "qvhighlights", "--data.root", "nowhere"], "nowhere"),
        (["data", "check"], "error: expected sdst data check CONFIG"),
        (["ablate"], "error: expected sdst ablate CONFIG"),
        (["data"], "error: unknown command 'data'"),
    ],
)
def test_the_command_says_what_is_wrong(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert len([line for line in told.err.splitlines() if line.startswith("error:")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "demo", "--epoch", "3"])
    assert caught.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_configs_and_options_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import sdst.options; sdst.options.load_config('qvhighlights')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_splits_of_a_data_set():
    data = PRESETS["charades"].data
    assert [str(data.annotations(split)) for split in get_args(SplitName)] == [
        "data/charades/charades_sta_train.txt",
        "data/charades/charades_sta_test.txt",
        "data/charades/charades_sta_test.txt",
    ]
    assert [str(path) for path in data.duration_files()] == [
        "data/charades/Charades_v1_train.csv",
        "data/charades/Charades_v1_test.csv",
    ]
    with pytest.raises(InputError, match=r"this data set has no test split: set data\.test to its annotation file"):
        PRESETS["demo"].data.annotations("test")
    with pytest.raises(InputError, match="split: expected one of train, val, test, got 'dev'"):
        data.annotations("dev")
    absolute = dataclasses.replace(data, train="/elsewhere/train.txt")
    assert str(absolute.annotations("train")) == "/elsewhere/train.txt"


def test_values_outside_their_choices():
    with pytest.raises(InputError, match="precision: expected one of auto, fp32, bf16, fp16, got 'fp8'"):
        TrainConfig(precision="fp8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"data\.metrics: expected one of qvhighlights, moments, got 'map'"):
        DataConfig(metrics="map")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="overlap: expected one of iou, giou, got 'diou'"):
        LossConfig(overlap="diou")  # pyright: ignore[reportArgumentType]
