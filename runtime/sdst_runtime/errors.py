"""Errors that a person at a terminal can act on.

Every message is one line: what was expected, what came, and what to do. The command line prints it without a
traceback and exits with code 2, or 1 for a PartialFailure; library callers catch `SdstError`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from .distribution import install_command

LONGEST = 2000  # characters of a message: what a file holds may be repeated in it


class SdstError(Exception):
    """Base of every error this project raises on purpose. Of a very long message both ends stay: what, and the mend."""

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 4 :]}"
        super().__init__(message)


class InputError(SdstError):
    """A file, video, sentence or array that a caller gave and that cannot be used."""


class InUseError(InputError):
    """A folder that another process is writing to."""


class ContractError(SdstError):
    """Two things that must have been made alike were not: the message names the field and both values."""


class DependencyError(SdstError):
    """An optional package is missing: the message gives the command that installs it."""


class SessionError(SdstError):
    """A model could not be run: its runner failed, or its session is closed or belongs to another process."""


class DeviceError(SdstError):
    """The GPU or its driver refused some work: the message is the driver's."""


class PartialFailure(SdstError):
    """Some of many could not be done; all others are, and stay. The command exits with 1."""


@contextmanager
def foreign_errors(subject: str, mend: str, kind: type[SdstError] = InputError) -> Iterator[None]:
    """Whatever a foreign library raises within the block becomes an error "SUBJECT (its words); MEND".

    Libraries keep no list of what they raise, and a panic in Rust is not even an Exception.
    """
    try:
        yield
    except (SdstError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise kind(f"{subject} ({told}); {mend}") from error


def require_package(module: str, extra: str) -> ModuleType:
    """Import `module`, or raise `DependencyError` naming the extra of this project that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).split(".")[0]
        if missing.startswith("sdst"):  # a fault of ours, not of the installation
            raise
        raise DependencyError(
            f"{missing} is needed here and cannot be imported ({error}): {install_command(extra)}"
        ) from error


def require_library(module: str) -> ModuleType:
    """Import `module` of a package that this project never installs, or raise `DependencyError` with pip's line."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).split(".")[0]
        raise DependencyError(
            f"{missing} is needed here and cannot be imported ({error}): run  pip install {missing}"
        ) from error
