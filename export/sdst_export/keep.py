"""The file of `sdst export --keep-fp32`: modules that stay float32 in an fp16 bundle, one a line.

    # anything behind a number sign is for people
    head: dense.ffn.0   # overflow
    vision: encoder.blocks.38.mlp.fc2

A line names a model of the bundle (vision, text, projection, head, sentence) and a module in it, by its path; the last
three are parts of one model, and share their modules. `sdst calibrate audit` writes such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sdst_runtime.errors import InputError
from sdst_runtime.grounding.bundle import MODELS
from sdst_runtime.text import read_lines

Keep = Mapping[str, tuple[str, ...]]  # model -> paths of modules
NOTHING_KEPT: Keep = MappingProxyType({})


def read_keep(path: Path) -> Keep:
    """The modules that a file names, each once, in its order.

    Raises InputError for a file or, naming it, a line that cannot be read.
    """
    keep: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_lines(path), 1):
        entry = line.split("#")[0].strip()
        model, _, module = (part.strip() for part in entry.partition(":"))
        if not entry:
            continue
        if model not in MODELS or not module or " " in module:
            raise InputError(
                f"{path}, line {number}: expected  MODEL: MODULE  with one of {', '.join(MODELS)}, got {entry[:60]!r}"
            )
        keep[model] = tuple(dict.fromkeys((*keep.get(model, ()), module)))
    return keep
