"""config.pbtxt of each model, made and written by Triton's own protobuf, so that no name in it can be misspelt.

It is in tritonclient, which wants another protobuf than onnx does: the extra `triton`, in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import require_package
from ...sessions.base import TensorInfo

Kind = Literal["cpu", "onnx", "tensorrt"]
BACKENDS: dict[Kind, str] = {"cpu": "python", "onnx": "onnxruntime", "tensorrt": "tensorrt"}
GROUND = "sdst_ground"  # the model that asks the others
MOST_REQUESTS = 32  # of a batch of sdst_ground
MOST_QUEUED = 64  # requests; the surplus is refused at once
WAIT_US = 2000  # for more requests to a batch
WARM_SIZE = 8  # of every free axis at the warm-up


@dataclass(frozen=True)
class Signature:
    """What a model's file says of itself; of a plan also how many profiles it has."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    profiles: int = 0


def model_configuration(kind: Kind, name: str, file: str, signature: Signature) -> str:
    """Of a model of the bundle. Raises DependencyError without tritonclient.

    There is no batching by Triton: rows that it puts together may exceed a profile, and sdst_ground makes batches
    itself. A plan runs under all its profiles, which Triton does only when they are named.
    """
    protobuf = _protobuf()
    config = protobuf.ModelConfig(name=name, backend=BACKENDS[kind], max_batch_size=0)
    if kind == "cpu":
        config.parameters["file"].string_value = file
    else:
        config.default_model_filename = file
    for infos, tensors in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for tensor, info in infos.items():
            tensors.add(name=tensor, data_type=_type(protobuf, info), dims=_dims(info, -1))
    group = config.instance_group.add(count=1, kind=_instances(protobuf, kind))
    group.profile.extend(map(str, range(signature.profiles)))
    if kind != "tensorrt":  # a plan's profiles need not hold WARM_SIZE
        _warm_up(protobuf, config, signature.inputs)
    return _text(config)


def ground_configuration(layers: int, width: int, root: str) -> str:
    """Of sdst_ground; `layers` and `width` are those of video features, `root` the folder that paths are taken from."""
    protobuf = _protobuf()
    config = protobuf.ModelConfig(name=GROUND, backend="python", max_batch_size=MOST_REQUESTS)
    config.parameters["root"].string_value = root
    config.input.add(name="sentences", data_type=protobuf.TYPE_STRING, dims=[-1])
    for name, data_type, dims in (
        ("path", protobuf.TYPE_STRING, [1]),
        ("bytes", protobuf.TYPE_STRING, [1]),
        ("features", protobuf.TYPE_FP32, [-1, layers, width]),
        ("duration_s", protobuf.TYPE_FP64, [1]),
    ):
        ragged = name == "features"
        config.input.add(name=name, data_type=data_type, dims=dims, optional=True, allow_ragged_batch=ragged)
    config.output.add(name="answers", data_type=protobuf.TYPE_STRING, dims=[-1])
    config.output.add(name="video", data_type=protobuf.TYPE_STRING, dims=[1])
    config.instance_group.add(count=1, kind=protobuf.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = WAIT_US
    config.dynamic_batching.default_queue_policy.max_queue_size = MOST_QUEUED
    return _text(config)


def _warm_up(protobuf: Any, config: Any, inputs: Mapping[str, TensorInfo]) -> None:
    warm_up = config.model_warmup.add(name="usual", batch_size=0)
    for name, info in inputs.items():
        given = warm_up.inputs[name]
        given.data_type, given.zero_data = _type(protobuf, info), True
        given.dims.extend(_dims(info, WARM_SIZE))


def _instances(protobuf: Any, kind: Kind) -> Any:
    groups = protobuf.ModelInstanceGroup
    return {"cpu": groups.KIND_CPU, "onnx": groups.KIND_AUTO, "tensorrt": groups.KIND_GPU}[kind]


def _type(protobuf: Any, info: TensorInfo) -> Any:
    names = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}
    return getattr(protobuf, f"TYPE_{names[info.dtype.name]}")


def _dims(info: TensorInfo, free: int) -> list[int]:
    return [n if isinstance(n, int) else free for n in info.shape]


def _protobuf() -> Any:
    return require_package("tritonclient.grpc.model_config_pb2", "triton")


def _text(config: Any) -> str:
    text_format: Any = require_package("google.protobuf.text_format", "triton")
    return text_format.MessageToString(config)
