"""torch.ops.sdst.rdsa: the path to the compiled kernel, run here with the host library, and the op under torch's tools.

tests/train/model/test_rdsa_cuda.py is the same on a GPU.
"""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
import pytest
import torch
from rdsa_torch import (
    KINDS,
    MEDIUM_CASES,
    ODD,
    expected,
    odd_inputs,
    random_inputs,
    require_close,
    require_odd,
    strided_inputs,
    torch_inputs,
)
from tiny_world import MODEL
from torch import nn

from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.sessions import plugin_library
from sdst_runtime.sessions.plugin_library import VARIABLE, RdsaLibrary
from sdst_train.model import rdsa_op
from sdst_train.model.rdsa import rdsa
from sdst_train.model.rdsa_op import call_library, gather_form
from sdst_train.model.sdst import SDST

torch.set_num_threads(1)
CASES = {case.name: case for case in MEDIUM_CASES}


@pytest.fixture(scope="module")
def library(host_library_path) -> RdsaLibrary:
    return RdsaLibrary(host_library_path)


# --- the compiled kernel on tensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
def test_library_equals_oracle(library, case, kind):
    require_close(call_library(library, *torch_inputs(case, kind)), case, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["ragged", "odd_points", "one_clip_at_all", "depth_64"])
def test_rows_with_strides_are_read_in_place(library, name, kind):
    inputs = torch_inputs(CASES[name], kind)
    strided = strided_inputs(inputs)
    assert rdsa_op._readable(strided[0], 16) is strided[0]
    assert rdsa_op._readable(strided[1], 4) is strided[1]
    out, whole = call_library(library, *strided), call_library(library, *inputs)
    torch.testing.assert_close(out, whole, rtol=0, atol=4 * torch.finfo(kind).eps)  # other loads, another order of sums


@pytest.mark.parametrize("depth", [16, 32, 64])
@pytest.mark.parametrize("points", range(1, 17))
def test_any_number_of_points(library, points, depth):
    inputs = random_inputs(2, 9, 5, 3, points, depth)
    torch.testing.assert_close(call_library(library, *inputs), rdsa(*inputs), rtol=0, atol=1e-5)


def test_one_row_for_all_videos(library):
    value, endpoints, *rest = random_inputs(3, 6, 4, 2, 4, 16)
    shared = value[:1].expand(3, -1, -1), endpoints[:1, :1].expand(3, 6, -1)
    assert rdsa_op._row_strides(shared[1]) == (0, 0)
    out = call_library(library, *shared, *rest)
    assert torch.equal(out, call_library(library, *(x.contiguous() for x in shared), *rest))


@pytest.mark.parametrize("layout", ["transposed", "shifted", "odd rows", "overlapping", "reference", "batch of one"])
def test_what_the_kernel_cannot_read_is_copied(library, layout):
    value, endpoints, reference, length, H, P = inputs = random_inputs(2, 6, 4, 2, 4, 16)
    if layout == "transposed":
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
        endpoints = endpoints.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "shifted":
        value = torch.empty(value.numel() + 1)[1:].view_as(value).copy_(value)
        assert value.data_ptr() % 16
    elif layout == "odd rows":
        value = nn.functional.pad(value, (0, 1))[..., :-1]
    elif layout == "overlapping":  # clips that share half of their values
        flat = torch.randn(2, 16 * 7 + 16)
        value = flat.unfold(1, 32, 16)[:, :6]
        inputs = (value.contiguous(), *inputs[1:])
    elif layout == "reference":
        reference = torch.empty(reference.numel() + 1)[1:].view_as(reference).copy_(reference)
        assert reference.data_ptr() % 8
    else:
        value, endpoints, reference, length = (x[:1] for x in inputs[:4])
        inputs = (value, endpoints, reference, length, H, P)
        value = value.as_strided(value.shape, (1, *value.stride()[1:]))
    out = call_library(library, value, endpoints, reference, length, H, P)
    assert torch.equal(out, call_library(library, *inputs))


