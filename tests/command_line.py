"""`sdst ARGUMENTS` within the process of a test, and what it says."""

from __future__ import annotations

from sdst.cli import main


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `sdst ARGUMENTS`."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # tyro's own usage errors
        code = stop.code if isinstance(stop.code, int) else 1
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *arguments: object) -> str:
    """The error line of a command that must fail as bad input does."""
    code, out, err = run(capsys, *arguments)
    lines = err.strip().splitlines()
    assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
    assert lines[0].startswith("error: ")
    assert "Traceback" not in err
    return lines[0]
