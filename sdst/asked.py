"""What is asked: which words of `sdst ground` are videos, which are sentences, and what of them the model knows.

A word that names something on the disk is never a sentence. One that looks like a path and names nothing is a mistake,
not a sentence either: `--query` is for sentences that happen to look so.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from sdst_runtime.errors import InputError

from .videos import LIST, SUFFIXES, find_videos, read_list

_WILD = set("*?[")


def videos_and_sentences(words: Sequence[str]) -> tuple[list[Path], list[str], bool]:
    """The videos in order, the sentences in order, and whether the videos are a stream: a list, a folder or several.

    Raises InputError for a path where nothing is, and for a list or folder without a video.
    """
    videos: list[Path] = []
    sentences: list[str] = []
    collected = False
    for word in words:
        found = _paths(word)
        if found is None:
            sentences.append(word)
            continue
        for path in found:
            inside = _inside(path)
            collected |= inside is not None
            videos += [path] if inside is None else inside
    return videos, sentences, collected or len(videos) > 1


def _paths(word: str) -> list[Path] | None:
    """What a word names on the disk; None for a sentence."""
    if os.path.lexists(word):
        return [Path(word)]
    if _WILD & set(word):
        found = [Path(path) for path in sorted(glob.glob(word)) if os.path.isfile(path)]
        if found:
            return found
    if looks_like_path(word):
        what = "no file fits this pattern" if _WILD & set(word) else "no such video file or folder"
        raise InputError(f"{word}: {what}; check the path, or give it with --query if it is a sentence")
    return None


def without(query: str, unknown_words: Sequence[str]) -> str:
    """A line that says that these words of a sentence did not count."""
    return f"the model does not know {', '.join(map(repr, unknown_words))} and answered {query!r} without"


def looks_like_path(word: str) -> bool:
    """Whether a word has the suffix of a video or of a list, or a separator of folders."""
    return word.lower().endswith((*SUFFIXES, LIST)) or os.sep in word or bool(os.altsep and os.altsep in word)


def _inside(path: Path) -> list[Path] | None:
    """The videos of a folder or a list; None for a single file."""
    if path.is_dir():
        return list(find_videos(path).values())
    return read_list(path) if path.suffix == LIST else None
