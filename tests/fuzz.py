"""Feeds damaged files of every format to their readers: none may end in a traceback, a hang or a crash.

    .venv/bin/python tests/fuzz.py --seed 1 --count 10000 [--format onnx] [--keep DIR]

Input i of a format is a function of (seed, format, i). Readers run in a child, which is restarted when it hangs or
crashes. Prints a line a format; with --keep the inputs that failed are written there. Exits with 1 when any failed.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_formats import FORMATS

LIMIT_S = 30.0  # for one input; the sound ones take milliseconds
CHILD = __file__  # what a child runs
MOST_BYTES = 8 << 30  # of a reader's address space: a file of kilobytes that asks for more is an error of ours


@dataclass
class Found:
    """What became of the inputs of one format."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)  # the last lines of a traceback, or what happened: an input

    @property
    def failed(self) -> bool:
        return any(self.counts[kind] for kind in ("traceback", "hang", "crash"))


def damaged(name: str, sound: bytes, seed: int, number: int) -> bytes:
    """Input `number` of a format."""
    rng = random.Random(f"{seed}/{name}/{number}")
    return rng.choice(FORMATS[name].damages)(sound, rng)


def fuzz(name: str, exported: Path, seed: int, count: int, keep: Path | None = None) -> Found:
    """Feed `count` inputs of one format."""
    found = Found()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sound"
        folder.mkdir()
        FORMATS[name].make(folder, exported)
        sound = (folder / FORMATS[name].target).read_bytes()
        for number, (kind, told) in zip(range(count), _verdicts(name, Path(place), sound, seed)):
            found.counts[kind] += 1
            if kind not in ("ok", "error"):
                found.faults.setdefault(told, number)
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name.replace(' ', '-')}-{number}").write_bytes(damaged(name, sound, seed, number))
    return found


def _verdicts(name: str, place: Path, sound: bytes, seed: int) -> Iterator[tuple[str, str]]:
    """For input 0, 1, ...: ok, error, traceback, hang or crash, and what was told."""
    child, number = None, 0
    try:
        while True:
            if child is None:
                child = _start(name, place)
            (place / "input").write_bytes(damaged(name, sound, seed, number))
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            if not select.select([child.stdout], [], [], LIMIT_S)[0]:
                child = _end(child)
                yield "hang", f"no answer within {LIMIT_S:g} s"
            elif line := child.stdout.readline():
                kind, told = json.loads(line)
                yield kind, told
            else:
                code = child.wait()
                child = None
                yield "crash", f"exit code {code}"
            number += 1
    finally:
        if child is not None:
            _end(child)


def _start(name: str, place: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, CHILD, "--child", name, str(place)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    if child.stdout.readline() != b"ready\n":
        raise SystemExit(f"{name}: the sound file cannot be read; run  {' '.join(command)}")
    return child


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


# ---------------------------------------------------------------- in the child


def _serve(name: str, place: Path) -> None:
    """Read the sound file, then the damaged one for each line that comes."""
    import resource

    form, out = FORMATS[name], sys.stdout
    kind, told = _read(name, place / "sound", place / "work")
    if kind != ("error" if form.refused else "ok"):
        sys.exit(f"{kind}: {told}")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    print("ready", file=out, flush=True)
    for _ in sys.stdin.buffer:
        shutil.copyfile(place / "input", place / "damaged")
        verdict = _read(name, place / "sound", place / "work", place / "damaged", form.target)
        print(json.dumps(verdict), file=out, flush=True)


def _read(name: str, sound: Path, work: Path, content: Path | None = None, target: str = "") -> tuple[str, str]:
    """Copy the sound folder, put the damaged file into it, and read it."""
    from sdst_runtime.errors import SdstError

    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sound, work)
    if content is not None:
        shutil.copyfile(content, work / target)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            FORMATS[name].read(work)
    except SdstError as error:
        lines = " ".join(str(error).split("\n"))
        return ("error", lines) if len(lines) < 4000 else ("traceback", f"an error of {len(lines)} characters")
    except BaseException as error:  # noqa: BLE001  a panic of Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)
        ours = [
            f"{Path(f.filename).name}:{f.lineno}" for f in where if "/sdst" in f.filename and "fuzz" not in f.filename
        ]
        return "traceback", f"{' '.join(ours[-2:])} {type(error).__name__}: {str(error)[:100]}"
    return "ok", ""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--format", choices=list(FORMATS), action="append")
    parser.add_argument("--exported", type=Path, help="folder with bundle, best.safetensors and backbone.safetensors")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _serve(options.child[0], Path(options.child[1]))
        return 0
    names = options.format or list(FORMATS)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        exported = options.exported or Path(folder)
        if options.exported is None:
            from conftest import make_exported

            make_exported(exported)
        for name in names:
            found = fuzz(name, exported, options.seed, -(-options.count // len(names)), options.keep)
            total.update(found.counts)
            print(f"{name}: {dict(found.counts)}", flush=True)
            for told, number in found.faults.items():
                print(f"    input {number}: {told}", flush=True)
    print(f"in all: {dict(total)}")
    return int(any(total[kind] for kind in ("traceback", "hang", "crash")))


if __name__ == "__main__":
    sys.exit(main())
