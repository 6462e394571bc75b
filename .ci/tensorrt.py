"""`make test-tensorrt`: all tests that need TensorRT's headers, once, and a table of what passed.

    .venv/bin/python .ci/tensorrt.py 10.3:10.16:11.0:11.1

Entries are parted by colons; each is a folder with NvInfer.h, or a version. Headers of a version are those in
$TENSORRT_HEADERS/VERSION/include, else they are fetched by git from NVIDIA's repository into build/tensorrt/VERSION.
The tests are the files under tests/ that import one of HELPERS.
Exit code: 0 every test that ran passed and some did, 1 one failed or all were skipped, 2 headers are missing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FETCHED = ROOT / "build" / "tensorrt"
REPORT = FETCHED / "report.xml"
REPOSITORY = "https://github.com/NVIDIA/TensorRT.git"
HELPERS = ("tensorrt_headers", "mocked_tensorrt", "lean_tensorrt")
KINDS = ("passed", "failed", "skipped")
# What the name of a test says: which headers the plugin was built with, whose registry or bindings it met.
HEADERS, REGISTRY, BINDINGS = r"headers (\d+\.\d+)", r"registry (\d+[\d.]*)", r"[\[-](\d+\.\d+\.\d[\d.]*)[\]-]"


class Missing(Exception):
    """Headers that could not be had."""


@dataclass(frozen=True)
class Outcome:
    """One test: its file and name, one of KINDS, and why it was skipped."""

    file: str
    name: str
    kind: str
    reason: str


def main(arguments: list[str]) -> int:
    try:
        folders = [find_headers(entry) for entry in ":".join(arguments).split(":") if entry]
        if not folders:
            raise Missing("HEADERS: expected folders or versions, parted by colons, got none")
    except Missing as error:
        say(f"test-tensorrt: {error}")
        return 2
    files = needing_headers()
    say(f"headers {', '.join(map(str, folders))}; {len(files)} files of tests")
    environment = os.environ | {"TENSORRT_INCLUDE_DIR": os.pathsep.join(map(str, folders))}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", f"--junitxml={REPORT}"]
    code = subprocess.run([*command, *map(str, files)], cwd=ROOT, env=environment, check=False).returncode
    if not REPORT.is_file():
        say(f"test-tensorrt: pytest wrote no report (exit code {code})")
        return 1
    outcomes = read_report(REPORT)
    say("\n".join(tables(outcomes)))
    passed = sum(outcome.kind == "passed" for outcome in outcomes)
    if not passed:
        say("test-tensorrt: no test passed: everything was skipped or failed")
    return int(code != 0 or not passed)


def find_headers(entry: str) -> Path:
    """The folder of NvInfer.h for an entry of HEADERS. Raises Missing."""
    if not re.fullmatch(r"\d+\.\d+", entry):
        folder = Path(entry).expanduser().absolute()
        found = next((place for place in (folder, folder / "include") if (place / "NvInfer.h").is_file()), None)
        if found is None:
            raise Missing(
                f"{entry}: expected a folder with NvInfer.h or include/NvInfer.h in it, or a version as 10.16"
            )
        return found
    stated = os.environ.get("TENSORRT_HEADERS")
    if stated and (Path(stated) / entry / "include" / "NvInfer.h").is_file():
        return (Path(stated) / entry / "include").absolute()
    return fetch(entry, FETCHED / entry)


def fetch(version: str, folder: Path) -> Path:
    """The headers of a version in `folder`, fetched when they are not there. Raises Missing."""
    if not (folder / "include" / "NvInfer.h").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        say(f"fetching the headers of TensorRT {version} from {REPOSITORY}")
        clone = ["git", "clone", "--quiet", "--depth", "1", "--filter=blob:none", "--sparse"]
        clone += ["--branch", f"release/{version}", REPOSITORY, str(folder)]
        for command in (clone, ["git", "-C", str(folder), "sparse-checkout", "set", "include"]):
            if subprocess.run(command, check=False).returncode:
                shutil.rmtree(folder, ignore_errors=True)
                raise Missing(
                    f"headers of TensorRT {version}: expected them in $TENSORRT_HEADERS/{version}/include or as branch"
                    f" release/{version} of {REPOSITORY}; name a folder that has them"
                )
    return folder / "include"


def needing_headers() -> list[Path]:
    """The files of tests that import one of HELPERS."""
    imports = re.compile(rf"^from (?:{'|'.join(HELPERS)}) import", re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT) for path in files if imports.search(path.read_text(encoding="utf-8"))]


def read_report(path: Path) -> list[Outcome]:
    outcomes = []
    for case in ElementTree.parse(path).iter("testcase"):
        ends = {child.tag: child.get("message") or "" for child in case}
        kind = "failed" if ends.keys() & {"failure", "error"} else "skipped" if "skipped" in ends else "passed"
        file = (case.get("classname") or "").split(".")[-1]
        outcomes.append(Outcome(file, case.get("name") or "", kind, ends.get("skipped", "")))
    return outcomes


def tables(outcomes: Iterable[Outcome]) -> list[str]:
    """Lines in Markdown: what met each version of the headers, what ran under each version's bindings, the skips."""
    by_headers: dict[str, dict[str, Counter[str]]] = {}
    by_bindings: dict[str, Counter[str]] = {}
    columns: list[str] = []
    skipped: Counter[str] = Counter()
    for outcome in outcomes:
        headers, registry = re.search(HEADERS, outcome.name), re.search(REGISTRY, outcome.name)
        bindings = re.search(BINDINGS, outcome.name)
        if headers:
            column = f"registry {registry[1]}" if registry else "contract harness"
            columns = sorted({*columns, column})
            by_headers.setdefault(headers[1], {}).setdefault(column, Counter())[outcome.kind] += 1
        else:
            row = f"registry {registry[1]}, any headers" if registry else ""
            row = row or (f"bindings {bindings[1]}" if bindings else f"other tests of {outcome.file}")
            by_bindings.setdefault(row, Counter())[outcome.kind] += 1
        if outcome.kind == "skipped":
            skipped[outcome.reason] += 1
    lines = ["", row_of("plugin built with headers of", *columns), row_of(*["---"] * (1 + len(columns)))]
    for version in sorted(by_headers, key=lambda text: [int(part) for part in text.split(".")]):
        lines.append(row_of(version, *(cell(by_headers[version].get(column)) for column in columns)))
    lines += ["", row_of("other tests", "result"), row_of("---", "---")]
    lines += [row_of(row, cell(by_bindings[row])) for row in sorted(by_bindings)]
    return [*lines, "", *(f"skipped {count}: {reason}" for reason, count in skipped.items())]


def row_of(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def cell(counts: Counter[str] | None) -> str:
    """ "12 passed", "11 passed, 1 failed", "not run"."""
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]) if counts else "not run"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
