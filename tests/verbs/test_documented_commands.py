"""The commands and the Python of README.md and docs/grounding.md: run as written, or at least understood.

They run in a folder that holds what their placeholders name: demo-out/bundle, VIDEO.mp4, RUN and so on. What takes
minutes, a GPU or released files is parsed by its verb's own parser, so that no option in the docs is unknown.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import shlex
import shutil
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from places import ROOT
from random_split import annotation, write_features

from sdst.cli import VERBS, main
from sdst.data import check_options
from sdst.options import parse_options, take_config_name
from sdst_runtime.data.config import DataConfig
from sdst_runtime.files import write_jsonl

DOCS = [ROOT / "README.md", ROOT / "docs" / "grounding.md"]
RUN = {"ground", "score", "eval", "submit", "features verify"}  # each takes seconds here; the others are parsed


def commands() -> list[tuple[str, str]]:
    """(file, line) of every `sdst ...` that stands in a block of commands."""
    found = []
    for path in DOCS:
        for line in path.read_text().splitlines():
            if line.startswith("    sdst "):
                found.append((path.name, re.sub(r"\s+#.*", "", line.strip())))
    return found


def snippets() -> list[tuple[str, list[str]]]:
    """The Python blocks of each file, in order: a reader has run those above."""
    return [
        (path.name, re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)) for path in DOCS
    ]


@pytest.fixture
def folder(exported, present, video, tmp_path, monkeypatch) -> Path:
    """The working directory of a reader who has run the demo and has data of their own."""
    from sdst_train.loop.checkpoint import load_checkpoint, save_checkpoint

    monkeypatch.chdir(tmp_path)
    for name in ("VIDEO.mp4", "OTHER.mp4", "VIDEOS/a.mp4", "VIDEOS/b.mp4", "more/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(video, tmp_path / name)
    (tmp_path / "videos.txt").write_text("VIDEO.mp4\nOTHER.mp4\n")
    (tmp_path / "demo-out").mkdir()
    (tmp_path / "demo-out" / "bundle").symlink_to(exported.directory)
    (tmp_path / "BUNDLE").symlink_to(present.directory)
    rng, checkpoint = np.random.default_rng(0), load_checkpoint(exported.checkpoint_path)
    rows = {split: [annotation(rng, qid, split) for qid in range(4)] for split in ("val", "test", "train")}
    for split, own in rows.items():
        write_jsonl(tmp_path / f"{split}.jsonl", own)
    write_features([row for own in rows.values() for row in own], tmp_path / "features", checkpoint.spec, rng)
    data = DataConfig(root=str(tmp_path), train="", val="val.jsonl", test="test.jsonl", clip_s=1.0)
    trained = replace(checkpoint, config=replace(checkpoint.config, data=data))
    save_checkpoint(tmp_path / "RUN" / "best.safetensors", trained)
    return tmp_path


def verb_of(words: list[str]) -> str:
    return next(verb for verb in (" ".join(words[1:3]), words[1]) if verb in VERBS)


@pytest.mark.parametrize(("file", "line"), [pair for pair in commands() if verb_of(pair[1].split()) in RUN])
def test_commands_run_as_written(capsys, folder, file, line):
    if "PREDICTIONS.jsonl" in line:
        made = ["eval", "RUN", "--predictions", "PREDICTIONS.jsonl", "--out", "metrics.json"]
        assert main(made) == 0
        shutil.copy("val.jsonl", "GROUND_TRUTH.jsonl")
        line = line.replace("[", "").replace("]", "") + " --clip-s 1"
        capsys.readouterr()
    code = main(shlex.split(line)[1:])
    out, err = capsys.readouterr()

    assert (code, out != "") == (0, True), err
    if "--json" in line:
        answers = [json.loads(one) for one in out.splitlines()]
        assert [answer["duration_s"] for answer in answers] == [pytest.approx(7.4)] * (2 if "videos.txt" in line else 1)
    for name in re.findall(r"page\.html|kept|DIR|FILE", line):
        assert Path(name).exists(), name


@pytest.mark.parametrize(("file", "line"), [pair for pair in commands() if verb_of(pair[1].split()) not in RUN])
def test_commands_are_understood(file, line):
    words = shlex.split(re.sub(r"[\[\]]", "", line))
    verb = verb_of(words)
    module, name = VERBS[verb][0].split(":")
    rest = words[1 + len(verb.split()) :]
    parse(verb, getattr(importlib.import_module(module), name), rest)


def parse(verb: str, run: typing.Callable, rest: list[str]) -> None:
    """Parse a verb's words without running it. Its parser ends the test with SystemExit when it does not know one."""
    prog = f"sdst {verb}"
    if list(inspect.signature(run).parameters) != ["arguments"]:
        heard = []
        tyro.cli(recording(run, heard), args=rest, prog=prog)
        assert len(heard) == 1
    elif verb == "data check":
        assert check_options(rest).data.root
    elif rest[0] == "--resume":
        from sdst.train import OldRun

        assert tyro.cli(OldRun, args=rest, prog=prog).resume == Path("RUN")
    else:
        options = importlib.import_module(VERBS[verb][0].split(":")[0])
        kind, start = {"train": ("NewRun", {}), "ablate": ("Ablation", {"over": tyro.MISSING})}[verb]
        config, more = take_config_name(rest, prog)
        assert parse_options(getattr(options, kind), config, more, prog, **start).config.preset == config


def recording(run: typing.Callable, heard: list) -> typing.Callable:
    @functools.wraps(run)
    def record(*values, **options):
        heard.append((values, options))

    record.__annotations__ = typing.get_type_hints(run, include_extras=True)
    return record


@pytest.mark.parametrize(("file", "blocks"), snippets())
def test_python_runs_as_written(capsys, folder, file, blocks):
    import matplotlib as mpl

    mpl.use("agg")
    names: dict[str, typing.Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{file}, block {number}", "exec"), names)

    assert "Moment(" in capsys.readouterr().out
    assert len(names["answers"]) == 2


def test_the_docs_hold_what_is_run():
    verbs = [verb_of(line.split()) for _, line in commands()]

    assert set(verbs) >= RUN
    assert len(verbs) > 25
    assert [len(blocks) for _, blocks in snippets()] >= [1, 4]
