"""The short form of tests/fuzz.py: some damaged inputs of every format, and that the fuzz sees what it looks for."""

from __future__ import annotations

import fuzz
import pytest
from fuzz_formats import FORMATS, Format

HEAVY = ("checkpoint", "backbone", "release", "state", "run.json", "run config", "steps.jsonl", "metrics.jsonl",
         "val_metrics.json", "onnx projection", "config")  # fmt: skip  # by hand: each starts torch, or runs a model


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in HEAVY])
def test_damaged_files_end_in_one_line(exported, name):
    found = fuzz.fuzz(name, exported.directory.parent, seed=0, count=12)
    assert not found.failed, found.faults
    assert found.counts.total() == 12
    assert found.counts["error"] > 0


def _hang(folder):
    import time

    if (folder / "a").read_bytes() != b"[1]":
        time.sleep(60)


def _crash(folder):
    import os

    if (folder / "a").read_bytes() != b"[1]":
        os.abort()


def _raise(folder):
    if (folder / "a").read_bytes() != b"[1]":
        raise ZeroDivisionError("no SdstError")


@pytest.mark.parametrize(("read", "kind"), [(_hang, "hang"), (_crash, "crash"), (_raise, "traceback")])
def test_the_fuzz_sees_faults(monkeypatch, tmp_path, read, kind):
    """Children are started with a module that has one more format."""
    (tmp_path / "extra.py").write_text(
        "import sys, fuzz, fuzz_formats, test_fuzz\n"
        f"fuzz_formats.FORMATS['faulty'] = test_fuzz.faulty(test_fuzz.{read.__name__})\n"
        "fuzz._serve('faulty', fuzz.Path(sys.argv[-1]))\n"
    )
    monkeypatch.setitem(FORMATS, "faulty", faulty(read))
    monkeypatch.setattr(fuzz, "LIMIT_S", 3.0)
    monkeypatch.setattr(fuzz, "CHILD", str(tmp_path / "extra.py"))
    monkeypatch.setenv("PYTHONPATH", str(fuzz.Path(fuzz.__file__).parent))
    found = fuzz.fuzz("faulty", tmp_path, seed=1, count=2)
    assert found.counts[kind] >= 1
    assert found.failed


def faulty(read) -> Format:
    return Format("a", lambda folder, exported: (folder / "a").write_bytes(b"[1]"), read, FORMATS["bundle"].damages)
