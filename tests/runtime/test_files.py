"""Files arrive whole, whoever writes at the same time and whatever lies under a temporary name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sdst_runtime import scratch
from sdst_runtime.errors import InputError
from sdst_runtime.files import atomic_path, temporary_folder, write_bytes

SIZE = 1 << 16


def test_four_threads_on_one_file_never_show_a_torn_one(tmp_path):
    target, stop = tmp_path / "target", threading.Event()
    write_bytes(target, bytes(SIZE))
    faults: list[Exception] = []

    def write(letter: bytes) -> None:
        try:
            for _ in range(200):
                write_bytes(target, letter * SIZE)
        except Exception as error:  # noqa: BLE001  shown below
            faults.append(error)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    seen = set()

    def read() -> None:
        while not stop.is_set():
            content = target.read_bytes()
            seen.add((len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert faults == []
    assert seen == {(SIZE, 1)}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "file", "folder"])
def test_what_lies_under_a_temporary_name_is_left_alone(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(scratch.secrets, "token_hex", lambda count: "0" * 2 * count)
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    planted = out / f".sdst-{'0' * 16}.tmp"
    if kind == "link to a file":
        victim.write_text("precious")
        planted.symlink_to(victim)
    elif kind == "link to a folder":
        victim.mkdir()
        planted.symlink_to(victim)
    elif kind == "file":
        planted.write_text("precious")
    else:
        planted.mkdir()
        (planted / "target").write_text("precious")
        monkeypatch.setattr(scratch, "sweep", lambda parent: None)
    with pytest.raises(InputError, match=f"cannot write {out / 'target'}"):
        write_bytes(out / "target", b"new")
    assert not (out / "target").exists()
    kept = {"file": planted, "folder": planted / "target", "link to a file": victim}.get(kind)
    assert kept is None or kept.read_text() == "precious"
    assert kind != "link to a folder" or list(victim.iterdir()) == []


def test_a_killed_process_leaves_nothing_that_the_next_does_not_remove(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom sdst_runtime.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as path:\n"
        "    path.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "target")], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".sdst-")
    scratch.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_use_is_not_swept(tmp_path):
    with atomic_path(tmp_path / "target") as path:
        path.write_bytes(b"being written")
        scratch.sweep(tmp_path)
        code = f"from pathlib import Path; from sdst_runtime.scratch import sweep; sweep(Path({str(tmp_path)!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "target").read_bytes() == b"being written"


def test_the_file_gets_the_mode_of_the_users_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "target", b"content")
    finally:
        os.umask(old)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o640


def test_a_temporary_folder_is_private_and_goes(tmp_path):
    with temporary_folder(tmp_path / "out") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.parent == tmp_path / "out"
        (folder / "model").write_bytes(b"large")
    assert list(Path(tmp_path / "out").iterdir()) == []