def test_other_types_of_coordinates_are_converted(library):
    value, endpoints, reference, length, H, P = random_inputs(2, 6, 4, 2, 4, 16)
    endpoints, reference = endpoints.half(), reference.double()
    out = call_library(library, value, endpoints, reference, length.long(), H, P)
    assert torch.equal(out, call_library(library, value, endpoints.float(), reference.float(), length, H, P))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ODD)
def test_odd_values(library, name, kind):
    sound = random_inputs(2, 7, 5, 3, 4, 16, kind)
    odd = odd_inputs(name, sound)
    out = call_library(library, *odd)
    require_odd(name, out, call_library(library, *sound), H=3)
    np.testing.assert_allclose(
        out.float(), gather_form(*odd).float(), rtol=0, atol=2e-5 if kind.itemsize == 4 else 4e-2
    )


@pytest.mark.parametrize("name", ODD)
def test_odd_values_in_the_gather_form(name):
    sound = random_inputs(2, 7, 5, 3, 4, 16)
    require_odd(name, gather_form(*odd_inputs(name, sound)), gather_form(*sound), H=3)


@pytest.mark.parametrize("name", ["short_length", "long_length"])
def test_lengths_outside_the_video_are_clamped(library, name):
    odd = odd_inputs(name, random_inputs(2, 7, 5, 2, 4, 16))
    clamped = (*odd[:3], odd[3].clamp(1, 7), *odd[4:])
    assert torch.equal(call_library(library, *odd), call_library(library, *clamped))
    assert torch.equal(torch.ops.sdst.rdsa(*odd), rdsa(*clamped))


@pytest.mark.parametrize(("B", "M"), [(0, 4), (2, 0)])
def test_nothing_to_compute(library, B, M):
    value, endpoints, reference, length, H, P = random_inputs(2, 6, 4, 2, 4, 16)
    out = call_library(library, value[:B], endpoints[:B], reference[:B, :M], length[:B], H, P)
    assert out.shape == (B, M, 32)


