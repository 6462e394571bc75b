"""Where a user says which videos: a folder, or a .txt file with the path of one on each line."""

from __future__ import annotations

import os
from pathlib import Path

from sdst_runtime.errors import InputError
from sdst_runtime.text import read_lines

LONGEST_ID = 200  # bytes; a file name may have 255, and gets a suffix
SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
LIST = ".txt"


def find_videos(place: Path) -> dict[str, Path]:
    """The videos of a folder or of a list, by id. Raises InputError for none, or for two of one id."""
    if place.is_dir():
        visible = (path for path in place.iterdir() if not path.name.startswith("."))
        paths = sorted(path for path in visible if path.suffix.lower() in SUFFIXES)
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


def read_list(path: Path) -> list[Path]:
    """The paths in a .txt file, one a line. Raises InputError when it cannot be read or is empty."""
    videos = [Path(line.strip()) for line in read_lines(path) if line.strip()]
    if not videos:
        raise InputError(f"{path}: no videos in it; expected the path of one on each line")
    return videos
