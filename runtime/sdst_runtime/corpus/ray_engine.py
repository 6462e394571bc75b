"""Workers of a Ray cluster, through Ray Data: the same work, on the machines that RAY_ADDRESS names or on this one.

Ray restarts a worker that died and gives its videos to another. It reports what came of a video at least once; here
that becomes once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, SdstError, require_package
from .work import Done, Indexer, Task

BLOCK = 4  # videos that a worker takes at a time, at most: those of a killed one are done again
_CPUS = 0.5  # of a worker, as Ray counts: workers that hold all CPUs starve its own tasks


def run_ray(tasks: Sequence[Task], bundle: Path, store: Path, threads: int | None, workers: int) -> Iterator[Done]:
    """What came of each task, once, as it is done. All machines see bundle, store and videos under the same paths.

    Raises DependencyError without Ray, InputError when a task cannot be finished, as when the store cannot be written.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = require_package("ray", "corpus")
    data: Any = require_package("ray.data", "corpus")
    own = not ray.is_initialized()
    if own:
        _connect(ray)
    seen: set[str] = set()
    try:
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        rows = [{"vid": task.vid, "path": task.path} for task in tasks]
        blocks = max(workers, -(-len(rows) // BLOCK))
        done = data.from_items(rows, override_num_blocks=min(blocks, len(rows))).map(
            _RayIndexer, fn_constructor_args=(str(bundle.absolute()), str(store.absolute()), threads),
            compute=data.ActorPoolStrategy(size=min(workers, len(rows))), num_cpus=_CPUS,
        )  # fmt: skip
        for row in done.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            if row["vid"] not in seen:
                seen.add(row["vid"])
                yield Done(row["vid"], row["clips"], row["reason"])
    except ray.exceptions.RayError as error:
        raise InputError(
            f"ray: {' '.join(str(error).split())[-300:]}; run again, which goes on where it ended"
        ) from error
    finally:
        if own:
            ray.shutdown()


class _RayIndexer:
    """An Indexer between rows of Ray Data."""

    def __init__(self, bundle: str, store: str, threads: int | None) -> None:
        self._indexer, self._error = None, ""
        try:
            self._indexer = Indexer(Path(bundle), Path(store), threads)
        except SdstError as error:  # Ray would start an actor that fails again and again
            self._error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        done, error = Done(row["vid"], 0), self._error
        if self._indexer is not None:
            try:
                done = self._indexer(Task(row["vid"], row["path"]))
            except SdstError as failure:
                error = str(failure)
        return {"vid": done.vid, "clips": done.clips, "reason": done.reason, "error": error}


def _connect(ray: Any) -> None:
    """To the cluster of RAY_ADDRESS; without it Ray starts on this machine, reachable from here alone."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING,
            _node_ip_address="127.0.0.1",
        )  # fmt: skip
