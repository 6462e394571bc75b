"""The lower rungs of sdst::RDSA: float64 oracle -> torch gather form -> lowered module -> ONNX function body."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from rdsa_cases import CASES, SMALL_CASES, RdsaCase, make_inputs

from sdst_export.rdsa_op import DOMAIN, NAME, OPSET, add_function
from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle, sampling
from sdst_train.model.rdsa import (
    RDSA,
    LoweredRDSA,
    clip_index,
    deform,
    endpoint_positions,
    linear_weights,
    rdsa,
    sample_linear,
)

torch.set_num_threads(1)
MEDIUM_CASES = [case for case in CASES if case.T * case.M * case.B < 1e5]


@cache
def expected(case: RdsaCase) -> np.ndarray:
    return rdsa_oracle(**make_inputs(case), num_heads=case.H, num_points=case.P)


def run_torch(inputs: dict[str, np.ndarray], case: RdsaCase, kind: torch.dtype, value: torch.dtype | None = None):
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: x.to(kind) if x.is_floating_point() else x for name, x in tensors.items()}
    tensors["value"] = tensors["value"].to(value or kind)
    return rdsa(tensors["value"], tensors["endpoints"], tensors["reference"], tensors["length"], case.H, case.P)


def randomise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale)


# --- the oracle and its table ----------------------------------------------------------------------------------------


def test_oracle_by_hand():
    """One head, two points, four clips with values 0 10 20 30: everything small enough to do on paper."""
    value = np.array([0, 10, 20, 30.0]).reshape(1, 4, 1)
    endpoints = np.zeros((1, 4, 3, 2, 2))
    endpoints[0, :, 0, 0, 0] = [0, 1, 2, 3]  # left end predicts the offset of point 0
    endpoints[0, :, 1, 1, 1] = math.log(3)  # centre predicts the logit of point 1: weights 1/4, 3/4
    reference = np.array([[[0.5, 0.5]]])
    # left end at 0.25 -> clip 0.5 -> offset 0.5; point 0 at 0.5 + 0.5 * 0.25 = 0.625 -> clip 2; point 1 at clip 1.5
    out = rdsa_oracle(value, endpoints.reshape(1, 4, 12), reference, np.array([4]), 1, 2)
    np.testing.assert_allclose(out, [[[20 / 4 + 15 * 3 / 4]]], rtol=1e-14)
    # half a clip before the first one the value has faded to half, one clip before it to nothing
    for centre, result in ((0.125, 0.0), (0.0, 0.0), (0.25, 5.0), (1.0, 15.0), (1.125, 0.0)):
        reference = np.array([[[centre, 0.0]]])
        out = rdsa_oracle(value, np.zeros((1, 4, 12)), reference, np.array([4]), 1, 2)
        np.testing.assert_allclose(out, [[[result]]], atol=1e-14)


def test_cases_hold_what_they_promise():
    assert len({case.name for case in CASES}) == len(CASES)
    inputs = {case.name: make_inputs(case) for case in SMALL_CASES}
    for case in SMALL_CASES:
        x = inputs[case.name]
        again = make_inputs(case)
        assert all(np.array_equal(x[name], again[name], equal_nan=True) for name in x)
        valid = np.arange(case.T) < x["length"][:, None]
        assert x["length"].min() >= 1
        assert x["length"].max() <= case.T
        np.testing.assert_array_equal(np.isfinite(x["value"]).all(-1), valid)
        np.testing.assert_array_equal(np.isnan(x["endpoints"]).all(-1), ~valid)
        assert np.isfinite(expected(case)).all()
        assert np.abs(expected(case)).max() > 0.5
    left = inputs["beyond"]["reference"][..., 0] - inputs["beyond"]["reference"][..., 1] / 2
    assert (left < -0.2).any()
    assert (inputs["ragged"]["length"] == 1).any()
    assert np.abs(inputs["huge_offsets"]["endpoints"][0, 0]).max() > 1e6
    index, _ = sampling(inputs["on_clip_centres"]["endpoints"][0], inputs["on_clip_centres"]["reference"][0], 2, 4)
    np.testing.assert_allclose(index, index.round(), atol=1e-5)


# --- torch, gather form ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
def test_gather_form_equals_oracle(case):
    inputs = make_inputs(case)
    np.testing.assert_allclose(run_torch(inputs, case, torch.float64), expected(case), rtol=0, atol=1e-12)
    single = run_torch(inputs, case, torch.float32)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.double(), expected(case), rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=["half", "bfloat16"])
def test_half_value_errs_like_rounding_its_ends(case, kind):
    """Coordinates, softmax and sums in float32: no more error than rounding value and result leaves by itself."""
    inputs = make_inputs(case)
    rounded = torch.from_numpy(inputs["value"]).to(kind).double().numpy()
    exact = rdsa_oracle(rounded, inputs["endpoints"], inputs["reference"], inputs["length"], case.H, case.P)
    unavoidable = torch.from_numpy(exact).to(kind).double().numpy() - expected(case)
    out = run_torch(inputs, case, torch.float32, value=kind)
    assert out.dtype == kind
    error = out.double().numpy() - expected(case)
    assert np.abs(error).max() <= 2 * np.abs(unavoidable).max()
    assert np.abs(error).mean() <= 1.1 * np.abs(unavoidable).mean() + case.tolerance


def test_half_coordinates_are_no_worse_than_their_inputs():
    """A half model keeps references in float32; half logits and offsets do not pull the softmax down to half."""
    case = CASES[0]
    inputs = make_inputs(case)
    endpoints = torch.from_numpy(inputs["endpoints"]).half()
    out = rdsa(
        torch.from_numpy(inputs["value"]).half(), endpoints, torch.from_numpy(inputs["reference"]),
        torch.from_numpy(inputs["length"]), case.H, case.P,
    )  # fmt: skip
    assert out.dtype == torch.float16
    np.testing.assert_allclose(out.double(), expected(case), atol=2e-2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), padding=st.integers(0, 7), seed=st.integers(0, 10**6)
)
def test_padding_changes_nothing(lengths, padding, seed):
    """Any clips after the last valid one, whatever they hold, leave the result as it is, bit for bit."""
    B, T, M, H, P, F = len(lengths), max(lengths), 3, 2, 3, 8
    rng = np.random.default_rng(seed)
    value, endpoints = rng.standard_normal((B, T, F)), rng.standard_normal((B, T, 6 * H * P))
    reference, length = rng.uniform(-0.2, 1.2, (B, M, 2)), np.array(lengths, np.int32)
    tensors = [torch.from_numpy(x) for x in (value, endpoints, reference, length)]
    garbage = [torch.full((B, padding, x.shape[2]), bad) for x, bad in ((value, math.nan), (endpoints, math.inf))]
    longer = [torch.cat(pair, 1) for pair in zip(tensors[:2], garbage, strict=True)]
    out = rdsa(*tensors, H, P)
    np.testing.assert_array_equal(rdsa(*longer, *tensors[2:], H, P), out)
    for b, n in enumerate(lengths):  # and each row alone, cut to its own length
        alone = rdsa(*(x[b : b + 1, :n] for x in tensors[:2]), *(x[b : b + 1] for x in tensors[2:]), H, P)
        np.testing.assert_array_equal(alone, out[b : b + 1])


# --- sampling against grid_sample ------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("clips", [1, 2, 7, 40])
def test_sampling_equals_grid_sample(padding, clips):
    """grid_sample with align_corners=False on an image of height 1, also at and far beyond both borders."""
    generator = torch.Generator().manual_seed(clips)
    x_BTC = torch.randn(3, clips + 2, 5, generator=generator)
    position = torch.cat(
        (
            torch.rand(3, 50, generator=generator) * 2 - 0.5,
            torch.tensor([0, 1, 0.5 / clips, 1 - 0.5 / clips, -0.5 / clips, 1 + 0.5 / clips, -30, 1e6]).expand(3, -1),
        ),
        dim=1,
    )
    length = torch.full((3,), clips, dtype=torch.int32)
    ours = sample_linear(x_BTC, clip_index(position, length), length, padding)
    grid = torch.stack((2 * position - 1, torch.zeros_like(position)), dim=-1)[:, None]
    image = x_BTC[:, :clips].transpose(1, 2)[:, :, None]
    theirs = functional.grid_sample(image, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    np.testing.assert_allclose(ours, theirs[:, :, 0].transpose(1, 2), rtol=0, atol=1e-5)


def test_sampling_as_a_product_equals_the_gathers():
    """Values and both gradients, inside, at and beyond the borders, of videos of other lengths than the batch's."""
    generator = torch.Generator().manual_seed(0)
    length = torch.tensor([9, 4, 1], dtype=torch.int32)
    inside = torch.rand(3, 40, generator=generator, dtype=torch.float64) * 2 - 0.5
    borders = torch.tensor([0.0, 1, 0.5, -30, 1e6]).double().expand(3, -1)
    position = torch.cat((inside, borders), dim=1)
    x_BTC = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64)
    found = []
    for product in (False, True):
        x, where = x_BTC.clone().requires_grad_(), position.clone().requires_grad_()
        index = clip_index(where, length)
        out = linear_weights(index, length, 9) @ x if product else sample_linear(x, index, length, "zeros")
        out.square().sum().backward()
        found.append((out.detach(), x.grad, where.grad))
    for gathered, multiplied in zip(*found, strict=True):
        np.testing.assert_allclose(multiplied, gathered, rtol=0, atol=1e-12)
    assert found[0][2].abs().max() > 1


