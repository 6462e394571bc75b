"""Files that are never half-written, their digests, and the folder of what is kept from run to run."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError, InUseError
from .scratch import scratch_folder, sweep
from .strict_json import dump_json, load_json
from .text import read_lines

CACHE_VARIABLE = "SDST_CACHE"
_HEADER = "sdst"  # the one metadata entry of our safetensors files


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends well, remove it otherwise.

    Writers of one `path`, threads or processes, do not see each other: the last to end stands. Raises InputError when
    the place cannot be written (missing permission, full disk, a file where a folder should be).
    """
    with atomic_files([path]) as folder:
        yield folder / Path(path).name


@contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield a temporary folder to write files of these names into; move them to `paths`, in order, when it ends well.

    All `paths` lie in one folder. Each arrives whole, and none before all are written. Raises InputError as
    `atomic_path` does.
    """
    last = Path(paths[-1])
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(last.parent) as temporary:
            yield temporary
            for path in paths:
                os.replace(temporary / Path(path).name, path)
    except OSError as error:
        raise InputError(f"cannot write {last}: {error.strerror or error}; choose another place or free it") from error


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Yield a temporary folder inside the folder `beside`, which is made where it is missing.

    What a killed process leaves there the next one removes. Raises InputError when it cannot be written.
    """
    make_directory(beside)
    try:
        with scratch_folder(beside) as folder:
            yield folder
    except OSError as error:
        raise InputError(f"cannot write into {beside}: {error.strerror or error}; choose another place") from error


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files that killed processes left. Hold `only_process` while you do."""
    sweep(Path(directory))
    for path in Path(directory).glob(".*.tmp"):
        if path.is_symlink() or not path.is_dir():
            remove(path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Raises InputError when `target` cannot be written."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def make_directory(path: Path) -> None:
    """Make `path` and its parents where they are missing. Raises InputError when that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another directory") from error


@contextmanager
def only_process(path: Path) -> Iterator[None]:
    """Hold the lock file `path` within the block. Raises InUseError when another process holds it.

    The lock ends with the process, so a killed one leaves none behind.
    """
    make_directory(Path(path).parent)
    try:
        import fcntl
    except ImportError:  # not on Windows, which has no such lock
        yield
        return
    try:
        file = Path(path).open("a")  # noqa: SIM115  closed by the block below
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another directory") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone, its forks do not hold it
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise InputError(f"cannot lock {path}: {error.strerror}; choose a directory on another disk") from error
            raise InUseError(f"{Path(path).parent} is in use by another process; wait for it or stop it") from error
        yield


def remove(path: Path) -> None:
    """Delete a file if it is there. Raises InputError when that cannot be."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot remove {path}: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` atomically. Raises InputError when `path` cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; what file names that are not UTF-8 leave in it is escaped, as JSON does it.

    Raises InputError when `path` cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON (indented, one final newline) atomically. Raises InputError when `path` cannot be written."""
    write_text(path, dump_json(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically. Raises InputError when `path` cannot be written."""
    write_text(path, "".join(dump_json(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; empty lines are skipped. Raises InputError naming the file and the line."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        row = load_json(line, f"{path}, line {number}:")
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def pack_header(**values: str) -> dict[str, str]:
    """Metadata of a safetensors file as one entry: several are written in random order, which would change digests."""
    return {_HEADER: dump_json(values)}


def unpack_header(metadata: dict[str, str] | None, keys: tuple[str, ...], source: str | Path) -> dict[str, str]:
    """The values of `pack_header`. Raises InputError naming `source` and the keys that are missing."""
    values = load_json((metadata or {}).get(_HEADER, "{}"), f"{source}: its metadata is", "make the file again")
    missing = [key for key in keys if not isinstance(values, dict) or not isinstance(values.get(key), str)]
    if missing:
        raise InputError(f"{source}: its metadata lacks {', '.join(missing)}; make the file again with this project")
    return values


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks. Raises InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where engines, timings and compiled kernels are kept: $SDST_CACHE, by default ~/.cache/sdst."""
    stated = os.environ.get(CACHE_VARIABLE)
    return Path(stated) if stated else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdst"
