"""What the compilers make of the CUDA kernels: registers, spills and widths of loads, for every architecture.

    python benchmarks/kernel_codegen.py            prints the table of docs/performance.md

Registers, stack and spills are ptxas's own report; loads are counted in machine code where cuobjdump is found
(CUOBJDUMP, beside nvcc, or on PATH; it comes with the toolkit and as the PyPI package nvidia-cuda-cuobjdump).
Needs nvcc (CUDACXX, or on PATH); no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "plugins" / "src" / "rdsa_cuda.cu"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120)
FLAGS = ("-std=c++17", "-O3", f"-I{ROOT / 'plugins' / 'include'}", f"-I{ROOT / 'plugins' / 'src'}")
STEPS = (4, 2, 1)
TYPES = {"5Float": "float", "10HalfScalar": "half", "14Bfloat16Scalar": "bfloat16"}


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel: its type of value, points a step, and ptxas's report."""

    type: str
    step: int
    registers: int
    stack_bytes: int
    spill_bytes: int


def find_nvcc() -> str | None:
    """CUDACXX, or nvcc on PATH."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def ptxas_report(nvcc: str, architecture: int, source: Path = SOURCE) -> list[Kernel]:
    """Compiles the kernels for one architecture. Raises CalledProcessError when they do not compile."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/kernels.cubin"
        text = _run(nvcc, *FLAGS, "-Xptxas=-v", f"-arch=sm_{architecture}", "-cubin", str(source), "-o", out)
    return [_kernel(part) for part in text.split("Compiling entry function ")[1:]]


def ptx_accesses(nvcc: str, source: Path = SOURCE) -> dict[tuple[str, int], Counter[str]]:
    """Loads and stores of each kernel in PTX, by (type of value, points a step): {"ld.global.nc.v4.u32": 8, ...}."""
    with tempfile.TemporaryDirectory() as folder:
        _run(nvcc, *FLAGS, "-arch=compute_90", "-ptx", str(source), "-o", f"{folder}/kernels.ptx")
        text = Path(folder, "kernels.ptx").read_text()
    return _count(text.split(".entry ")[1:], r"\b(?:ld|st)\.(?:global|local)[\w.]*")


def sass_accesses(nvcc: str, cuobjdump: str, architecture: int) -> dict[tuple[str, int], Counter[str]]:
    """Loads and stores of each kernel in machine code: {"LDG.E.128.CONSTANT": 20, ...}."""
    with tempfile.TemporaryDirectory() as folder:
        _run(nvcc, *FLAGS, f"-arch=sm_{architecture}", "-cubin", str(SOURCE), "-o", f"{folder}/kernels.cubin")
        text = _run(cuobjdump, "-sass", f"{folder}/kernels.cubin")
    return _count(text.split("Function : ")[1:], r"\b(?:LDG|STG|LDL|STL)[\w.]*")


def table(nvcc: str, cuobjdump: str | None) -> str:
    """Markdown: a row for each architecture. Numbers of three are for steps of 4, 2 and 1 points."""
    kinds = ("half", "bfloat16", "float")
    head = ["architecture", *(f"registers, {kind}" for kind in kinds), "spills", "local", "16-byte loads", "8", "4"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for architecture in ARCHITECTURES:
        kernels = {(kernel.type, kernel.step): kernel for kernel in ptxas_report(nvcc, architecture)}
        cells = [f"sm_{architecture}"]
        cells += [" ".join(str(kernels[kind, step].registers) for step in STEPS) for kind in kinds]
        cells += [str(sum(kernel.spill_bytes for kernel in kernels.values()))]
        cells += _accesses(sass_accesses(nvcc, cuobjdump, architecture)) if cuobjdump else ["not counted"] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _accesses(found: dict[tuple[str, int], Counter[str]]) -> list[str]:
    """Accesses to local memory by all kernels; global loads of 16, 8 and 4 bytes by the half kernels."""
    local = sum(count for accesses in found.values() for name, count in accesses.items() if name[2] == "L")
    widths = [_widths(found["half", step]) for step in STEPS]
    return [str(local), *(" ".join(str(loads[width]) for loads in widths) for width in (16, 8, 4))]


def _widths(accesses: Counter[str]) -> dict[int, int]:
    widths = {16: 0, 8: 0, 4: 0}
    for name, count in accesses.items():
        if name.startswith("LDG"):
            widths[16 if ".128" in name else 8 if ".64" in name else 4] += count
    return widths


def _kernel(part: str) -> Kernel:
    kind, step = _instance(part)
    stack, stores, loads = (
        int(re.search(rf"(\d+) bytes {what}", part).group(1))  # type: ignore[union-attr]
        for what in ("stack frame", "spill stores", "spill loads")
    )
    registers = int(re.search(r"Used (\d+) registers", part).group(1))  # type: ignore[union-attr]
    return Kernel(kind, step, registers, stack, stores + loads)


def _instance(mangled: str) -> tuple[str, int]:
    """(type of value, points a step) in a kernel's mangled name."""
    found = re.search(r"rdsa_kernelIN4sdst(?:5PairsINS\d_)?(\w+?)E*Li(\d)E", mangled)
    assert found, mangled[:200]
    return TYPES[found.group(1)], int(found.group(2))


def _count(parts: list[str], pattern: str) -> dict[tuple[str, int], Counter[str]]:
    return {_instance(part): Counter(re.findall(pattern, part)) for part in parts}


def _run(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    return done.stdout


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("error: no nvcc: put it on PATH or name it in CUDACXX", file=sys.stderr)  # noqa: T201
        return 2
    beside = shutil.which("cuobjdump", path=str(Path(nvcc).resolve().parent))
    print(table(nvcc, os.environ.get("CUOBJDUMP") or beside or shutil.which("cuobjdump")))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
