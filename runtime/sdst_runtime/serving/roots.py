"""Paths that clients state, held within the folder that a server was given."""

from __future__ import annotations

from pathlib import Path


def path_inside(root: Path, stated: str) -> Path | None:
    """The path that is meant, links followed, there or not; None for one outside the root and for what is no path."""
    try:
        path = (root / stated).resolve()
        path.is_file()  # a name that is too long resolves on some versions of Python, and is found out here
        return path if path.is_relative_to(root.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        return None
