"""What `make gpu-check` can be held to without a GPU: its byte count, its forms, its targets, and how it ends.

Shapes: B batch, T clips, M moments, F width, H heads, P points, D depth, E = 3 * 2 * H * P.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from rdsa_cases import SMALL_CASES, RdsaCase, make_inputs

from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle, sampling
from sdst_runtime.errors import InputError

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # pyright: ignore[reportMissingImports]
import rdsa_forms  # pyright: ignore[reportMissingImports]
import rdsa_report  # pyright: ignore[reportMissingImports]

# On exact clip centres rounding decides whether a share is zero; and some heads or ends fill no whole sectors.
COUNTED = [case for case in SMALL_CASES if case.offsets != "on_clips" and case.H * case.P % 4 == 0]


def tensors(case: RdsaCase, dtype: torch.dtype) -> rdsa_forms.Inputs:
    inputs = {name: torch.from_numpy(array) for name, array in make_inputs(case).items()}
    value = inputs["value"].to(dtype)
    return rdsa_forms.Inputs(value, inputs["endpoints"], inputs["reference"], inputs["length"], case.H, case.P)


def sectors_of(first_byte: int, count: int) -> set[int]:
    return {byte // 32 for byte in range(first_byte, first_byte + count)}


def neighbours(index: float, n: int) -> list[int]:
    return [clip for clip in range(n) if abs(index - clip) < 1]


def counted_by_hand(case: RdsaCase, bytes_a_value: int) -> int:
    """Byte by byte, from what the oracle says of places."""
    inputs = make_inputs(case)
    D = case.F // case.H
    value_row, end_row = case.F * bytes_a_value, 2 * case.H * case.P * 4
    value_sectors, endpoints_sectors = set(), set()
    for b in range(case.B):
        n = int(inputs["length"][b])
        places, _ = sampling(inputs["endpoints"][b, :n], inputs["reference"][b], case.H, case.P)
        for m in range(case.M):
            centre, width = (float(x) for x in inputs["reference"][b, m])
            for end, position in enumerate((centre - width / 2, centre, centre + width / 2)):
                index = min(max(min(max(position, 0.0), 1.0) * n - 0.5, 0.0), n - 1.0)
                for clip in neighbours(index, n):
                    endpoints_sectors |= sectors_of(((b * case.T + clip) * 3 + end) * end_row, end_row)
            for h in range(case.H):
                for p in range(case.P):
                    for clip in neighbours(places[m, h, p], n):
                        first = (b * case.T + clip) * value_row + h * D * bytes_a_value
                        value_sectors |= sectors_of(first, D * bytes_a_value)
    result = case.B * case.M * case.F * bytes_a_value
    return 32 * (len(value_sectors) + len(endpoints_sectors)) + result + case.B * case.M * 8 + case.B * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["half", "float"])
@pytest.mark.parametrize("case", COUNTED, ids=str)
def test_moved_bytes_are_the_sectors_that_have_a_share(case, dtype):
    assert rdsa_forms.moved_bytes(tensors(case, dtype)) == counted_by_hand(case, dtype.itemsize)


def test_bytes_of_parts_of_sectors_are_refused():
    case = next(case for case in SMALL_CASES if case.name == "one_of_everything")
    with pytest.raises(InputError, match="32-byte sectors, got 32 and 8 bytes"):
        rdsa_forms.moved_bytes(tensors(case, torch.float16))


def test_a_sample_read_everywhere_moves_everything():
    """One clip, so that every row of it is read: value, endpoints, references, length, result."""
    value, endpoints = torch.zeros(2, 1, 64, dtype=torch.float16), torch.zeros(2, 1, 48)
    reference = torch.tensor([[[0.5, 0.1]] * 3] * 2)
    inputs = rdsa_forms.Inputs(value, endpoints, reference, torch.ones(2, dtype=torch.int32), 2, 4)
    assert rdsa_forms.moved_bytes(inputs) == 2 * (128 + 192 + 3 * 8 + 4 + 3 * 128)


@pytest.mark.parametrize("size", [rdsa_forms.Size(2, 75, 10), rdsa_forms.Size(1, 1024, 5)], ids=str)
def test_the_forms_that_are_timed_agree_with_the_oracle(size):
    inputs = rdsa_forms.make_inputs(size, torch.device("cpu"))
    value, endpoints, reference, length = (x.numpy() for x in inputs.arguments()[:4])
    expected = rdsa_oracle(value, endpoints, reference, length, rdsa_forms.H, rdsa_forms.P)
    out = rdsa_forms.grid_form(*inputs.arguments()).float().numpy()
    np.testing.assert_allclose(out, expected, rtol=6e-4, atol=1e-5 * size.T / 24)


def size_of(B: int, T: int, M: int, **medians: float) -> dict:
    """A size of the benchmark's result; `kernel_warm=2.0` is a median."""
    variants: dict[str, dict] = {}
    for key, us in medians.items():
        name, mode = key.rsplit("_", 1)
        variants.setdefault(name.replace("_graph", ", graph").replace("_", " "), {})[mode] = {"p50": us}
    variants["kernel"]["fraction_of_floor"] = 10.0 / variants["kernel"]["cold"]["p50"]
    variants["torch.compile"] = {"not measured": "the time for compiling was over"}
    return {"B": B, "T": T, "M": M, "bytes": 48_000, "floor_us": 10.0, "variants": variants}


