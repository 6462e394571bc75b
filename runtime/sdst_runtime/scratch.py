"""Temporary folders that nobody else can have made, and that a killed process does not leave for ever.

A folder lies beside what it is for, under a name `.sdst-<random>.tmp` that is made exclusively, so that no link and
no other writer's folder is ever written into. It is locked while it is in use; an unlocked one was left by a process
that was killed, and is removed when the next process works in the same place.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = re.compile(r"\.sdst-[0-9a-f]{16}\.tmp")
_ATTEMPTS = 8
_swept: set[tuple[int, str]] = set()  # places that this process has swept


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder inside `parent`, readable by this user alone; it is removed when the block ends.

    Raises OSError when none can be made.
    """
    parent = Path(parent)
    _sweep_once(parent)
    path, lock = _make(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the temporary folders of killed processes; those in use stay."""
    with suppress(OSError):
        for entry in os.scandir(parent):
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_unused(Path(entry.path))


def _make(parent: Path) -> tuple[Path, int | None]:
    """A new folder and the lock on it."""
    for _ in range(_ATTEMPTS):
        path = parent / f".sdst-{secrets.token_hex(8)}.tmp"
        try:
            path.mkdir(mode=0o700)  # fails where anything is, a link too
        except FileExistsError as error:
            taken = error
            continue
        try:
            lock = _lock(path)
            if lock is None or _is_still(path, lock):
                return path, lock
            os.close(lock)  # swept away between the two calls
        except FileNotFoundError:  # the same
            pass
        taken = FileExistsError(f"{path.name} is swept away as fast as it is made")
    raise FileExistsError(f"temporary names are taken: {taken.strerror or taken}")


def _sweep_once(parent: Path) -> None:
    place = os.getpid(), str(parent.absolute())
    if place not in _swept:
        _swept.add(place)
        sweep(parent)


def _remove_unused(path: Path) -> None:
    try:
        lock = _lock(path)
    except OSError:  # in use, or gone
        return
    if lock is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _lock(path: Path) -> int | None:
    """An open descriptor that holds the folder's lock; None where folders cannot be locked. OSError when it is held."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return None
    place = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(place)
        raise
    except OSError:  # some file systems of networks lock no folders
        os.close(place)
        return None
    return place


def _is_still(path: Path, lock: int) -> bool:
    """Whether the name still is the folder that was locked."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(lock))
    except FileNotFoundError:
        return False
