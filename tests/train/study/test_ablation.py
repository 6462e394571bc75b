"""`sdst ablate`: which runs it makes, that it keeps, resumes and shares them, and what it computes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny_world import SPEC, TINY, make_samples, write_config, write_dataset

from sdst.cli import main
from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features
from sdst_runtime.errors import ContractError, InputError, InUseError
from sdst_train.config import TrainConfig
from sdst_train.study.ablation import Result, Run, compare, describe_base, finish_run, plan_runs, read_result, statistic
from sdst_train.study.ablation_curves import draw_curves, draw_panel
from sdst_train.study.ablation_report import as_json, as_markdown, draw, make_comparison

torch.set_num_threads(1)
SAMPLES = make_samples(8)
FOUR = ["attention", "feature_mode", "pooling", "query_init"]
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Two epochs of two steps on eight queries, with files to read them from."""
    return dataclasses.replace(TINY, seed=3, data=write_dataset(tmp_path / "data", SAMPLES, SAMPLES[:4]))


def write_features(directory: Path, samples: list[Sample], spec: FeatureSpec) -> None:
    """The samples' features in the contract of `spec`, which may be narrower than they are."""
    for sample in samples:
        video = VideoFeatures(np.asarray(sample.video)[..., : spec.video_width], sample.row["duration"], spec)
        write_video_features(video_feature_path(directory, sample.row["vid"]), video)
        text = TextFeatures(np.asarray(sample.text), sample.row["query"], spec)
        write_text_features(text_feature_path(directory, sample.row["query"]), text)


