"""torch.ops.sdst.rdsa on a GPU: the whole table of cases, and how torch runs the kernel.

`make gpu-check` runs it on machines that have torch, numpy and pytest only, so it imports nothing else. It needs a GPU
and libsdst_plugins.so (`sdst plugins build`, or SDST_PLUGINS). Shapes: as in tests/rdsa_cases.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rdsa_cases import CASES
from rdsa_torch import (
    KINDS,
    MEDIUM_CASES,
    ODD,
    odd_inputs,
    random_inputs,
    require_close,
    require_odd,
    strided_inputs,
    torch_inputs,
)

from sdst_runtime.errors import DependencyError, InputError
from sdst_runtime.sessions import plugin_library
from sdst_runtime.sessions.plugin_library import find_plugin_library, open_plugin_library
from sdst_train.model import rdsa_op
from sdst_train.model.rdsa import RDSA, LoweredRDSA, rdsa
from sdst_train.model.rdsa_op import gather_form

MEDIUM = {case.name: case for case in MEDIUM_CASES}


def missing() -> str:
    """What the machine lacks for these tests; empty when nothing."""
    if not torch.cuda.is_available():
        return "needs a GPU and a CUDA build of torch"
    try:
        find_plugin_library("cuda")
    except DependencyError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "nothing is missing")


def op(*inputs) -> torch.Tensor:
    return torch.ops.sdst.rdsa(*inputs)


def to_cuda(inputs):
    return tuple(x.cuda() if isinstance(x, torch.Tensor) else x for x in inputs)


@pytest.fixture(autouse=True)
def kernel_runs(request):
    """Every test here uses the compiled kernel unless it says otherwise: a fallback would pass unseen."""
    if "no_library" not in request.fixturenames:
        assert rdsa_op._cuda_form().args[0].info.device == "cuda"


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float_equals_oracle(case):
    require_close(op(*torch_inputs(case, device="cuda")), case, torch.float32)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
def test_half_types_equal_oracle(case, kind):
    require_close(op(*torch_inputs(case, kind, "cuda")), case, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["ragged", "odd_points", "one_clip_at_all", "depth_64", "default_heads"])
def test_rows_with_strides(name, kind):
    inputs = torch_inputs(MEDIUM[name], kind, "cuda")
    out, whole = op(*strided_inputs(inputs)), op(*inputs)
    torch.testing.assert_close(out, whole, rtol=0, atol=max(4 * torch.finfo(kind).eps, 2e-6))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_other_layouts_and_types_are_converted(kind):
    value, endpoints, reference, length, H, P = random_inputs(2, 6, 4, 2, 4, 16, kind, "cuda")
    expected = op(value, endpoints.half().float(), reference, length, H, P)
    turned = value.transpose(0, 1).contiguous().transpose(0, 1), endpoints.half().transpose(1, 2).contiguous()
    out = op(turned[0], turned[1].transpose(1, 2), reference.double(), length.long(), H, P)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ODD)
def test_odd_values(name, kind):
    sound = random_inputs(2, 7, 5, 3, 4, 16, kind)
    odd = odd_inputs(name, sound)
    out = op(*to_cuda(odd))
    require_odd(name, out, op(*to_cuda(sound)), H=3)
    gathered = gather_form(*odd).float()
    np.testing.assert_allclose(out.float().cpu(), gathered, rtol=0, atol=2e-5 if kind.itemsize == 4 else 4e-2)
    torch.cuda.synchronize()  # no fault was left behind


@pytest.mark.parametrize(
    ("B", "T", "M", "H", "D"),
    [(70_000, 2, 1, 1, 16), (66_000, 3, 3, 2, 16), (1, 3, 70_000, 1, 16), (1, 1, 1, 1, 16), (2, 5, 3, 16, 64)],
    ids=["many videos", "many videos and moments", "many moments", "one of everything", "wide"],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16], ids=["float", "half"])
def test_grids_at_their_limits(B, T, M, H, D, kind):
    inputs = random_inputs(B, T, M, H, 4, D, kind, "cuda")
    atol = max(8 * torch.finfo(kind).eps, 5e-6)  # each form errs by 1e-6 in float32; a wrong index by 1
    torch.testing.assert_close(op(*inputs), rdsa(*inputs), rtol=0, atol=atol)


@pytest.mark.parametrize("depth", [16, 32, 64])
@pytest.mark.parametrize("points", range(1, 17))
def test_any_number_of_points(points, depth):
    inputs = random_inputs(2, 9, 5, 3, points, depth, device="cuda")
    torch.testing.assert_close(op(*inputs), rdsa(*inputs), rtol=0, atol=1e-5)


def test_more_elements_than_32_bits_count():
    B, T, H, D = 33_000, 256, 8, 32  # 2.2e9 values
    if torch.cuda.mem_get_info()[0] < 8 * 2**30:
        pytest.skip("needs 8 GiB of free GPU memory")
    _, endpoints, reference, length, _, P = random_inputs(1, T, 2, H, 4, D, device="cuda")
    value = torch.zeros(B, T, H * D, dtype=torch.float16, device="cuda")
    value[-1] = torch.randn(T, H * D, device="cuda")
    shared = endpoints.expand(B, -1, -1), reference.expand(B, -1, -1), length.expand(B)
    out = op(value, *shared, H, P)
    assert torch.equal(out[-1:], op(value[-1:], endpoints, reference, length, H, P))
    assert out[-1].abs().max() > 0.1
    assert not out[:-1].any()


def test_nothing_to_compute():
    value, endpoints, reference, length, H, P = random_inputs(2, 6, 4, 2, 4, 16, device="cuda")
    assert op(value, endpoints, reference[:, :0], length, H, P).shape == (2, 0, 32)
    assert op(value[:0], endpoints[:0], reference[:0], length[:0], H, P).shape == (0, 4, 32)


@pytest.mark.parametrize(
    ("place", "bad", "says"),
    [
        (0, torch.zeros(2, 6, 32, dtype=torch.float64), "expected float32, float16 or bfloat16, got torch.float64"),
        (0, torch.zeros(2, 6, 16), "depth: expected 16, 32 or 64, got 8"),
        (1, torch.zeros(2, 5, 48), "expected endpoints (2, 6, 48)"),
        (2, torch.zeros(3, 4, 2), "got (2, 6, 48), (3, 4, 2)"),
        (3, torch.zeros(3, dtype=torch.int32), "and length (2,), got"),
    ],
)
def test_what_the_kernel_does_not_take_is_said(place, bad, says):
    inputs = list(random_inputs(2, 6, 4, 2, 4, 16, device="cuda"))
    inputs[place] = bad.cuda()
    with pytest.raises(InputError) as raised:
        op(*inputs)
    assert says in str(raised.value)


def test_tensors_of_two_devices_are_refused():
    inputs = list(random_inputs(2, 6, 4, 2, 4, 16, device="cuda"))
    inputs[3] = inputs[3].cpu()
    with pytest.raises(InputError, match="expected all inputs on one device, got cuda:0, cuda:0, cuda:0, cpu"):
        op(*inputs)


# --- how torch runs it -----------------------------------------------------------------------------------------------


def test_runs_on_the_current_stream():
    """The value is written late, on a stream of its own; a kernel on another stream would read NaN."""
    inputs = random_inputs(4, 64, 16, 8, 4, 32, device="cuda")
    expected, late = op(*inputs), torch.full_like(inputs[0], torch.nan)
    busy = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        late.copy_(inputs[0])
        out = op(late, *inputs[1:])
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_graph_capture_and_replay(kind):
    """No synchronisation and no allocation but the result's: either would end the capture."""
    first, second = (random_inputs(2, T, 10, 8, 4, 32, kind, "cuda") for T in (75, 75))
    second = (second[0] * 2, second[1] * 0.5, second[2] + 0.05, second[3] - 20, *second[4:])
    expected = op(*first), op(*second)
    held = [x.clone() for x in first[:4]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        op(*held, 8, 4)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(*held, 8, 4)
    for inputs, wanted in zip((first, second, first), (*expected, expected[0])):
        for place, x in zip(held, inputs):
            place.copy_(x)
        graph.replay()
        assert torch.equal(out, wanted)
    assert not torch.equal(*expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_module(mode):
    """torch.compile as one graph, also where it records CUDA graphs; half, as a deployed model runs."""
    pytest.importorskip("triton", reason="torch.compile on a GPU needs triton")
    torch.manual_seed(0)
    factored = RDSA(256, 8, 4)
    torch.nn.init.normal_(factored.offset.weight, std=0.02)
    torch.nn.init.normal_(factored.logit.weight, std=0.1)
    module = LoweredRDSA(factored, op).cuda().half()
    length = torch.tensor([75, 40], dtype=torch.int32, device="cuda")
    mask = torch.arange(75, device="cuda") < length[:, None]
    reference = torch.rand(2, 10, 2, device="cuda") * 0.4 + 0.3
    compiled = torch.compile(module, mode=mode, fullgraph=True)
    for seed in range(4):
        dense = torch.randn(2, 75, 256, generator=torch.Generator().manual_seed(seed)).cuda().half()
        expected = module(dense, mask, reference, length, dense)
        assert expected.std() > 0.01
        again = compiled(dense, mask, reference, length, dense).clone()
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-2)


def test_opcheck():
    inputs = random_inputs(2, 5, 3, 2, 3, 16, device="cuda")
    inputs = (*(x.requires_grad_() for x in inputs[:3]), *inputs[3:])
    assert set(torch.library.opcheck(torch.ops.sdst.rdsa.default, inputs).values()) == {"SUCCESS"}


def test_gradients_are_those_of_the_gather_form():
    def gradients(form):
        inputs = random_inputs(2, 9, 5, 2, 4, 16, device="cuda")
        inputs = [x.requires_grad_() for x in inputs[:3]], inputs[3:]
        return torch.autograd.grad(form(*inputs[0], *inputs[1]).square().sum(), inputs[0])

    for found, wanted in zip(gradients(op), gradients(rdsa), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_gpu():
    inputs = random_inputs(2, 9, 5, 2, 4, 16)
    out = op(*(x.to("cuda:1") if isinstance(x, torch.Tensor) else x for x in inputs))
    assert out.device == torch.device("cuda:1")
    torch.testing.assert_close(out.cpu(), rdsa(*inputs), rtol=0, atol=1e-5)


@pytest.fixture
def no_library(monkeypatch, tmp_path):
    """As where nothing was built."""
    monkeypatch.delenv(plugin_library.VARIABLE, raising=False)
    monkeypatch.setattr(plugin_library, "PACKAGE_FOLDER", tmp_path)
    monkeypatch.setattr(plugin_library, "_CHECKOUT", tmp_path)
    rdsa_op._cuda_form.cache_clear()
    yield
    rdsa_op._cuda_form.cache_clear()


def test_without_a_library_the_gather_form_runs(no_library, caplog):
    inputs = random_inputs(2, 6, 4, 2, 4, 16, device="cuda")
    outs = [op(*inputs) for _ in range(2)]
    assert all(torch.equal(out, gather_form(*inputs)) for out in outs)
    assert [record.message.split(": ")[0] for record in caplog.records] == ["sdst::RDSA runs in its slow gather form"]


def test_the_library_covers_this_gpu():
    major, minor = torch.cuda.get_device_capability()
    own = open_plugin_library("cuda").info.architectures
    assert any(number // 10 == major and number % 10 <= minor for number in own)
