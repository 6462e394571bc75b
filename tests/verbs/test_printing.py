"""Names and sentences come out of the command as they went in: no emoji codes, no markup."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.table import Table

import sdst
from sdst.cli import main
from sdst.consoles import description, make_console
from sdst.doctor import print_table
from sdst.progress import progress_of
from sdst_runtime.doctor.examine import Check, Examination

NAME = ":smile: [red]x[/red] [/] [link=a]b {0} \\[bold]"


def test_lines_tables_and_bars():
    stream = io.StringIO()
    console = make_console(file=stream, width=200, force_terminal=True, color_system=None)
    table = Table("a", title=f"title {NAME}")
    table.add_column(NAME)
    table.add_row(f"cell {NAME}", NAME)
    console.print(NAME, NAME)
    console.print(table)
    with progress_of((description(),), console) as bar:
        bar.add_task(f"task {NAME}", total=1)
    shown = stream.getvalue()

    assert shown.count(NAME) >= 6
    for part in ("title ", "cell ", "task "):
        assert part + NAME in shown


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    print_table(Examination([Check(NAME, "fault", f"found {NAME}", f"mend {NAME}")]))
    shown = capsys.readouterr().out
    assert all(part + NAME in shown for part in ("", "found ", "mend "))


def test_a_data_set_with_such_a_name(capsys, tmp_path):
    root = tmp_path / ":smile: [red]x"
    root.mkdir()
    assert main(["data", "check", "qvhighlights", "--root", str(root)]) == 2
    out, error = capsys.readouterr()
    assert f"cannot read {root}/highlight_train_release.jsonl" in out
    assert f"in the data under {root}" in error


@pytest.mark.parametrize("path", sorted(Path(sdst.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_other_way_to_print_with_rich(path):
    if path.name == "consoles.py":
        return
    source = path.read_text()
    for way in (
        r"(?<!make_)(?<!\w)Console\(",
        r"\bTextColumn\(",
        r"rich\.markup",
        r"from rich import print",
        r"\[/?bold\]",
    ):
        assert not re.search(way, source), way
