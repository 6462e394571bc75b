"""Configs from the command line: a preset or config.json, then any field as an option (--epochs 3 --data.root D)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from sdst_runtime.errors import InputError
from sdst_train.config import TrainConfig, parse_config
from sdst_train.presets import PRESETS

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Options = TypeVar("Options")


def load_config(name: str) -> TrainConfig:
    """The config of a preset, or of a JSON file. Raises InputError for a name that is neither."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if not path.is_file():
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name}: expected one of {', '.join(PRESETS)} or a config.json{hint}")
    return parse_config(path.read_bytes(), path)


def parse_options(options: type[Options], name: str, rest: list[str], prog: str, **defaults: Any) -> Options:
    """Options of a verb whose field `config` starts from a preset or file."""
    start: Any = options
    return tyro.cli(options, args=rest, prog=f"{prog} {name}", default=start(config=load_config(name), **defaults))


def take_config_name(arguments: list[str], prog: str) -> tuple[str, list[str]]:
    """The first argument and the rest. Raises InputError when it is missing."""
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            f"expected  {prog} CONFIG ...  where CONFIG is one of {', '.join(PRESETS)} or a config.json;"
            f" options:  {prog} CONFIG --help"
        )
    return arguments[0], arguments[1:]
