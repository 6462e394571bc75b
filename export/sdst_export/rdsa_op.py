"""sdst::RDSA in ONNX: how the exporter writes the node, and the function that computes it where no plugin does.

The signature is that of `sdst_train.model.rdsa.rdsa`; the two extra attributes let TensorRT's parser find the plugin.
The function equals it too; its arithmetic is float32 whatever the type of value. Shapes: B batch, T clips, M moments,
F width, H heads, P points, D = F / H.
"""

# onnxscript reads this source: names follow ONNX, and annotations must stay objects (no __future__ import). Its own
# stubs type every operator by what the ONNX schema lists, which no program over several operators satisfies.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
# pyright: reportUndefinedVariable=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportReturnType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
import torch
from onnxscript import FLOAT, INT32, ir, script
from onnxscript import opset20 as op
from onnxscript.values import Opset

OPSET = 20
DOMAIN = "sdst"
NAME = "RDSA"
PLUGIN_VERSION = "1"


def symbolic_rdsa(
    value: torch.Tensor,
    endpoints: torch.Tensor,
    reference: torch.Tensor,
    length: torch.Tensor,
    num_heads: int,
    num_points: int,
) -> torch.Tensor:
    """Stands in for the op while torch.onnx.export traces: becomes one sdst::RDSA node."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}",
        (value, endpoints, reference, length),
        attrs={
            "num_heads": num_heads,
            "num_points": num_points,
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": DOMAIN,
        },
        dtype=value.dtype,
        shape=(value.shape[0], reference.shape[1], value.shape[2]),
        version=1,
    )


def add_function(model: ir.Model) -> None:
    """Give the model the body of sdst::RDSA, so that ONNX Runtime and Polygraphy run it with no library of ours."""
    function = ir.from_proto(RDSA.to_function_proto())
    model.functions[function.identifier()] = function
    model.graph.opset_imports[DOMAIN] = 1


_domain = Opset(DOMAIN, 1)


@script(_domain)
def RDSA(
    value, endpoints: FLOAT["B", "T", "E"], reference: FLOAT["B", "M", 2], length: INT32["B"], num_heads: int,  # noqa: F821
    num_points: int,
):  # fmt: skip
    zero = op.Constant(value_float=0.0)
    one = op.Constant(value_float=1.0)
    half = op.Constant(value_float=0.5)
    heads = op.Constant(value_int=num_heads)
    points = op.Constant(value_int=num_points)
    heads_1 = op.Reshape(heads, op.Constant(value_ints=[1]))
    points_1 = op.Reshape(points, op.Constant(value_ints=[1]))
    batch = op.Shape(value, start=0, end=1)
    clips = op.Shape(value, start=1, end=2)
    moments = op.Shape(reference, start=1, end=2)
    one_1 = op.Constant(value_ints=[1])
    two_1 = op.Constant(value_ints=[2])
    three_1 = op.Constant(value_ints=[3])
    rest_1 = op.Constant(value_ints=[-1])

    n = op.Reshape(op.Cast(length, to=1), op.Constant(value_ints=[-1, 1, 1]))  # B 1 1
    last = op.Sub(n, one)
    centre = op.Gather(reference, op.Constant(value_ints=[0]), axis=2)  # B M 1
    reach = op.Mul(op.Gather(reference, op.Constant(value_ints=[1]), axis=2), half)

    # Three rows of endpoints, interpolated with border clamp, added up: B M 2HP.
    ends = op.Transpose(op.Concat(op.Sub(centre, reach), centre, op.Add(centre, reach), axis=2), perm=[0, 2, 1])
    place = op.Sub(op.Mul(op.Min(op.Max(ends, zero), one), n), half)  # B 3 M
    place = op.Min(op.Max(place, zero), last)
    low = op.Floor(place)
    share = op.Unsqueeze(op.Sub(place, low), rest_1)
    high = op.Min(op.Add(low, one), last)
    table = op.Transpose(
        op.Reshape(endpoints, op.Concat(batch, clips, three_1, rest_1, axis=0)), perm=[0, 2, 1, 3]
    )  # B 3 T 2HP
    low_rows = op.GatherND(table, op.Unsqueeze(op.Cast(low, to=7), rest_1), batch_dims=2)
    high_rows = op.GatherND(table, op.Unsqueeze(op.Cast(high, to=7), rest_1), batch_dims=2)
    rows = op.Add(op.Mul(low_rows, op.Sub(one, share)), op.Mul(high_rows, share))  # B 3 M 2HP
    summed = op.ReduceSum(rows, one_1, keepdims=0)
    predicted = op.Transpose(
        op.Reshape(summed, op.Concat(batch, moments, two_1, heads_1, points_1, axis=0)), perm=[2, 0, 3, 1, 4]
    )  # 2 B H M P
    offset = op.Gather(predicted, op.Constant(value_int=0), axis=0)
    weight = op.Softmax(op.Gather(predicted, op.Constant(value_int=1), axis=0), axis=-1)

    # Values at centre + offset * width / 2, zero outside the video, weighted and summed.
    location = op.Add(op.Unsqueeze(centre, one_1), op.Mul(offset, op.Unsqueeze(reach, one_1)))
    n_4 = op.Unsqueeze(n, rest_1)
    last_4 = op.Unsqueeze(last, rest_1)
    index = op.Sub(op.Mul(location, n_4), half)
    index = op.Min(op.Max(index, op.Constant(value_float=-1.0)), op.Add(last_4, one))
    before = op.Floor(index)
    after = op.Add(before, one)
    fraction = op.Sub(index, before)
    before_in = op.Cast(op.And(op.GreaterOrEqual(before, zero), op.LessOrEqual(before, last_4)), to=1)
    after_in = op.Cast(op.And(op.GreaterOrEqual(after, zero), op.LessOrEqual(after, last_4)), to=1)
    before_weight = op.Mul(op.Mul(op.Sub(one, fraction), before_in), weight)
    after_weight = op.Mul(op.Mul(fraction, after_in), weight)
    values = op.Transpose(
        op.Reshape(op.Cast(value, to=1), op.Concat(batch, clips, heads_1, rest_1, axis=0)), perm=[0, 2, 1, 3]
    )  # B H T D
    before_row = op.Cast(op.Min(op.Max(before, zero), last_4), to=7)
    after_row = op.Cast(op.Min(op.Max(after, zero), last_4), to=7)
    before_value = op.GatherND(values, op.Unsqueeze(before_row, rest_1), batch_dims=2)  # B H M P D
    after_value = op.GatherND(values, op.Unsqueeze(after_row, rest_1), batch_dims=2)
    sampled = op.Add(
        op.Mul(before_value, op.Unsqueeze(before_weight, rest_1)),
        op.Mul(after_value, op.Unsqueeze(after_weight, rest_1)),
    )
    out = op.Transpose(op.ReduceSum(sampled, three_1, keepdims=0), perm=[0, 2, 1, 3])  # B M H D
    return op.CastLike(op.Reshape(out, op.Concat(batch, moments, rest_1, axis=0)), value)