def test_endpoints_are_clamped_to_the_video():
    reference = torch.tensor([[[0.5, 0.4], [0.1, 0.6], [0.9, 0.6], [0.5, 2.0], [0.3, 0.0]]])
    ends = [[0.3, 0.5, 0.7], [0, 0.1, 0.4], [0.6, 0.9, 1], [0, 0.5, 1], [0.3, 0.3, 0.3]]
    np.testing.assert_allclose(endpoint_positions(reference), [ends], atol=1e-7)


# --- modules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "points", "seed"), [(1, 1, 0), (2, 4, 1), (4, 3, 2), (8, 4, 3)])
def test_lowered_equals_factored(heads, points, seed):
    B, T, M, width = 4, 19, 11, 64
    generator = torch.Generator().manual_seed(seed)
    factored = RDSA(width, heads, points).double()
    randomise(factored, seed)
    dense = torch.randn(B, T, width, generator=generator, dtype=torch.float64)
    length = torch.tensor([T, 1, 7, 2], dtype=torch.int32)
    mask = torch.arange(T) < length[:, None]
    reference = torch.rand(B, M, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected_out = factored(dense, mask, reference, length, dense)
        out = LoweredRDSA(factored)(dense, mask, reference, length, dense)
    assert expected_out.std() > 0.1
    np.testing.assert_allclose(out, expected_out, rtol=0, atol=1e-12)


def test_lowered_calls_the_op_it_is_given():
    """The exporter relies on it: value, endpoints, reference, length and the two attributes, of the stated shapes."""
    calls = []

    def op(*args):
        calls.append(args)
        return rdsa(*args)

    module, reference = LoweredRDSA(RDSA(32, 2, 4), op), torch.rand(2, 5, 2)
    length = torch.tensor([9, 4], dtype=torch.int32)
    dense = torch.randn(2, 9, 32)
    module(dense, torch.arange(9) < length[:, None], reference, length, dense)
    ((value, endpoints, *rest),) = calls
    assert (value.shape, endpoints.shape) == ((2, 9, 32), (2, 9, 3 * 2 * 2 * 4))
    assert rest[0] is reference
    assert rest[1] is length
    assert rest[2:] == [2, 4]


def test_fresh_module_looks_around_the_moment():
    """bias[h, p] = cos(4 pi h / H) * (p + 1), weights zero: where a fresh module looks does not depend on its input."""
    module = RDSA(32, 8, 4)
    bias = [[math.cos(4 * math.pi * h / 8) * (p + 1) for p in range(4)] for h in range(8)]
    np.testing.assert_allclose(module.offset.bias.detach().reshape(8, 4), bias, atol=1e-5)
    for parameter in (module.offset.weight, module.logit.weight, module.logit.bias):
        assert not parameter.any()
    # so head 0 samples at 1/4, 2/4, 3/4 and 4/4 of the half-width to the right of the centre, evenly weighted
    T = 64
    ramp = torch.arange(T, dtype=torch.float32)[None, :, None].expand(1, T, 32)
    with torch.no_grad():
        for linear in (module.value, module.out):
            linear.weight.copy_(torch.eye(32))
            linear.bias.zero_()
        reference, length = torch.tensor([[[0.5, 0.25]]]), torch.tensor([T], dtype=torch.int32)
        out = module(ramp, torch.ones(1, T, dtype=torch.bool), reference, length, ramp).reshape(8, 4)
    middle, half = 0.5 * T - 0.5, 0.25 * T / 2
    for h in range(8):
        np.testing.assert_allclose(out[h], middle + half * math.cos(math.pi * h / 2) * (1 + 2 + 3 + 4) / 16, rtol=1e-5)


def test_context_sees_zeros_beyond_the_video():
    """A video of 5 clips gives the same with and without padding, whatever the padding holds."""
    module = RDSA(32, 2, 4)
    randomise(module, 0)
    dense = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    dense[:, 5:] = 1e3
    reference, length = torch.tensor([[[0.5, 1.0], [0.95, 0.1]]]), torch.tensor([5], dtype=torch.int32)
    with torch.no_grad():
        short = module(dense[:, :5], torch.ones(1, 5, dtype=torch.bool), reference, length, dense[:, :5])
        long = module(dense, (torch.arange(9) < 5)[None], reference, length, dense)
    np.testing.assert_allclose(long, short, atol=1e-6)


# --- gradients -------------------------------------------------------------------------------------------------------


def far_from_kinks(index: torch.Tensor) -> bool:
    return bool(((index - index.round()).abs() > 1e-3).all())


def test_gradients_of_deform():
    B, T, M, H, P, D = 2, 6, 3, 2, 2, 2
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    value, offset, logit = draw(B, T, H * D), draw(B, M, H, P), draw(B, M, H, P)
    reference = torch.rand(B, M, 2, generator=generator, dtype=torch.float64).requires_grad_()
    length = torch.tensor([6, 4], dtype=torch.int32)
    index = clip_index(reference[..., 0, None, None] + offset * reference[..., 1, None, None] / 2, length)
    assert far_from_kinks(index)
    assert ((index > 0) & (index < length[:, None, None, None] - 1)).any()
    assert ((index < 0) | (index > length[:, None, None, None] - 1)).any()
    assert torch.autograd.gradcheck(lambda *args: deform(*args, length), (value, offset, logit, reference))


def test_gradients_of_rdsa():
    B, T, M, H, P, D = 2, 5, 2, 2, 2, 2
    rng = np.random.default_rng(4)
    value, endpoints = rng.standard_normal((B, T, H * D)), rng.standard_normal((B, T, 6 * H * P))
    reference, length = rng.uniform(0.1, 0.9, (B, M, 2)), np.array([5, 3], np.int32)
    for b in range(B):
        assert far_from_kinks(torch.from_numpy(sampling(endpoints[b, : length[b]], reference[b], H, P)[0]))
    tensors = [torch.from_numpy(x).requires_grad_() for x in (value, endpoints, reference)]
    assert far_from_kinks(clip_index(endpoint_positions(tensors[2]), torch.from_numpy(length)))
    assert torch.autograd.gradcheck(lambda *args: rdsa(*args, torch.from_numpy(length), H, P), tensors)
    rdsa(*tensors, torch.from_numpy(length), H, P).sum().backward()
    assert not tensors[0].grad[1, 3:].any()
    assert not tensors[1].grad[1, 3:].any()
    assert tensors[2].grad.abs().min() > 0


# --- ONNX function body ----------------------------------------------------------------------------------------------


@cache
def body_session(width: int, heads: int, points: int, half: bool) -> onnxruntime.InferenceSession:
    """A model of one sdst::RDSA node with dynamic shapes, run from its function body."""
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    single = onnx.TensorProto.FLOAT
    tensor = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(
        NAME, ["value", "endpoints", "reference", "length"], ["out"], domain=DOMAIN, num_heads=heads, num_points=points,
        plugin_version="1", plugin_namespace="sdst",
    )  # fmt: skip
    inputs = [
        tensor("value", kind, ["B", "T", "F"]), tensor("endpoints", single, ["B", "T", "E"]),
        tensor("reference", single, ["B", "M", 2]), tensor("length", onnx.TensorProto.INT32, ["B"]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph([node], "one_rdsa", inputs, [tensor("out", kind, ["B", "M", "F"])])
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    add_function(model, width)
    add_function(model, width)  # a second time changes nothing
    assert len(model.functions) == 1
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
def test_function_body_equals_oracle(case):
    (out,) = body_session(case.F, case.H, case.P, False).run(None, make_inputs(case))
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected(case), rtol=0, atol=case.tolerance)


@pytest.mark.parametrize("case", MEDIUM_CASES, ids=str)
def test_function_body_with_half_value(case):
    inputs = make_inputs(case)
    inputs["value"] = inputs["value"].astype(np.float16)
    exact = rdsa_oracle(**inputs, num_heads=case.H, num_points=case.P)
    (out,) = body_session(case.F, case.H, case.P, True).run(None, inputs)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out.astype(np.float64), exact, rtol=2**-11, atol=case.tolerance)
