"""The folder of `sdst demo`: one demo at a time works in it, and only what a demo made is replaced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdst_runtime.errors import InputError
from sdst_runtime.files import make_directory, only_process, write_text

WORLD = "world.json"  # which dataset.py writes first of all
MADE = ("videos", "annotations", "features", "run", "bundle", "store", "report.html", "summary.json")
_MARK = ".sdst-demo"  # in a run's folder: it may be deleted


@contextmanager
def demo_folder(out: Path) -> Iterator[None]:
    """Hold `out` for one demo. Raises InputError when it has other things under the names that a demo writes.

    InUseError when another demo is at work there.
    """
    make_directory(out)
    foreign = [name for name in MADE if (out / name).exists() or (out / name).is_symlink()]
    if foreign and not (out / WORLD).is_file():
        raise InputError(f"{out} holds {', '.join(foreign)}, which no demo made; choose another --out")
    with only_process(out / ".demo.lock"):
        yield


def clear_run(out: Path) -> Path:
    """out/run, empty but for a mark. Raises InputError, and deletes nothing, when what is there bears none."""
    run = out / "run"
    if run.is_symlink() or (run.exists() and not (run / _MARK).is_file() and not _is_empty(run)):
        raise InputError(f"{run} is no run that a demo of this version made; move it away or choose another --out")
    if run.exists():
        try:
            shutil.rmtree(run)
        except OSError as error:
            raise InputError(f"cannot remove {run}: {error.strerror or error}; choose another --out") from error
    make_directory(run)
    write_text(run / _MARK, "sdst demo made this folder and deletes it when it runs again\n")
    return run


def _is_empty(run: Path) -> bool:
    return run.is_dir() and not any(run.iterdir())
