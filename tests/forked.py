"""What a session says in a fork of the process that opened it."""

from __future__ import annotations

import os
from collections.abc import Callable

from sdst_runtime.errors import SessionError


def said_by_a_fork(run: Callable[[], object]) -> tuple[int, str]:
    """The child's process number and the SessionError that `run` raised there; nothing said where it raised none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run()
        except SessionError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return child, stream.read()
