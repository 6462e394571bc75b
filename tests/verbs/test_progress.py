"""How far a long work is: a bar on a terminal, a line a minute elsewhere, and stdout left alone."""

from __future__ import annotations

import re
import subprocess
import sys

from sdst import progress

PROGRAM = """
import sys, time
from rich.console import Console
from sdst import progress
progress.make_console = lambda **options: Console(file=sys.stderr, force_terminal=True, width=80, markup=False)
with progress.told("encoding [b]a[/b].mp4", "clips") as bar:
    for done in range(1, 4):
        bar.show(done, 4)
        with bar.hidden():
            print("answer", done)
"""


def test_a_bar_stays_off_stdout():
    """rich moves what is printed under a bar to the bar's console, unless it is told not to."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert done.stdout == "answer 1\nanswer 2\nanswer 3\n"
    assert "encoding [b]a[/b].mp4" in done.stderr
    assert "/4" in done.stderr


def test_elsewhere_a_line_a_minute(capsys, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    bar = progress.Told("encoding a.mp4", "clips")
    for done, now_s[0] in ((10, 30.0), (20, 61.0), (30, 90.0), (40, 130.0)):
        bar.show(done, 80)
    now_s[0] = 191.0
    bar.name("b.mp4: 16 clips")

    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\s+", " ", line) for line in lines] == [
        "encoding a.mp4: 20/80, 3 min left (clips)",
        "encoding a.mp4: 40/80, 2 min left (clips)",
        "b.mp4: 16 clips",
    ]
