"""The videos under the server's root that a client may name: their names, some at a time, and their bytes."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..media.suffixes import SUFFIXES
from .refusals import Refusal
from .roots import path_inside
from .uploads import path_under

MOST_NAMES = 200  # of an answer


@dataclass(frozen=True)
class Names:
    """Names in a folder, in order: of videos and, with a / at the end, of folders."""

    names: tuple[str, ...]
    more: bool  # whether others follow


def names_in(root: Path | None, folder: str, after: str, part: str) -> Names:
    """The first names behind `after` in a folder under the root that hold `part`, in either case; none without a root.

    Raises Refusal for no folder. Hidden ones, those of other files and links that lead out of the root are left out.
    """
    if root is None:
        return Names((), False)
    place = path_inside(root, folder)
    if place is None:
        raise Refusal("path_refused", f"{folder[:200]!r} is not a path inside the server's root; give one that is")
    try:
        found = heapq.nsmallest(MOST_NAMES + 1, (n for n in _names(place) if n > after and part.lower() in n.lower()))
    except OSError as error:
        raise Refusal("not_found", f"no folder {folder[:200]!r} under the server's root; check the path") from error
    shown = found[:MOST_NAMES]
    return Names(tuple(name for name in shown if path_inside(root, str(place / name))), len(found) > MOST_NAMES)


def _names(place: Path) -> Iterator[str]:
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not _is_text(entry.name):
                continue
            with suppress(OSError):  # a link in a circle, a file that is gone by now
                if entry.is_dir():
                    yield entry.name + "/"
                elif is_video(entry.name):
                    yield entry.name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return True


def is_video(name: str) -> bool:
    """Whether a file is called like a video."""
    return name.lower().endswith(SUFFIXES)


def video_under(root: Path | None, stated: str) -> Path:
    """The video whose bytes a client asks for. Raises Refusal as `path_under`, and for a file called otherwise."""
    path = path_under(root, stated)
    if not is_video(path.name):
        raise Refusal("path_refused", f"{stated[:200]!r} is not called like a video; name one that is")
    return path
