"""`sdst demo --web` on a demo that is finished: the page is served and opened, and Ctrl-C is an orderly end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from processes import wait_until

from sdst.demo.web import is_finished


@pytest.fixture
def out(exported, video, tmp_path) -> Path:
    """What a finished demo leaves, as far as the page needs it."""
    out = tmp_path / "out"
    shutil.copytree(exported.directory, out / "bundle")
    (out / "videos").mkdir()
    for name in ("train_00000.mp4", "val_00000.mp4"):
        shutil.copy(video, out / "videos" / name)
    (out / "summary.json").write_text("{}")
    return out


def test_the_page_is_served_and_opened(out, tmp_path):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{opened}"\n')
    browser.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", _WITH_CTRL_C, "demo", "--web", "--out", str(out)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "BROWSER": str(browser), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        (page,) = re.findall(r"^The page: (http://127\.0\.0\.1:\d+/\?find=val_)$", said.strip())
        wait_until(lambda: opened.is_file() and opened.read_text() == f"{page}\n")
        with urllib.request.urlopen(page.replace("?find=", "v1/files?part=")) as answer:
            names = json.load(answer)["names"]
        process.send_signal(signal.SIGINT)

        assert process.wait(120) == 0
        assert names == ["val_00000.mp4"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# A runner in the background may have told its children to ignore Ctrl-C.
_WITH_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from sdst.cli import main
sys.exit(main())
"""


def test_a_demo_that_is_not_finished_is_run(out):
    (out / "summary.json").unlink()

    assert not is_finished(out)