SIZES = (
    "value (2, 6, 32), 2 heads and 4 points: expected endpoints (2, 6, 48), reference (2, 4, 2) and length (2,), got"
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": torch.zeros(2, 6, 32).double()}, "expected float32, float16 or bfloat16, got torch.float64"),
        ({"value": torch.zeros(2, 32)}, "expected value B T F with F a multiple of 2 heads"),
        ({"value": torch.zeros(2, 6, 33)}, "and reference B M 2, got (2, 6, 33) and (2, 4, 2)"),
        ({"reference": torch.zeros(2, 4)}, "got (2, 6, 32) and (2, 4)"),
        ({"num_heads": 0}, "F a multiple of 0 heads"),
        ({"endpoints": torch.zeros(2, 6, 47)}, f"{SIZES} (2, 6, 47), (2, 4, 2) and (2,)"),
        ({"endpoints": torch.zeros(2, 5, 48)}, f"{SIZES} (2, 5, 48), (2, 4, 2) and (2,)"),
        ({"reference": torch.zeros(3, 4, 2)}, "length (2,), got (2, 6, 48), (3, 4, 2) and (2,)"),
        ({"length": torch.zeros(3, dtype=torch.int32)}, f"{SIZES} (2, 6, 48), (2, 4, 2) and (3,)"),
        ({"length": torch.zeros(2, device="meta")}, "expected all inputs on one device, got cpu, cpu, cpu, meta"),
        ({"value": torch.zeros(2, 6, 16)}, "depth: expected 16, 32 or 64, got 8"),
        ({"num_points": 17, "endpoints": torch.zeros(2, 6, 204)}, "points: expected 1 to 16, got 17"),
        ({"stream": 1}, "stream: expected NULL"),
    ],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_said(library, change, says):
    names = ("value", "endpoints", "reference", "length", "num_heads", "num_points")
    arguments = dict(zip(names, random_inputs(2, 6, 4, 2, 4, 16))) | change
    with pytest.raises(InputError) as raised:
        call_library(library, **arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


# --- without a kernel ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """As on a machine where nothing was built."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugin_library, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr(plugin_library, "_CHECKOUT", tmp_path)
    rdsa_op._cuda_form.cache_clear()
    yield
    rdsa_op._cuda_form.cache_clear()


def test_a_gpu_without_a_library_runs_the_gather_form_and_says_so_once(no_library, caplog):
    inputs = random_inputs(2, 6, 4, 2, 4, 16)
    with caplog.at_level(logging.WARNING):
        outs = [rdsa_op._on_cuda(*inputs) for _ in range(2)]  # what the dispatcher calls for CUDA tensors
    assert all(torch.equal(out, gather_form(*inputs)) for out in outs)
    (record,) = caplog.records
    assert record.name == "sdst_train.model.rdsa_op"
    assert "sdst::RDSA runs in its slow gather form" in record.message
    assert record.message.endswith("run  sdst plugins build")


def test_a_library_that_cannot_be_used_is_no_reason_to_fall_back(no_library, monkeypatch, host_library_path, tmp_path):
    inputs = random_inputs(2, 6, 4, 2, 4, 16)
    monkeypatch.setenv(VARIABLE, str(host_library_path))
    with pytest.raises(ContractError, match="expected a library for cuda, this one is for host"):
        rdsa_op._on_cuda(*inputs)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(InputError, match="no such file"):
        rdsa_op._on_cuda(*inputs)


# --- the op under torch's tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float32, torch.float16], ids=["trained", "half"])
def test_opcheck(kind):
    inputs = random_inputs(2, 5, 3, 2, 3, 8, kind)
    if kind == torch.float32:
        inputs = (*(x.requires_grad_() for x in inputs[:3]), *inputs[3:])
    assert set(torch.library.opcheck(torch.ops.sdst.rdsa.default, inputs).values()) == {"SUCCESS"}


def test_gradients_are_those_of_the_gather_form():
    """Of first and second order; also where all three inputs are made of one tensor."""
    *inputs, length, H, P = random_inputs(1, 4, 2, 1, 2, 2)
    inputs = [x.double().requires_grad_() for x in inputs]

    def op(*tensors):
        return torch.ops.sdst.rdsa(*tensors, length, H, P)

    assert torch.autograd.gradcheck(op, inputs)
    assert torch.autograd.gradgradcheck(op, inputs)

    def gradient(form):
        x = torch.linspace(-1, 1, 4 * 12, dtype=torch.float64).reshape(1, 4, 12).requires_grad_()
        value = (2 * x)[..., :2]
        out = form(value, 0.1 * (value.mean(-1, keepdim=True) + x), x[:, :2, :2].sigmoid(), length, H, P)
        return torch.autograd.grad(out.square().sum(), x)[0]

    expected_gradient = gradient(rdsa)
    assert expected_gradient.abs().max() > 0.1
    torch.testing.assert_close(gradient(torch.ops.sdst.rdsa), expected_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["value", "endpoints", "reference"])
def test_a_gradient_alone(wanted):
    def gradient(form):
        inputs = list(random_inputs(2, 5, 3, 2, 3, 16))
        inputs[wanted] = inputs[wanted].requires_grad_()
        return torch.autograd.grad(form(*inputs).square().sum(), inputs[wanted])[0]

    assert torch.equal(gradient(torch.ops.sdst.rdsa), gradient(rdsa))


class Ground(nn.Module):
    """`SDST.ground` as a module's forward, as the exporter has it."""

    def __init__(self, op) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = SDST(MODEL).eval().lower(op)

    def forward(self, video, video_mask, text, text_mask):
        return self.model.ground(video, video_mask, text, text_mask)


def head_inputs(B: int, T: int, L: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    video = torch.randn(B, T, MODEL.layers, MODEL.video_width, generator=generator)
    text = torch.randn(B, MODEL.layers, L, MODEL.text_width, generator=generator)
    length = torch.arange(B) % T + 1
    return video, torch.arange(T) < length.flip(0)[:, None], text, torch.ones(B, L, dtype=torch.bool)


@pytest.fixture(scope="module")
def plain() -> Ground:
    """The lowered model on the gather form."""
    return Ground(rdsa)


def require_same(outs, expected_outs, atol: float) -> None:
    for out, wanted in zip(outs, expected_outs, strict=True):
        torch.testing.assert_close(out, wanted, rtol=0, atol=atol)


@torch.inference_mode()
def test_lowered_model_runs_the_op(plain):
    inputs = head_inputs(3, 9, 4)
    require_same(Ground(torch.ops.sdst.rdsa)(*inputs), plain(*inputs), atol=0)


@torch.inference_mode()
def test_lowered_model_runs_the_kernel(plain, library):
    calls = []

    def op(*arguments):
        calls.append(arguments[0].shape)
        return call_library(library, *arguments)

    inputs = head_inputs(3, 9, 4)
    require_same(Ground(op)(*inputs), plain(*inputs), atol=1e-5)
    assert calls == [(3, 9, MODEL.width)] * MODEL.layers


@torch.no_grad()
def test_lowered_model_compiles_as_one_graph(plain):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, example_inputs)

    compiled = torch.compile(Ground(torch.ops.sdst.rdsa), backend=backend, fullgraph=True)
    inputs = head_inputs(3, 9, 4)
    require_same(compiled(*inputs), plain(*inputs), atol=1e-6)
    (graph,) = graphs
    called = [node.target for node in graph.graph.nodes if "rdsa" in str(node.target)]
    assert len(called) == MODEL.layers


def test_compiled_training_step_has_the_gradients_of_the_gather_form():
    *inputs, length, H, P = random_inputs(2, 5, 3, 2, 3, 16)

    def loss(op, *tensors):
        return op(*(x * 2 for x in tensors), length, H, P).square().sum()

    def gradients(form):
        leaves = [x.clone().requires_grad_() for x in inputs]
        return torch.autograd.grad(form(*leaves), leaves)

    compiled = torch.compile(partial(loss, torch.ops.sdst.rdsa), backend="aot_eager", fullgraph=True)
    require_same(gradients(compiled), gradients(partial(loss, rdsa)), atol=1e-5)


@torch.no_grad()
def test_lowered_model_exports_with_free_sizes(plain):
    B, T, L = (torch.export.Dim(name, min=2, max=64) for name in "BTL")
    shapes = ({0: B, 1: T}, {0: B, 1: T}, {0: B, 2: L}, {0: B, 1: L})
    program = torch.export.export(
        Ground(torch.ops.sdst.rdsa), head_inputs(3, 9, 4), dynamic_shapes=shapes, strict=False
    )  # fmt: skip
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.sdst.rdsa.default]
    assert len(nodes) == MODEL.layers
    for inputs in (head_inputs(3, 9, 4), head_inputs(5, 17, 6)):
        require_same(program.module()(*inputs), plain(*inputs), atol=1e-6)


def test_fake_tensors_know_the_shape():
    value, endpoints, reference, length, H, P = random_inputs(2, 5, 3, 2, 3, 16, torch.bfloat16)
    out = torch.ops.sdst.rdsa(*(x.to("meta") for x in (value, endpoints, reference, length)), H, P)
    assert (out.shape, out.dtype, out.device.type) == ((2, 3, 32), torch.bfloat16, "meta")


def test_op_on_the_cpu_is_the_gather_form():
    case = CASES["ragged"]
    out = torch.ops.sdst.rdsa(*torch_inputs(case))
    np.testing.assert_allclose(out.double(), expected(case), rtol=0, atol=case.tolerance)
