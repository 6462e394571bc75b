"""The folder that tritonserver --model-repository reads, made of a bundle."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import write_json, write_text
from ...grounding.bundle import DATA_SUFFIX, MANIFEST, TOKENIZER, Bundle
from ...grounding.scores import SCORES
from ...sessions.base import TensorInfo
from ...sessions.tensorrt.sidecar import read_sidecar
from .configuration import GROUND, Kind, Signature, ground_configuration, model_configuration

SIGNATURES = "models.json"  # beside sdst_ground: names, types, shapes and metadata of the models that it asks
SUFFIXES: dict[Kind, str] = {"cpu": ".onnx", "onnx": ".onnx", "tensorrt": ".plan"}
_MODEL = "from sdst_runtime.serving.triton.backend import {} as TritonPythonModel  # noqa: F401\n"


def write_repository(bundle: Bundle, out: Path, kind: Kind, root: Path | None = None) -> None:
    """Write the models of a bundle and sdst_ground. `root`: the folder of videos that may be asked for by path.

    It is written aside and renamed. Raises InputError when `out` is there already or the bundle holds no models of
    this kind, DependencyError without tritonclient, and what opening the models raises.
    """
    if out.exists():
        raise InputError(f"{out}: expected no such folder, it is there; choose another --out or delete it")
    for model in bundle.models:
        if bundle.path(model).suffix != SUFFIXES[kind]:
            raise InputError(
                f"{bundle.path(model)}: expected {SUFFIXES[kind]} for --kind {kind}; give the bundle of "
                + ("sdst build" if kind == "tensorrt" else "sdst export")
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as aside:
        whole = Path(aside) / "repository"
        signatures = {model: _write_model(bundle, model, whole / model, kind) for model in bundle.models}
        ground, spec = whole / GROUND, bundle.manifest.spec
        version = ground / "1"
        version.mkdir(parents=True)
        for name in (MANIFEST, TOKENIZER, *({SCORES} & bundle.manifest.files.keys())):
            shutil.copy(bundle.directory / name, version)
        write_json(version / SIGNATURES, signatures)
        write_text(version / "model.py", _MODEL.format("GroundModel"))
        resolved = "" if root is None else str(root.resolve())
        text = ground_configuration(spec.layers, spec.video_width, resolved, bundle.models)
        write_text(ground / "config.pbtxt", text)
        whole.rename(out)


def _write_model(bundle: Bundle, model: str, folder: Path, kind: Kind) -> dict[str, Any]:
    """Write one model; returns its signature for models.json."""
    path = bundle.path(model)
    version = folder / "1"
    version.mkdir(parents=True)
    for file in (path, path.with_name(path.name + DATA_SUFFIX)):
        if file.is_file():
            shutil.copy(file, version)
    if kind == "cpu":
        write_text(version / "model.py", _MODEL.format("OneModel"))
    signature = _signature(bundle, model)
    tokens = bundle.manifest.spec.max_tokens
    write_text(folder / "config.pbtxt", model_configuration(kind, model, path.name, signature, tokens))
    return {
        "inputs": {name: _told(info) for name, info in signature.inputs.items()},
        "outputs": {name: _told(info) for name, info in signature.outputs.items()},
        "metadata": dict(signature.metadata),
    }


def _signature(bundle: Bundle, model: str) -> Signature:
    """A plan's is in its sidecar, which is read without a GPU."""
    path = bundle.path(model)
    if path.suffix == ".plan":
        sidecar = read_sidecar(path)
        inputs, outputs = (
            {name: record.info() for name, record in records.items()} for records in (sidecar.inputs, sidecar.outputs)
        )
        return Signature(inputs, outputs, sidecar.metadata(), sidecar.profiles)
    with bundle.session(model, threads=1) as session:
        return Signature(session.inputs, session.outputs, session.metadata)


def _told(info: TensorInfo) -> dict[str, Any]:
    return {"dtype": info.dtype.name, "shape": list(info.shape)}
