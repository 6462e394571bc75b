"""Where a user says which videos: a folder, or a .txt file with the path of one on each line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sdst_runtime.errors import InputError
from sdst_runtime.media.suffixes import SUFFIXES
from sdst_runtime.text import read_lines

LONGEST_ID = 200  # bytes; a file name may have 255, and gets a suffix
_NAMED = 5  # skipped files that are named; the others are counted
LIST = ".txt"


def find_videos(place: Path) -> dict[str, Path]:
    """The videos of a folder or of a list, by id. Raises InputError for none, or for two of one id.

    A line on stderr counts and names what is skipped in a folder: all whose suffix is no video's, and folders.
    Hidden files are left alone.
    """
    if place.is_dir():
        paths, skipped = _in_folder(place)
        if skipped:
            print(_say_skipped(place, skipped), file=sys.stderr)  # noqa: T201
        if not paths:
            raise InputError(f"{place}: no videos there; expected files of {', '.join(SUFFIXES)}")
    elif place.suffix == LIST:
        paths = read_list(place)
    else:
        raise InputError(f"{place}: expected a folder of videos or a {LIST} file with a path a line")
    videos: dict[str, Path] = {}
    for path in paths:
        if path.stem in videos:
            raise InputError(f"{videos[path.stem]} and {path} are both video {path.stem!r}: rename or leave out one")
        if len(os.fsencode(path.stem)) > LONGEST_ID:
            raise InputError(
                f"{path}: its name is longer than {LONGEST_ID} bytes, too long for a feature file: rename it"
            )
        videos[path.stem] = path
    return videos


def _in_folder(place: Path) -> tuple[list[Path], list[Path]]:
    """The videos of a folder, and what is skipped; hidden files are neither."""
    videos, skipped = [], []
    for path in sorted(path for path in place.iterdir() if not path.name.startswith(".")):
        (videos if path.suffix.lower() in SUFFIXES and not path.is_dir() else skipped).append(path)
    return videos, skipped


def _say_skipped(place: Path, skipped: list[Path]) -> str:
    names = ", ".join(path.name + "/" * path.is_dir() for path in skipped[:_NAMED])
    more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return (
        f"{place}: skipped {len(skipped)} entries that are no videos by their names: {names}{more}; list videos among "
        f"them in a {LIST} file"
    )


def read_list(path: Path) -> list[Path]:
    """The paths in a .txt file, one a line. Raises InputError when it cannot be read or is empty."""
    videos = [Path(line.strip()) for line in read_lines(path) if line.strip()]
    if not videos:
        raise InputError(f"{path}: no videos in it; expected the path of one on each line")
    return videos
