"""A pool of workers' shares, each used by one thread at a time; who finds none free waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Pool(Generic[Item]):
    """Hands out items, the one used last first, so that a single caller keeps to one."""

    def __init__(self, items: Sequence[Item], closed: Callable[[], Exception]) -> None:
        """`closed` makes the error for those who ask a closed pool, or wait while it closes."""
        self._free, self._all = list(items), len(items)
        self._is_closed, self._error = False, closed
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[Item]:
        """An item for the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._free)
            self._require_open()
            item = self._free.pop()
        try:
            yield item
        finally:
            with self._changed:
                self._free.append(item)
                self._changed.notify_all()

    @contextmanager
    def all(self) -> Iterator[list[Item]]:
        """Every item for the block, once none is in use."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or len(self._free) == self._all)
            self._require_open()
            items, self._free = self._free, []
        try:
            yield items
        finally:
            with self._changed:
                self._free = items
                self._changed.notify_all()

    def close(self) -> list[Item]:
        """All items, once none is in use; nothing when it is closed already."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == self._all)
            items, self._free, self._all = self._free, [], 0
            return items

    def _require_open(self) -> None:
        if self._is_closed:
            raise self._error()
