"""What a Grounder takes as a video: a path, a binary file object, or frames with timestamps."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from ..contracts import ProjectedVideo, VideoFeatures
from ..errors import InputError
from ..media.workers import Piece, Unusable

Source: TypeAlias = str | os.PathLike[str] | IO[bytes] | np.ndarray  # frames: uint8 [N, H, W, 3], RGB
Askable: TypeAlias = VideoFeatures | ProjectedVideo | Source
OnProgress: TypeAlias = Callable[[int, int], None]  # clips done, all clips as far as is known
NOTHING_KNOWN = "the file object"  # what messages call a file without a name


def require_queries(queries: Any) -> None:
    """Raise InputError unless `queries` is a list or tuple of sentences, at least one."""
    if isinstance(queries, str):
        raise InputError("queries: expected a list of sentences, got one; use ground() for one")
    if not isinstance(queries, list | tuple):
        raise InputError(f"queries: expected a list of sentences, got {type(queries).__name__}")
    if not queries:
        raise InputError("queries: expected a list with at least one sentence, got an empty one")
    for query in queries:
        if not isinstance(query, str):
            raise InputError(f"queries: expected sentences (str), got {type(query).__name__} among them")


def refusal(video: Any) -> InputError:
    """Says what is taken where something else came."""
    return InputError(
        "a video: expected a path, a binary file object, or frames (uint8 [N, H, W, 3]) with timestamps_s; got "
        f"{type(video).__name__}"
    )


@contextmanager
def copied(source: IO[bytes]) -> Iterator[tuple[Path, str]]:
    """A file object's content as a file, while the block lasts, and what messages call it.

    It is read from where it stands to its end. Raises InputError when it gives no bytes.
    """
    stated = getattr(source, "name", None)
    name = stated if isinstance(stated, str) and stated else NOTHING_KNOWN
    with tempfile.TemporaryDirectory(prefix="sdst-video-") as folder:
        path = Path(folder) / f"video{Path(name).suffix if name != NOTHING_KNOWN else ''}"
        try:
            with path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        except (OSError, TypeError, ValueError) as error:  # text, closed, not readable
            raise InputError(
                f"{name}: expected a file opened for reading bytes ({error}); open it with 'rb'"
            ) from error
        if not path.stat().st_size:
            raise InputError(f"{name}: holds no bytes from where it stands to its end; seek(0) it, or give a video")
        yield path, name


def counted(pieces: Iterator[Piece | Unusable], tell: Callable[[int], None]) -> Iterator[Piece | Unusable]:
    """The same pieces; `tell` hears how many clips of each the taker is done with, but for the last piece's."""
    for piece in pieces:
        yield piece
        if isinstance(piece, Piece):
            tell(len(piece.clips))