SIZES = [
    size_of(1, 75, 10, kernel_warm=2.0, kernel_cold=4.0, kernel_call=9.0, kernel_graph_warm=1.9,
            empty_kernel_graph_warm=1.6, eager_gather_warm=30.0, eager_gather_call=270.0),
    size_of(1, 1024, 100, kernel_warm=3.0, kernel_cold=5.0, kernel_call=9.0, kernel_graph_warm=2.4,
            empty_kernel_graph_warm=1.6, eager_gather_warm=12.0, eager_gather_call=280.0),
    size_of(256, 1024, 100, kernel_warm=15.0, kernel_cold=12.5, kernel_call=30.0, eager_gather_warm=900.0,
            eager_gather_call=1000.0),
]  # fmt: skip


def test_targets_name_the_worst_size():
    rows = {row["target"]: row for row in rdsa_report.targets(SIZES)}
    assert rows["B 1, graph: kernel / empty kernel"] == {
        "target": "B 1, graph: kernel / empty kernel", "wanted": "at most 1.3", "measured": 1.5,
        "at": "B 1 T 1024 M 100", "met": "no",
    }  # fmt: skip
    assert rows["B 256 T 1024 M 100: floor / kernel, cold"]["measured"] == 0.8
    assert rows["B 256 T 1024 M 100: floor / kernel, cold"]["met"] == "yes"
    assert rows["B 1, warm: eager gather / kernel"]["measured"] == 4.0
    assert rows["B 1, warm: eager gather / kernel"]["met"] == "no"
    assert rows["B 1, call: eager gather / kernel"]["measured"] == 30.0
    assert rows["B 1, call: torch.compile / kernel"]["met"] == "not measured"


def test_the_table_says_what_was_not_measured():
    machine = {"GPU": "none"}
    result = {"machine": machine, "copy_gb_per_s": 4000.0, "sizes": SIZES, "targets": rdsa_report.targets(SIZES)}
    lines = rdsa_report.table(result)
    warm = lines[lines.index("warm, p50 in us") + 2 :]
    cells = [cell.strip() for cell in warm[2].strip("|").split("|")]
    head = [cell.strip() for cell in warm[0].strip("|").split("|")]
    row = dict(zip(head, cells, strict=True))
    assert row["size"] == "B 1 T 75 M 10"
    assert (row["bytes"], row["floor"], row["empty, graph"]) == ("48,000", "10.00", "1.60")
    assert (row["kernel"], row["eager gather"], row["torch.compile"]) == ("2.00", "30.00", "not measured")
    picture = rdsa_report.plot(result)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")


WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["gpu_check.py", "--out", "report"], "gpu-check: expected a GPU and a Python with torch for CUDA, got: "),
        (["gpu_check.py", "--parts", "build,tset"], "gpu-check: --parts: expected some of build,tests,"),
        (["rdsa.py", "--output", "report"], "benchmarks/rdsa.py: expected a CUDA device, torch sees none"),
    ],
    ids=["gpu-check", "unknown part", "rdsa.py"],
)
def test_without_a_gpu_one_line_and_nothing_written(command, expected, tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]]
    done = subprocess.run(script, cwd=tmp_path, env=WITHOUT_GPU, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def part(tmp_path, monkeypatch) -> gpu_check.Part:
    """The part "tests" of a check that has built nothing."""
    monkeypatch.setattr(gpu_check, "LIBRARY", tmp_path / "libsdst_plugins.so")
    gpu = gpu_check.Gpu("none", "90")
    return gpu_check.Part("tests", tmp_path, gpu, Path("nvcc"), time.monotonic() + 60)


def test_a_part_without_its_build_fails_and_says_so(part, capsys):
    result = gpu_check.run_part(part)
    assert result.status == "failed"
    assert result.detail == f"expected {part.out}/libsdst_plugins.so, found none; run the part build first"
    assert capsys.readouterr().out.splitlines()[0] == "tests ..."


def test_a_command_that_fails_leaves_its_output_in_the_log(part):
    command = [sys.executable, "-c", "import sys; print('so far'); sys.exit(3)"]
    never = [sys.executable, "-c", "print('never')"]
    with pytest.raises(gpu_check.PartFailed, match=f"exited with 3; see {part.log()}"):
        gpu_check.run_commands(part, [command, never])
    lines = part.log().read_text().splitlines()
    assert lines[0].startswith("$ ")
    assert lines[1:] == ["so far"]


def test_a_command_that_is_not_there_fails(part):
    with pytest.raises(gpu_check.PartFailed, match="no-such-tool exited with 127"):
        gpu_check.run_commands(part, [["/no-such-tool"]])


def test_a_command_past_its_time_is_killed_with_its_children():
    """A child that lived on would hold the output open, and its line would be in it."""
    child = "import time; time.sleep(5); print('ended')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu_check.run_command([sys.executable, "-c", parent], 1.0, os.environ) == (None, "", "")


def test_parts_see_the_checkout_and_the_library(part):
    ask = "import json, os, sdst_train; print(json.dumps([os.environ['SDST_PLUGINS'], sdst_train.__file__]))"
    output = gpu_check.run_commands(part, [[sys.executable, "-c", ask]])
    assert json.loads(output.splitlines()[-1]) == [str(gpu_check.LIBRARY), str(ROOT / "sdst_train" / "__init__.py")]


def test_variants_compile_without_spills(tmp_path):
    """And the program, kept from any GPU, says that there is none."""
    try:
        nvcc = gpu_check.find_nvcc()
    except InputError as error:
        pytest.skip(f"needs nvcc: {error}")
    program = tmp_path / "rdsa_dev"
    command = [str(nvcc), "-O3", "-std=c++17", "-arch=sm_90", "-Xptxas", "-v", "-I", str(ROOT / "plugins" / "include")]
    command += [str(ROOT / "plugins" / "dev" / "rdsa.cu"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", done.stderr)]
    assert len(kernels) == len(registers) >= 4 + 3
    assert set(kernels) == {("0", "0", "0")}
    assert max(registers) <= 64
    run = subprocess.run([str(program), "--check"], env=WITHOUT_GPU, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, "rdsa_dev: no CUDA device here; run it on a machine with a GPU\n")
