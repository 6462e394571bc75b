"""The command that usually comes next: the last line of a verb that made something, on stderr."""

from __future__ import annotations

import shlex
import sys


def advise(*words: object) -> None:
    """Say it. Words that are in capitals stand for what only the user knows."""
    print(f"next:  {shlex.join(map(str, words))}", file=sys.stderr)  # noqa: T201
