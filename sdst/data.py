"""`sdst data check`: what a data set holds, what is mended in it, and all that keeps it from being used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from sdst_runtime.data.annotations import is_absent, read_queries
from sdst_runtime.data.config import DataConfig, SplitName
from sdst_runtime.data.dataset import Inspection, Spread, inspect_split, load_split
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.tokenizer import Tokenizer, count_unknown
from sdst_runtime.metrics.score import metric_names
from sdst_train.backbone.tokenizer import open_tokenizer

from .consoles import make_console
from .next_step import advise
from .options import load_config, take_config_name

_VERB = "sdst data check"
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def check(arguments: list[str]) -> None:
    """`CONFIG [--root DIR ...]`: look at a data set. Raises InputError when it has problems, which are printed."""
    options = check_options(arguments)
    check_data(options.data, options.tokenizer)
    advise("sdst", "train", arguments[0], "--data.root", options.data.root)


def check_options(arguments: list[str]) -> CheckOptions:
    """The data part of a config with its fields overridden, and what else the verb takes."""
    name, rest = take_config_name(arguments, _VERB)
    return tyro.cli(CheckOptions, args=rest, prog=f"{_VERB} {name}", default=CheckOptions(load_config(name).data))


@dataclass(frozen=True)
class CheckOptions:
    """What `sdst data check` takes behind the name of its config."""

    data: tyro.conf.OmitArgPrefixes[DataConfig]
    tokenizer: Path | None = None
    """Count words that the text model does not know, with a bundle, a backbone file, tokenizer.json or vocab.txt."""


def check_data(data: DataConfig, tokenizer: Path | None = None) -> None:
    """Print what each split holds, what is mended, and every problem; with a `tokenizer` its unknown words.

    Raises InputError when there is any.
    """
    console = make_console(soft_wrap=True)
    # a test split may be released without its windows
    present: list[SplitName] = [name for name in SPLITS if getattr(data, name)]
    inspections = {name: inspect_split(data, name, labelled=name != "test") for name in present}
    usable = {name: inspection for name, inspection in inspections.items() if inspection.queries}
    if usable:
        console.print(_overview(usable))
    _show_unknown(data, present, tokenizer, console)
    for name in SPLITS:
        if name not in inspections:
            console.print(f"{name}: none in this data set (data.{name} is empty)")
    for name, inspection in inspections.items():
        for line in inspection.repairs.lines():
            console.print(f"{name}: {line}")
    problems = [f"{name}: {line}" for name, inspection in inspections.items() for line in inspection.problems]
    problems = problems or [
        f"{name}: {line}" for name in present if name != "train" for line in _unscorable(data, name)
    ]
    for line in problems:
        console.print(line)
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"{count} in the data under {data.root}; mend what is listed on stdout")
    console.print("all is well")


def _show_unknown(data: DataConfig, splits: Sequence[SplitName], source: Path | None, console: Console) -> None:
    if source is None:
        console.print("unknown words: not counted; give --tokenizer, a bundle, a backbone or its tokenizer.json")
        return
    tokenizer = Tokenizer.from_text(open_tokenizer(source), source)
    for name in splits:
        with suppress(InputError):  # a file that cannot be read is among the problems
            sentences = [query.query for query in read_queries(data.annotations(name))]
            lines = count_unknown(tokenizer, sentences).lines()
            console.print(f"{name}: {lines[0] if lines else 'the text model knows every word'}")


def _unscorable(data: DataConfig, name: SplitName) -> list[str]:
    """What keeps the official metrics from a split that training would take, as an empty window."""
    samples = load_split(data, name, labelled=name != "test").samples
    try:
        if all(sample.row.get("relevant_windows") or is_absent(sample.row) for sample in samples):
            metric_names(samples, data)
    except InputError as error:
        return [str(error)]
    return []


def _overview(inspections: Mapping[str, Inspection]) -> Table:
    table = Table("", *inspections)
    for title, values in (
        ("queries", [str(i.queries) for i in inspections.values()]),
        ("absent queries", [str(i.absent) for i in inspections.values()]),
        ("videos", [str(i.videos) for i in inspections.values()]),
        ("clips of a video", [_spread(i.clips) for i in inspections.values()]),
        ("tokens of a query", [_spread(i.tokens) for i in inspections.values()]),
        ("layers", [str(i.layers) for i in inspections.values()]),
        ("widths: video, text", [f"{i.video_width}, {i.text_width}" for i in inspections.values()]),
        ("windows", [str(i.windows) for i in inspections.values()]),
        ("most of a query", [str(i.most_windows) for i in inspections.values()]),
    ):
        table.add_row(title, *values)
    return table


def _spread(values: Spread) -> str:
    least, median, most = values
    return f"{least} to {most}, median {median}"
