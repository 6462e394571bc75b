"""What nvcc and ptxas make of the kernels: every one for every architecture, in registers, with wide loads. No GPU."""

from __future__ import annotations

import sys
from functools import cache

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import kernel_codegen as codegen

NVCC = codegen.find_nvcc()
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc (CUDACXX, or on PATH)")
KERNELS = {(kind, step) for kind in ("float", "half", "bfloat16") for step in (1, 2, 4)}


@cache
def ptx():
    accesses = codegen.ptx_accesses(str(NVCC))
    assert set(accesses) == KERNELS
    return accesses


@pytest.mark.parametrize("architecture", codegen.ARCHITECTURES)
def test_every_kernel_stays_in_registers(architecture):
    kernels = codegen.ptxas_report(str(NVCC), architecture)

    assert {(kernel.type, kernel.step) for kernel in kernels} == KERNELS
    assert len(kernels) == len(KERNELS)
    assert [kernel for kernel in kernels if kernel.stack_bytes or kernel.spill_bytes] == []
    assert [kernel for kernel in kernels if not 24 <= kernel.registers < 64] == []


def test_values_are_loaded_and_stored_in_16_bytes():
    for (kind, step), accesses in ptx().items():
        assert accesses["ld.global.nc.v4.u32"] == 2 * step, (kind, step, accesses)  # two clips a point
        assert accesses["st.global.v4.f32"] + accesses["st.global.v4.u32"] == 1


def test_endpoints_are_loaded_a_step_at_once():
    for (kind, step), accesses in ptx().items():
        vector = {1: "ld.global.nc.f32", 2: "ld.global.nc.v2.f32", 4: "ld.global.nc.v4.f32"}[step]
        reference = 1 if step == 2 else 0
        assert accesses[vector] - reference == 12, (kind, step, accesses)  # 3 ends, 2 clips, offsets and logits


def test_nothing_is_kept_in_local_memory():
    assert [name for accesses in ptx().values() for name in accesses if ".local" in name] == []


def test_the_report_sees_spills(tmp_path):
    """The same kernel, forced into 32 registers, must show what the tests above look for."""
    text = codegen.SOURCE.read_text()
    assert text.count("#define SDST_REGISTERS\n") == 1
    starved = tmp_path / "starved.cu"
    starved.write_text(text.replace("#define SDST_REGISTERS\n", "#define SDST_REGISTERS __launch_bounds__(128, 16)\n"))

    assert any(kernel.spill_bytes for kernel in codegen.ptxas_report(str(NVCC), 90, starved))
