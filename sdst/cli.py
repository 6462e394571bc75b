"""The `sdst` command: one verb a line. It parses and reports errors; a verb's code is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "ground": ("sdst.ground:ground", "find the moments of a video that sentences describe"),
    "train": ("sdst.train:train", "train SDST on a folder of annotations and features"),
    "export": ("sdst.export:export", "turn a checkpoint and its backbone into a bundle of ONNX files"),
    "demo": ("sdst.demo.pipeline:demo", "run the whole line on rendered videos and write a report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, or 2 for an error that the message on stderr explains."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())  # noqa: T201
        return 0
    if arguments[0] == "--version":
        from . import __version__

        print(f"sdst {__version__}")  # noqa: T201
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        return fail(f"unknown command {verb!r}: expected one of {', '.join(VERBS)}; see  sdst --help")

    import tyro

    from sdst_runtime.errors import SdstError, require_package

    module, function = VERBS[verb][0].split(":")
    try:
        if verb != "ground":  # the others learn or export: say what to install before a traceback does
            require_package("torch", "demo")
        run = getattr(importlib.import_module(module), function)
        tyro.cli(run, args=rest, prog=f"sdst {verb}")
    except SdstError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def usage() -> str:
    """The list of verbs."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(["usage: sdst COMMAND ...   (sdst COMMAND --help for its options)", "", *lines])


def fail(message: str) -> int:
    """One line on stderr; returns the exit code for bad input."""
    line = " ".join(message.split())
    print(f"error: {line}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)  # noqa: T201
    return 2
