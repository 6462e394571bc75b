"""docs/serving.md against the server: its Python runs, its limits are the defaults, its codes are all of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict

from places import ROOT
from served import serving

from sdst_runtime.serving.counters import Counters
from sdst_runtime.serving.limits import Limits
from sdst_runtime.serving.refusals import STATUS

TEXT = (ROOT / "docs" / "serving.md").read_text()


def test_the_python_of_the_docs_runs(exported, video, tmp_path, monkeypatch, capsys):
    (source,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shutil.copy(video, tmp_path / "VIDEO.mp4")
    monkeypatch.chdir(tmp_path)
    with serving(exported.directory, tmp_path / "served") as server:
        exec(source.replace(":8080", f":{server.port}"), {})

    said = capsys.readouterr().out.splitlines()
    assert [re.sub(r"(?: -?[\d.e-]+){3}$", "", line) for line in said] == ["a ring grows", "a blue square blinks"]


def test_the_limits_of_the_docs_are_the_defaults():
    said = {
        name.replace("-", "_"): float(value) for name, value in re.findall(r"^\| `--([\w-]+)` \| (\d+) \|", TEXT, re.M)
    }

    assert said == asdict(Limits())


def test_the_codes_of_the_docs_are_all():
    table = TEXT[TEXT.index("## Refusals") : TEXT.index("## Running it")]
    rows = re.findall(r"^\| (\d[\d, ]*) \| (.*) \|$", table, re.M)
    said = {
        code: int(status)
        for statuses, codes in rows
        for status, part in zip(statuses.split(", "), codes.split("; "), strict=True)
        for code in re.findall(r"`(\w+)`", part)
        if code in STATUS
    }

    assert said == STATUS


def test_the_metrics_of_the_docs_are_all():
    said = set(re.findall(r"`(sdst_\w+)`", TEXT))
    own = {
        metric.name + ("_total" if metric.type == "counter" else "") for metric in Counters().registry.collect()
    }  # fmt: skip

    assert said == own
