"""The engine of Ray Data gives the store and the rows of the local one; its worker and its driver killed.

Ray is no part of what the tests install: `pip install '.[corpus]'`. A bundle and videos come from outside, as an
environment with Ray need not have torch:  SDST_CORPUS_BUNDLE=BUNDLE SDST_CORPUS_VIDEOS=FOLDER pytest FILE
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray.data", reason="needs Ray: pip install '.[corpus]'")

SENTENCES = ("when does the red circle move to the left?", "a blue square spins")


@pytest.fixture(scope="module")
def world() -> tuple[Path, Path]:
    """A bundle and a folder of at least 8 videos."""
    given = [os.environ.get(name) for name in ("SDST_CORPUS_BUNDLE", "SDST_CORPUS_VIDEOS")]
    if not all(given):
        pytest.skip("needs SDST_CORPUS_BUNDLE, a bundle, and SDST_CORPUS_VIDEOS, a folder of videos")
    bundle, videos = (Path(one) for one in given if one)
    assert len(list(videos.iterdir())) >= 8
    return bundle, videos


def start(world: tuple[Path, Path], out: Path, engine: str) -> subprocess.Popen[str]:
    bundle, videos = world
    command = [sys.executable, "-m", "sdst", "corpus", "index", str(videos), "--bundle", str(bundle), "--out", str(out)]
    return subprocess.Popen([*command, "--engine", engine, "--workers", "2"], stderr=subprocess.PIPE, text=True)


def run(world: tuple[Path, Path], out: Path, engine: str) -> str:
    """What it said, when it ended well."""
    with start(world, out, engine) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory) -> Path:
    """The store that the local engine makes."""
    out = tmp_path_factory.mktemp("local") / "store"
    run(world, out, "local")
    return out


def require_same(store: Path, other: Path) -> None:
    """Files equal to the byte, and so the rows."""
    from sdst_runtime.corpus.ask import Corpus

    first, second = ({p.name: p.read_bytes() for p in (one / "videos").iterdir()} for one in (store, other))
    assert first == second
    rows = []
    for place in (store, other):
        with Corpus.open(place, threads=1) as corpus:
            rows.append(corpus.ask(SENTENCES, top=10))
    assert rows[0] == rows[1]


def actors() -> Iterator[int]:
    """Processes of Ray that hold the models: those that run _RayIndexer."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"RayIndexer" in (folder / "cmdline").read_bytes() and os.getuid() == folder.stat().st_uid:
                yield int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue


def wait_for_files(store: Path, count: int) -> None:
    deadline_s = time.monotonic() + 180
    while len(list(store.glob("videos/*.safetensors"))) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_it_makes_the_store_of_the_local_engine(world, undisturbed, tmp_path):
    said = run(world, tmp_path / "store", "ray")
    assert " 0 failed" in said
    require_same(tmp_path / "store", undisturbed)


def test_a_killed_worker_loses_and_doubles_nothing(world, undisturbed, tmp_path):
    store = tmp_path / "store"
    with start(world, store, "ray") as process:
        wait_for_files(store, 1)
        victim = next(actors())
        os.kill(victim, signal.SIGKILL)
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert f"{len(list(world[1].iterdir()))} videos indexed" in said
    require_same(store, undisturbed)


def test_a_killed_driver_goes_on_where_it_ended(world, undisturbed, tmp_path):
    store = tmp_path / "store"
    with start(world, store, "ray") as process:
        wait_for_files(store, 1)
        process.kill()
        process.wait()
    deadline_s = time.monotonic() + 60
    while any(True for _ in actors()):
        assert time.monotonic() < deadline_s, "Ray's workers outlived their driver"
        time.sleep(0.1)
    said = run(world, store, "ray")
    assert "0 were there" not in said
    require_same(store, undisturbed)
