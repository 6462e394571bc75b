"""`make test-matrix`: what it installs and how it compares. The jobs themselves run in CI."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest
from places import ROOT

pytest.importorskip("tomllib", reason="the matrix is run by Python 3.11 or newer")
PATH = ROOT / ".ci" / "matrix.py"


@pytest.fixture(scope="module")
def matrix():
    spec = importlib.util.spec_from_file_location("matrix", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["matrix"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lower_bounds_become_pins(matrix):
    assert matrix.lower_bounds(["av>=17,<20", "numpy>=1.26", "pyright[nodejs]>=1.1.390", "a-b<3,>=2.1"]) == [
        "av==17", "numpy==1.26", "pyright==1.1.390", "a-b==2.1",
    ]  # fmt: skip
    with pytest.raises(SystemExit, match="expected a lower bound, >=, in 'numpy<3'"):
        matrix.lower_bounds(["numpy<3"])


def test_every_requirement_of_a_plain_installation_has_a_lower_bound(matrix):
    oldest, serving, newest = map(matrix.wanted, matrix.JOBS)
    assert [re.match(r"[\w-]+", line)[0] for line in serving if line not in newest] == [
        "fastapi", "uvicorn", "prometheus-client",
    ]  # fmt: skip
    assert len(oldest) == len(newest) == 11  # nine, and pytest and hypothesis
    assert "av==17" in oldest
    assert "av>=17,<20" in newest


def test_answers_are_compared_by_value(matrix):
    pinned = {"moments": [{"start_s": 1.0, "score": 0.5}], "name": "a"}
    assert matrix.differences({"moments": [{"start_s": 1.0005, "score": 0.5}], "name": "a"}, pinned, "ground") == []
    assert matrix.differences({"moments": [{"start_s": 1.5, "score": 0.5}], "name": "a"}, pinned, "ground") == [
        "ground.moments[0].start_s: expected 1.0 as in the pinned environment, got 1.5"
    ]
    for other in ({"moments": [], "name": "a"}, {"name": "a"}, pinned | {"name": "b"}):
        assert len(matrix.differences(other, pinned, "ground")) == 1


def test_an_interpreter_that_is_not_there_is_a_reason_to_skip(matrix, tmp_path):
    assert matrix.find_python("3.99") is None
    line = matrix.try_job(matrix.Job("far", "3.99"), tmp_path).line()
    assert line.startswith("far          | Python 3.99 | skipped | no python3.99 on PATH or in ~/.pyenv/versions")