def ablate(capsys, path: Path, *arguments: object) -> tuple[int, str, str]:
    code = main(["ablate", str(path), *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def digests(directory: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file."""
    return {
        str(path.relative_to(directory)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def finish(run: Run, **options) -> Result:
    splits = (load_split(run.config.data, split) for split in ("train", "val"))
    return finish_run(run, *splits, **options)


@contextmanager
def held_by_another_process(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate()


# --- the plan --------------------------------------------------------------------------------------------------------


def test_each_cell_changes_one_factor_of_the_base():
    runs = plan_runs(TINY, FOUR, 1, Path("out"))
    assert [run.cell for run in runs] == [
        "base", "attention=deformable_ca", "attention=full_ca", "feature_mode=last_repeat", "pooling=cls",
        "pooling=mean", "query_init=pure",
    ]  # fmt: skip
    model, data = TINY.model, TINY.data
    expected = [
        TINY,
        dataclasses.replace(TINY, model=dataclasses.replace(model, attention="deformable_ca")),
        dataclasses.replace(TINY, model=dataclasses.replace(model, attention="full_ca")),
        dataclasses.replace(TINY, model=dataclasses.replace(model, feature_mode="last_repeat")),
        dataclasses.replace(TINY, data=dataclasses.replace(data, features="features-cls")),
        dataclasses.replace(TINY, data=dataclasses.replace(data, features="features-mean")),
        dataclasses.replace(TINY, model=dataclasses.replace(model, query_init="pure")),
    ]
    assert [run.config for run in runs] == expected
    assert [run.pool for run in runs] == ["adaptive"] * 4 + ["cls", "mean", "adaptive"]
    assert describe_base(TINY, FOUR) == (
        "attention=rdsa, feature_mode=intermediate, pooling=adaptive, query_init=learned"
    )


def test_the_base_may_have_any_value_and_factors_may_lie_in_any_part():
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, attention="full_ca"))
    runs = plan_runs(config, ["attention", "overlap", "schedule", "attention"], 1, Path("out"))
    assert [run.cell for run in runs] == [
        "base", "attention=rdsa", "attention=deformable_ca", "overlap=iou", "schedule=step",
    ]  # fmt: skip
    assert runs[3].config == dataclasses.replace(config, loss=dataclasses.replace(config.loss, overlap="iou"))
    assert runs[4].config == dataclasses.replace(config, schedule="step")
    assert {run.pool for run in runs} == {None}


def test_a_seed_goes_through_all_cells_before_the_next():
    runs = plan_runs(dataclasses.replace(TINY, seed=5), ["query_init"], 2, Path("out"))
    assert [str(run) for run in runs] == [
        "base, seed 5",
        "query_init=pure, seed 5",
        "base, seed 6",
        "query_init=pure, seed 6",
    ]
    assert [run.config.seed for run in runs] == [5, 5, 6, 6]
    assert runs[3].directory == Path("out/query_init=pure/seed-6")


def test_numbers_are_factors_with_their_values():
    runs = plan_runs(TINY, ["layers=1:2", "detach_references=True:False", "offset_rate=0.1:1"], 1, Path("out"))
    values = {
        run.cell: (run.config.model.layers, run.config.model.detach_references, run.config.offset_rate) for run in runs
    }
    own = values.pop("base")
    assert own == (TINY.model.layers, True, 0.1)
    others = {f"layers={n}": (n, *own[1:]) for n in (1, 2) if n != own[0]}
    assert values == {
        **others,
        "detach_references=False": (own[0], False, 0.1),
        "offset_rate=1.0": (own[0], True, 1.0),
    }
    assert describe_base(TINY, ["layers=1:2", "attention"]) == f"layers={own[0]}, attention=rdsa"


@pytest.mark.parametrize("factor", ["layers", "layers=two", "detach_references=yes", "data=1:2"])
def test_a_number_without_values_or_with_others_is_refused(factor: str):
    with pytest.raises(InputError, match="--over"):
        plan_runs(TINY, [factor], 1, Path("out"))


def test_an_unknown_factor_is_named_with_the_nearest():
    with pytest.raises(
        InputError, match=r"expected some of attention, .*pooling, or NAME.*got 'atention'; did you mean attention\?"
    ):
        plan_runs(TINY, ["atention"], 1, Path("out"))
    with pytest.raises(InputError, match="seeds: expected at least 1, got 0"):
        plan_runs(TINY, ["attention"], 0, Path("out"))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_statistics_are_numpys():
    values = [41.25, 39.5, 44.75, 40.0]
    found = statistic(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert found.values == tuple(values)
    assert statistic([7.5]).std is None


def results(**metrics_by_cell: list[float]) -> list[Result]:
    facts = ((1.0,), 1, 1.0, {"cores": "2"}, {"torch": "1"})
    return [
        Result(cell, seed, {"MR-full-R1@0.5": value, "MR-full-mAP": 2 * value}, *facts)
        for cell, values in metrics_by_cell.items()
        for seed, value in enumerate(values)
    ]


def test_a_table_of_what_is_finished():
    runs = plan_runs(dataclasses.replace(TINY, seed=0), ["attention"], 3, Path("out"))
    found = results(base=[40.0, 44.0, 45.0], **{"attention=full_ca": [30.0]})
    comparison = make_comparison("sdst ablate demo", "attention=rdsa", runs, found)
    assert as_markdown(comparison).splitlines()[:5] == [
        "| cell | n | R1@0.5 | mAP |",
        "| --- | --- | --- | --- |",
        "| base | 3 | 43.00 ± 2.65 | 86.00 ± 5.29 |",
        "| attention=deformable_ca | 0 |  |  |",
        "| attention=full_ca | 1 | 30.00 | 60.00 |",
    ]
    written = as_json(comparison)
    assert written["cells"][0]["metrics"]["MR-full-R1@0.5"] == {"mean": 43.0, "std": pytest.approx(7**0.5)}
    assert written["cells"][2]["metrics"]["MR-full-R1@0.5"] == {"mean": 30.0}
    assert written["missing"] == [
        "attention=deformable_ca, seed 0", "attention=deformable_ca, seed 1", "attention=full_ca, seed 1",
        "attention=deformable_ca, seed 2", "attention=full_ca, seed 2",
    ]  # fmt: skip
    assert written["machines"] == [{"cores": "2"}]
    assert draw(comparison).startswith(b"\x89PNG")


def test_curves_have_a_panel_a_factor_and_a_mean_as_far_as_all_went():
    curves = {"base": [[1, 5, 6], [3, 7, 8]], "attention=full_ca": [[1, 2, 3], [3, 4]], "query_init=pure": [[2, 2, 2]]}
    of = [
        Result(cell, seed, {}, tuple(curve), 1, 1.0, {}, {})
        for cell, seeds in curves.items()
        for seed, curve in enumerate(seeds)
    ]
    first, second = Figure().subplots(1, 2)
    assert draw_curves(of, "mAP").startswith(b"\x89PNG")
    draw_panel(first, of, ["base", "attention=full_ca"])
    draw_panel(second, of, ["base", "query_init=pure"])
    thick = [line for line in first.lines if line.get_linewidth() == 2]
    assert [list(line.get_ydata()) for line in thick] == [[2, 6, 7], [2, 3]]
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["base (n=2)", "attention=full_ca (n=2)"]
    thin = [list(line.get_ydata()) for line in second.lines if line.get_linewidth() < 1]
    assert thin == [[1, 5, 6], [3, 7, 8], [2, 2, 2]]


def test_a_metric_that_one_run_lacks_has_no_statistics():
    runs = plan_runs(dataclasses.replace(TINY, seed=0), ["query_init"], 2, Path("out"))
    found = results(base=[40.0, 44.0])
    del found[1].metrics["MR-full-mAP"]
    assert list(compare(runs, found)[0].statistics) == ["MR-full-R1@0.5"]


# --- the runs --------------------------------------------------------------------------------------------------------


def test_the_whole_command(tmp_path, capsys, config):
    path, out = write_config(tmp_path / "config.json", config), tmp_path / "out"
    code, printed, _ = ablate(capsys, path, "--over", "query_init", "--seeds", 2, "--out", out)
    assert code == 0
    written = json.loads((out / "ablation.json").read_text())
    assert written["missing"] == []
    assert written["command"] == f"sdst ablate {path} --over query_init --seeds 2 --out {out}"
    assert [(run["cell"], run["seed"]) for run in written["runs"]] == [
        ("base", 3), ("query_init=pure", 3), ("base", 4), ("query_init=pure", 4),
    ]  # fmt: skip
    for cell in written["cells"]:
        measured = [
            json.loads((out / cell["cell"] / f"seed-{seed}" / "val_metrics.json").read_text())["brief"]
            for seed in (3, 4)
        ]
        assert cell["n"] == 2
        for name, numbers in cell["metrics"].items():
            values = [brief[name] for brief in measured]
            assert numbers["mean"] == pytest.approx(np.mean(values))
            assert numbers["std"] == pytest.approx(np.std(values, ddof=1))
    mean_ap = written["cells"][1]["metrics"]["MR-full-mAP"]
    shown = f"{mean_ap['mean']:.2f} ± {mean_ap['std']:.2f}"
    assert shown in (out / "ablation.md").read_text()
    assert shown in printed
    assert "query_init=pure" in printed
    for picture in ("ablation.png", "curves.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    for run in written["runs"]:
        log = (out / run["cell"] / f"seed-{run['seed']}" / "metrics.jsonl").read_text().splitlines()
        assert run["curve"] == [json.loads(line)["MR-full-mAP"] for line in log]
        assert run["curve"][run["best_epoch"] - 1] == max(run["curve"]) == run["metrics"]["MR-full-mAP"]

    before = {cell: digests(out / cell) for cell in ("base", "query_init=pure")}
    assert ablate(capsys, path, "--over", "query_init", "--seeds", 2, "--out", out)[0] == 0
    assert {cell: digests(out / cell) for cell in before} == before

    code, printed, error = ablate(capsys, path, "--over", "query_init", "--out", out, "--epochs", 3)
    assert (code, printed) == (2, "")
    assert "config.json: epochs is 2 in this run, 3 was asked for; ask for the same or choose another --out" in error
    assert {cell: digests(out / cell) for cell in before} == before


def test_a_command_that_was_killed_goes_on_where_it_stopped(tmp_path, capsys, config):
    runs = plan_runs(config, ["query_init"], 1, tmp_path / "out")

    def stop(progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    finish(runs[0])
    with pytest.raises(KeyboardInterrupt):
        finish(runs[1], on_step=stop)
    kept, started = digests(runs[0].directory), json.loads((runs[1].directory / "run.json").read_text())["started"]
    assert read_result(runs[1]) is None

    path = write_config(tmp_path / "config.json", config)
    code, _, error = ablate(capsys, path, "--over", "query_init", "--seeds", 1, "--out", tmp_path / "out")
    assert code == 0
    assert "2 runs in" in error
    assert "1 of them finished" in error
    assert digests(runs[0].directory) == kept
    facts = json.loads((runs[1].directory / "run.json").read_text())
    assert (facts["started"], facts["finished"]["reason"]) == (started, "all epochs")
    steps = [json.loads(line)["step"] for line in (runs[1].directory / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_run_of_another_process_is_left_to_it(tmp_path, capsys, config):
    path, out = write_config(tmp_path / "config.json", config), tmp_path / "out"
    arguments = ("--over", "query_init", "--seeds", 1, "--out", out)
    base = plan_runs(config, ["query_init"], 1, out)[0]
    with held_by_another_process(base.directory / ".lock"):
        with pytest.raises(InUseError, match="in use by another process"):
            finish(base)
        code, printed, error = ablate(capsys, path, *arguments)
    assert code == 0
    assert "base, seed 3: left to another process that is at work on it" in error
    assert "not finished: base, seed 3; start the command again for the whole table" in error
    written = json.loads((out / "ablation.json").read_text())
    assert ([run["cell"] for run in written["runs"]], written["missing"]) == (["query_init=pure"], ["base, seed 3"])
    assert "query_init=pure" in printed  # whole, though the terminal is narrow
    assert ablate(capsys, path, *arguments)[0] == 0
    assert json.loads((out / "ablation.json").read_text())["missing"] == []


def test_pooling_trains_on_features_of_its_own(tmp_path, config):
    base, cls, mean = plan_runs(config, ["pooling"], 1, tmp_path / "out")
    write_features(tmp_path / "data/features-cls", SAMPLES, dataclasses.replace(SPEC, pool="cls", video_width=20))
    write_features(tmp_path / "data/features-mean", SAMPLES, SPEC)
    finish(cls)
    assert json.loads((cls.directory / "config.json").read_text())["model"]["video_width"] == 20
    assert read_result(cls) is not None
    with pytest.raises(
        ContractError, match="features-mean: expected features of pool 'mean' for pooling=mean, these are 'adaptive'"
    ):
        finish(mean)
    assert not mean.directory.exists()
    assert base.config.data == config.data


def test_missing_features_are_said_before_anything_is_trained(tmp_path, capsys, config):
    path, out = write_config(tmp_path / "config.json", config), tmp_path / "out"
    code, printed, error = ablate(capsys, path, "--over", "pooling", "--out", out)
    assert (code, printed) == (2, "")
    assert "features-cls: expected features pooled by 'cls' for pooling=cls, found no such folder" in error
    assert not out.exists()


def test_a_run_that_fails_is_named(tmp_path, config):
    (run, *_) = plan_runs(dataclasses.replace(config, select_by="accuracy"), ["query_init"], 1, tmp_path / "out")
    with pytest.raises(InputError, match="base, seed 3: select_by: expected one of"):
        finish(run)


@pytest.mark.parametrize("arguments", [["ablate"], ["ablate", "--over", "attention"]])
def test_a_config_must_be_named(capsys, arguments):
    assert main(arguments) == 2
    assert "expected sdst ablate CONFIG" in capsys.readouterr().err
