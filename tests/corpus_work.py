"""Work of corpus workers that dies, fails or waits as a video's id asks for, without any model."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from sdst_runtime.corpus.work import Done, Task
from sdst_runtime.errors import InputError


@dataclass(frozen=True)
class Work:
    """Writes a line into a file a video at each attempt. `opened` by workers of any engine."""

    folder: Path

    def __call__(self, task: Task) -> Done:
        with (self.folder / task.vid).open("a") as log:
            log.write(f"{os.getpid()}\n")
        attempts = len((self.folder / task.vid).read_text().splitlines())
        if task.vid.startswith("dies") or (task.vid.startswith("once") and attempts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if task.vid.startswith("full"):
            raise InputError("cannot write the store: No space left on device")
        if task.vid.startswith("waits"):
            time.sleep(60)
        return Done(task.vid, 7)


@dataclass(frozen=True)
class Opens:
    """What a worker is started with."""

    folder: Path
    fault: str = ""

    def __call__(self) -> Work:
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault:
            raise InputError(self.fault)
        return Work(self.folder)


def tasks(*vids: str) -> list[Task]:
    """Videos with these ids."""
    return [Task(vid, f"/videos/{vid}.mp4") for vid in vids]


def attempts(folder: Path) -> dict[str, list[int]]:
    """Process ids that worked at each video."""
    return {path.name: [int(line) for line in path.read_text().split()] for path in folder.iterdir()}
