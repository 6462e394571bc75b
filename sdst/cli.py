"""The `sdst` command: one verb a line. It parses and reports errors; a verb's code is imported when it is called."""

from __future__ import annotations

import contextlib
import gc
import inspect
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import __version__

TRACEBACK = "SDST_TRACEBACK"  # of the environment: "1" shows where a fault of ours arose

VERBS = {  # verb: (where its function is, the pip extra it needs, what it does)
    "ground": ("sdst.ground:ground", "", "find the moments of a video that sentences describe"),
    "corpus index": ("sdst.corpus:index", "", "encode a folder of videos into a store that can be asked"),
    "corpus ask": ("sdst.corpus:ask", "", "find the videos of a store that sentences describe, and their moments"),
    "data check": ("sdst.data:check", "", "look for missing or mismatched files of a data set"),
    "convert-backbone": ("sdst.convert:convert_backbone", "train", "turn a released checkpoint into a backbone file"),
    "features video": ("sdst.features:video", "train", "extract the features of a folder or list of videos"),
    "features text": ("sdst.features:text", "train", "extract the features of annotated sentences"),
    "features pack": ("sdst.feature_files:pack", "", "put feature files into few large ones"),
    "features verify": ("sdst.feature_files:verify", "", "read every feature file and list what is wrong"),
    "features convert": ("sdst.feature_files:convert", "", "turn the released npz files into feature files"),
    "train": ("sdst.train:train", "train", "train SDST on a data set, or resume a run"),
    "eval": ("sdst.eval:evaluate_model", "", "measure a checkpoint or a bundle on a data set"),
    "score": ("sdst.score:score", "", "score predictions as the official QVHighlights evaluator does"),
    "submit": ("sdst.submit:submit", "", "write and check the QVHighlights submission of a model"),
    "ablate": ("sdst.ablate:ablate", "train", "train variants over several seeds and compare them"),
    "inspect offsets": ("sdst.offsets:offsets", "train", "draw where the sampling offsets of a run point"),
    "inspect queries": ("sdst.queries:queries", "train", "count which of the decoder's queries a run uses"),
    "export": ("sdst.export:export", "export", "turn a checkpoint and its backbone into a bundle of ONNX files"),
    "build": ("sdst.build:build", "tensorrt", "turn a bundle of ONNX files into TensorRT engines"),
    "triton": ("sdst.triton:triton", "triton", "turn a bundle into a model repository of NVIDIA's Triton server"),
    "calibrate ranges": ("sdst.calibrate:ranges", "export", "measure what the tensors of a bundle hold"),
    "calibrate audit": ("sdst.calibrate:audit", "export", "find what float16 breaks, and what should stay fp32"),
    "calibrate scores": ("sdst.scores:scores", "export", "turn the scores of a run or bundle into probabilities"),
    "calibrate int8": ("sdst.quantise:int8", "export", "turn a bundle of ONNX files into one that computes in int8"),
    "parity": ("sdst.parity:parity", "export", "check that bundles say what their checkpoint says, where they do not"),
    "bench": ("sdst.bench:bench", "", "time bundles stage by stage, beside each other and beside torch"),
    "doctor": ("sdst.doctor:doctor", "", "check what this machine has, and say what to do about the rest"),
    "plugins build": ("sdst.plugins:build", "", "compile sdst::RDSA and its TensorRT plugin for this machine"),
    "plugins info": ("sdst.plugins:info", "", "show which compiled sdst::RDSA is found and how it was built"),
    "serve": ("sdst.serve:serve", "serve", "answer sentences about videos over HTTP, with a page"),
    "demo": ("sdst.demo.run:demo", "demo", "run the whole line on rendered videos and write a report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit code 0, or 2 for an error that the message on stderr explains; 1 when only a part failed.

    70 for a fault of this project, 130 when interrupted.
    """
    if os.getpid() == 1:  # in a container: Linux gives the first process no signal that it does not handle
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    importing = _imports_that_stay if arguments is None else contextlib.nullcontext
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:  # closed by the caller: what a verb says would be lost
        return fail("standard output is closed: send it to a file or to /dev/null")
    try:
        try:
            code = _run(arguments, importing)
        finally:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output left, as `head` does
        _drop_output()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except OSError as error:  # a full disk behind the output
        _drop_output()
        return fail(f"cannot write the output: {error.strerror or error}; send it to another place")
    except Exception as error:  # the last net: a fault of ours
        if os.environ.get(TRACEBACK) == "1":
            raise
        said = " ".join(str(error).split())[:300]
        return fail(f"{type(error).__name__}: {said}; run again with {TRACEBACK}=1 to see where", code=70)


def _drop_output() -> None:
    """What is still in the buffer goes nowhere, so that it does not fail again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _imports_that_stay() -> Iterator[None]:
    """For a process of its own: what is imported is not searched for garbage, neither then nor later (40 ms of 800)."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run(arguments: list[str], importing: Callable[[], contextlib.AbstractContextManager[None]]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and sentences must not end in a UnicodeEncodeError
        sys.stdout.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())  # noqa: T201
        return 0
    if arguments[0] == "--version":
        print(f"sdst {__version__}")  # noqa: T201
        return 0
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb, rest = " ".join(arguments[:words]), arguments[words:]
    if verb in groups() and rest[:1] in (["-h"], ["--help"]):
        print(usage(verb))  # noqa: T201
        return 0
    if verb not in VERBS:
        return fail(unknown(arguments))

    where, extra, _ = VERBS[verb]
    module, function = where.split(":")
    with importing():
        import tyro

        from sdst_runtime.errors import PartialFailure, SdstError, require_package
    try:
        with importing():
            run = getattr(require_package(module, extra), function)
        if list(inspect.signature(run).parameters) == ["arguments"]:  # it starts from a preset and parses by itself
            if rest[:1] in (["-h"], ["--help"]):
                print(inspect.getdoc(run))  # noqa: T201
                return 0
            run(rest)
        else:
            tyro.cli(named(run), args=rest, prog=f"sdst {verb}")
    except PartialFailure as error:
        return fail(str(error), code=1)
    except SdstError as error:
        return fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    return 0


def usage(group: str = "") -> str:
    """The list of verbs, or of those of a group."""
    shown = {verb: line for verb, (_, _, line) in VERBS.items() if not group or verb.startswith(f"{group} ")}
    width = max(map(len, shown))
    head = f"sdst {group} COMMAND" if group else "sdst COMMAND"
    lines = [f"  {verb:<{width}}  {line}" for verb, line in shown.items()]
    return "\n".join([f"usage: {head} ...   ({head} --help for its options)", "", *lines])


def groups() -> list[str]:
    """First words that several verbs share, or that are no verb alone."""
    return list(dict.fromkeys(verb.split()[0] for verb in VERBS if " " in verb))


def unknown(arguments: Sequence[str]) -> str:
    """What to say of words that are no verb: the nearest ones, or all."""
    import difflib

    first, second = arguments[0], arguments[1] if len(arguments) > 1 else ""
    if first in groups():
        own = [verb for verb in VERBS if verb.startswith(f"{first} ")]
        said, rest = f"{first} {second}".strip(), f"expected one of {', '.join(own)}; see  sdst {first} --help"
        near = [] if not second or second.startswith("-") else difflib.get_close_matches(said, own, 1)
    else:
        said, rest = first, f"expected one of {', '.join(VERBS)}; see  sdst --help"
        whole = [f"{first} {second}"] if second and not second.startswith("-") else []
        near = difflib.get_close_matches(first, [*VERBS, *groups()], 1)
        near = [match for words in whole for match in difflib.get_close_matches(words, VERBS, 1, 0.8)] or near
    if near:
        rest = f"did you mean  sdst {near[0]}? All commands:  sdst --help"
    return f"unknown command {said!r}: {rest}"


def named(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, whose help calls positionals by their names: `SINGLE HALF`, not `PATH PATH`."""
    import typing

    import tyro

    hints = typing.get_type_hints(run, include_extras=True)
    for name, hint in hints.items():
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            hints[name] = typing.Annotated[hint, tyro.conf.arg(metavar=_metavar(name, hint))]
    run.__annotations__ = hints
    return run


def _metavar(name: str, hint: Any) -> str:
    import typing

    kind, word = typing.get_args(hint)[0], name.upper().replace("_", "-")
    if typing.get_origin(kind) is tuple:
        word = word.removesuffix("S")
        return f"{word} [{word} ...]"
    return f"[{word}]" if type(None) in typing.get_args(kind) else word


def fail(message: str, code: int = 2) -> int:
    """One line on stderr; returns the exit code, by default that for bad input."""
    line = " ".join(message.split())
    print(f"error: {line}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)  # noqa: T201
    return code
