"""The result of one check of `sdst doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "absent", "fault"]


@dataclass(frozen=True)
class Check:
    """One part of the machine."""

    name: str
    state: State  # absent: not installed, and nothing that needs it can be done
    found: str
    mend: str = ""  # what to do; empty when it is fine
    needed: bool = False  # for inference on a CPU


def split_message(message: str) -> tuple[str, str]:
    """What was found and what mends it, of an error's line, which ends with the latter."""
    for mark in ("; ", ": "):
        found, _, mend = message.rpartition(mark)
        if found:
            return found, mend
    return message, "see the message"
