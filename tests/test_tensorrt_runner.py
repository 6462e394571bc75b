"""`make test-tensorrt`: where headers come from, what its table says, and that its exit code is honest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("tensorrt_runner", ROOT / ".ci" / "tensorrt.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tensorrt_runner"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(runner, monkeypatch, tmp_path):
    """The runner with its files in `tmp_path`."""
    monkeypatch.setattr(runner, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(runner, "REPORT", tmp_path / "report.xml")
    monkeypatch.delenv("TENSORRT_HEADERS", raising=False)
    return runner


def headers(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInfer.h").touch()
    return folder


def test_headers_are_found_by_folder_and_by_version(here, monkeypatch, tmp_path):
    found = headers(tmp_path / "stated" / "10.3" / "include")
    assert here.find_headers(str(found)) == found
    assert here.find_headers(str(found.parent)) == found
    monkeypatch.setenv("TENSORRT_HEADERS", str(tmp_path / "stated"))
    assert here.find_headers("10.3") == found


def test_headers_of_a_version_are_fetched_once(here, monkeypatch, tmp_path):
    origin = tmp_path / "origin"
    headers(origin / "include")
    (origin / "other").mkdir()
    (origin / "other" / "big").touch()
    for command in (
        ("init", "--quiet", "--initial-branch", "release/10.3"),
        ("add", "."),
        ("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "headers"),
    ):
        subprocess.run(["git", "-C", origin, *command], check=True)
    monkeypatch.setattr(here, "REPOSITORY", origin.as_uri())
    expected = tmp_path / "fetched" / "10.3" / "include"
    assert here.find_headers("10.3") == expected
    assert (expected / "NvInfer.h").is_file()
    monkeypatch.setattr(here, "REPOSITORY", (tmp_path / "gone").as_uri())
    assert here.find_headers("10.3") == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nowhere", "test-tensorrt: nowhere: expected a folder with NvInfer.h or include/NvInfer.h in it"),
        ("9.9", "test-tensorrt: headers of TensorRT 9.9: expected them in $TENSORRT_HEADERS/9.9/include or as branch"),
        (":", "test-tensorrt: HEADERS: expected folders or versions, parted by colons, got none"),
    ],
)
def test_missing_headers_are_one_line(here, monkeypatch, tmp_path, capsys, entry, message):
    monkeypatch.setattr(here, "REPOSITORY", (tmp_path / "gone").as_uri())
    assert here.main([entry]) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith(message)
    assert not (tmp_path / "fetched" / "9.9").exists()


def test_the_files_that_need_headers(here):
    names = {path.name for path in here.needing_headers()}
    assert {"test_plugin_contract.py", "test_registry.py", "test_tensorrt_mock.py", "test_engine_build.py"} <= names
    assert "test_plugins_command.py" not in names


@pytest.mark.parametrize(
    ("bodies", "code", "shown"),
    [
        (("pass", "pass"), 0, ["| 10.3 | 1 passed |", "| bindings 10.3.0 | 1 passed |"]),
        (
            ("pass", "pytest.skip('needs a tool')"),
            0,
            ["| 10.3 | 1 passed |", "| bindings 10.3.0 | 1 skipped |", "skipped 1: needs a tool"],
        ),
        (
            ("pytest.skip('needs a tool')", "pytest.skip('needs a tool')"),
            1,
            ["skipped 2: needs a tool", "test-tensorrt: no test passed: everything was skipped or failed"],
        ),
        (("pass", "assert False"), 1, ["| 10.3 | 1 passed |", "| bindings 10.3.0 | 1 failed |"]),
    ],
)
def test_the_exit_code_is_honest(here, monkeypatch, tmp_path, capsys, bodies, code, shown):
    ids = ("registry 11.4.0.106-headers 10.3", "float-10.3.0")
    test = tmp_path / "test_some.py"
    test.write_text(
        "import pytest\n"
        f"@pytest.mark.parametrize('n', [0, 1], ids={ids!r})\n"
        f"def test_it(n):\n    if n == 0:\n        {bodies[0]}\n    else:\n        {bodies[1]}\n"
    )
    monkeypatch.setattr(here, "needing_headers", lambda: [test])
    assert here.main([str(headers(tmp_path / "10.3"))]) == code
    lines = capsys.readouterr().out.splitlines()
    assert "| plugin built with headers of | registry 11.4.0.106 |" in lines
    assert [line for line in shown if line not in lines] == []
