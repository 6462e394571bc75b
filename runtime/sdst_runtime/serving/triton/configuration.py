"""config.pbtxt of each model, made and written by Triton's own protobuf, so that no name in it can be misspelt.

It is in tritonclient, which wants another protobuf than onnx does: the extra `triton`, in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import require_package
from ...media.clips import VISION_BATCH
from ...sessions.base import SENTENCE, TensorInfo
from ...sessions.tensorrt.sidecar import Profile

Kind = Literal["cpu", "onnx", "tensorrt"]
BACKENDS: dict[Kind, str] = {"cpu": "python", "onnx": "onnxruntime", "tensorrt": "tensorrt"}
GROUND = "sdst_ground"  # the model that asks the others
ALIGNMENT = "alignment"  # its output of how well a sentence fits the video
MOST_REQUESTS = 32  # of a batch of sdst_ground
MOST_QUEUED = 64  # requests; the surplus is refused at once
WAIT_US = 2000  # for more requests to a batch
VIDEO_BYTES = 1 << 30  # of encoded videos that an instance of sdst_ground keeps
WARM_ROWS, WARM_CLIPS = 8, 75  # at the warm-up of a model that takes any size


@dataclass(frozen=True)
class Signature:
    """What a model's file says of itself; of a plan also its profiles."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    profiles: tuple[Profile, ...] = ()


def model_configuration(kind: Kind, name: str, file: str, signature: Signature, tokens: int) -> str:
    """Of a model of the bundle; `tokens` are the most of a sentence. Raises DependencyError without tritonclient.

    There is no batching by Triton: rows that it puts together may exceed a profile, and sdst_ground makes batches
    itself. A plan runs under all its profiles, which Triton does only when they are named. Before the model is ready it
    runs once on zeros of each of `warm_shapes`.
    """
    protobuf = _protobuf()
    config = protobuf.ModelConfig(name=name, backend=BACKENDS[kind], max_batch_size=0)
    if kind == "cpu":
        config.parameters["file"].string_value = file
    else:
        config.default_model_filename = file
    for infos, tensors in ((signature.inputs, config.input), (signature.outputs, config.output)):
        for tensor, info in infos.items():
            dims = [n if isinstance(n, int) else -1 for n in info.shape]
            tensors.add(name=tensor, data_type=_type(protobuf, info), dims=dims)
    group = config.instance_group.add(count=1, kind=_instances(protobuf, kind))
    group.profile.extend(map(str, range(len(signature.profiles))))
    _warm_up(protobuf, config, signature, tokens)
    return _text(config)


def warm_shapes(signature: Signature, tokens: int) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of all inputs at a warm-up; `tokens` are the most of a sentence.

    Of a plan the least and the most of each profile: its kernels are loaded, its memory is there. Of a file that takes
    any size 1 in every free axis, and what a batch of questions about a video of some minutes has.
    """
    usual = {"N": VISION_BATCH, "B": WARM_ROWS, "T": WARM_CLIPS, "L": tokens}
    found: list[dict[str, tuple[int, ...]]] = []
    for profile in signature.profiles:
        found += [{name: one.min for name, one in profile.items()}, {name: one.max for name, one in profile.items()}]
    if not found:
        for sizes in (dict.fromkeys(usual, 1), usual):
            axes = {name: info.shape for name, info in signature.inputs.items()}
            found.append({name: tuple(n if isinstance(n, int) else sizes[n] for n in axes[name]) for name in axes})
    return [shapes for i, shapes in enumerate(found) if shapes not in found[:i]]


def ground_configuration(layers: int, width: int, root: str, models: Collection[str]) -> str:
    """Of sdst_ground. `layers` and `width` are those of video features, `root` the folder that paths are taken from,
    `models` those that it can ask.
    """
    protobuf = _protobuf()
    config = protobuf.ModelConfig(name=GROUND, backend="python", max_batch_size=MOST_REQUESTS)
    config.parameters["root"].string_value = root
    config.parameters["video_bytes"].string_value = str(VIDEO_BYTES)
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
    if SENTENCE in models:
        config.output.add(name=ALIGNMENT, data_type=protobuf.TYPE_FP32, dims=[-1])
    config.instance_group.add(count=1, kind=protobuf.ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.max_queue_delay_microseconds = WAIT_US
    config.dynamic_batching.default_queue_policy.max_queue_size = MOST_QUEUED
    return _text(config)


def _warm_up(protobuf: Any, config: Any, signature: Signature, tokens: int) -> None:
    for number, shapes in enumerate(warm_shapes(signature, tokens)):
        sample = config.model_warmup.add(name=f"shapes {number}", batch_size=1)  # of 0 Triton skips it
        for name, shape in shapes.items():
            given = sample.inputs[name]
            given.data_type, given.zero_data = _type(protobuf, signature.inputs[name]), True
            given.dims.extend(shape)


def _instances(protobuf: Any, kind: Kind) -> Any:
    groups = protobuf.ModelInstanceGroup
    return {"cpu": groups.KIND_CPU, "onnx": groups.KIND_AUTO, "tensorrt": groups.KIND_GPU}[kind]


def _type(protobuf: Any, info: TensorInfo) -> Any:
    names = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "bool": "BOOL", "uint8": "UINT8"}
    return getattr(protobuf, f"TYPE_{names[info.dtype.name]}")


def _protobuf() -> Any:
    return require_package("tritonclient.grpc.model_config_pb2", "triton")


def _text(config: Any) -> str:
    text_format: Any = require_package("google.protobuf.text_format", "triton")
    return text_format.MessageToString(config)
