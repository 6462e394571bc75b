"""`sdst triton`: a bundle as a model repository of NVIDIA's Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import tyro

from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.serving.triton.configuration import Kind
from sdst_runtime.serving.triton.repository import write_repository


def triton(bundle: tyro.conf.Positional[Path], /, *, out: Path, kind: Kind, root: Path | None = None) -> None:
    """Write a model repository: the models of a bundle, and sdst_ground, which takes videos and sentences.

    Args:
        bundle: The directory that `sdst export` wrote; for tensorrt that of `sdst build`.
        out: Folder of the repository; it must not be there yet.
        kind: What runs the models: cpu (ONNX Runtime in Triton's Python backend), onnx (Triton's ONNX Runtime backend)
            or tensorrt.
        root: Folder of videos that may be asked for by their path below it. Default: none may.
    """
    write_repository(Bundle.open(bundle), out, kind, root)
    plugins = " --backend-config=tensorrt,plugins=/PATH/libsdst_triton_plugins.so" if kind == "tensorrt" else ""
    print(f"tritonserver --model-repository={out.resolve()}{plugins}")  # noqa: T201
