"""`sdst demo` replaces what a demo made and nothing else, and one works in a folder at a time."""

from __future__ import annotations

import pytest

from sdst.cli import main
from sdst.demo.place import clear_run, demo_folder
from sdst_runtime.errors import InputError, InUseError


def test_a_run_that_no_demo_made_is_kept(tmp_path):
    thesis = tmp_path / "run" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(InputError, match="is no run that a demo of this version made; move it away or choose"):
        clear_run(tmp_path)
    assert thesis.read_text() == "years of work"


def test_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / ".sdst-demo").touch()
    (tmp_path / "run").symlink_to(precious)
    with pytest.raises(InputError, match="is no run"):
        clear_run(tmp_path)
    assert (precious / ".sdst-demo").exists()


def test_the_demos_own_run_is_cleared(tmp_path):
    run = clear_run(tmp_path)
    (run / "config.json").write_text("{}")
    (run / "state").mkdir()
    assert clear_run(tmp_path) == run
    assert [path.name for path in run.iterdir()] == [".sdst-demo"]


@pytest.mark.parametrize("name", ["run", "bundle", "videos", "report.html"])
def test_the_command_refuses_a_folder_with_others_things(tmp_path, capsys, name):
    place = tmp_path / name
    if "." in name:
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["demo", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {tmp_path} holds {name}, which no demo made; choose another --out"
    assert sorted(tmp_path.rglob("*")) == before


def test_two_demos_in_one_folder(tmp_path):
    import subprocess
    import sys

    code = "from pathlib import Path; from sdst.demo.place import demo_folder\n"
    code += f"with demo_folder(Path({str(tmp_path)!r})): pass"
    with demo_folder(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert InUseError.__name__ in done.stderr
    assert "is in use by another process" in done.stderr
    subprocess.run([sys.executable, "-c", code], check=True)
