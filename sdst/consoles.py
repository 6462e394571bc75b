"""What is printed through rich: as it is. Nobody's file name or sentence is markup, an emoji code or a style.

Everything here that draws with rich makes its consoles and columns of text from these; a style is given with a Text.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import TextColumn


def make_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console that prints text, in tables too, as it is; `options` are rich's own."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **options)


def description() -> TextColumn:
    """What a bar is about, as it is."""
    return TextColumn("{task.description}", markup=False)
