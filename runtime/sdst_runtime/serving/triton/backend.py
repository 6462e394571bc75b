"""What runs inside Triton's Python backend: a model of the bundle on the CPU, and sdst_ground, which asks the models.

sdst_ground is a Grounder whose sessions are requests to Triton's other models, so that its answers are those of
`sdst ground`. Triton makes one object of each class in a process of its own, calls `initialize` once and `execute`
with the requests of a batch.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import EncodedVideo, Grounding, VideoFeatures
from ...errors import InputError, SdstError, SessionError
from ...grounding.bundle import MANIFEST, Bundle, Manifest
from ...grounding.grounder import Grounder
from ...sessions.base import ClosedAtEnd, Session, TensorInfo
from ...sessions.open import open_session
from ...strict_json import dump_json, read_strict
from ..roots import path_inside
from .repository import SIGNATURES


def _utils() -> Any:
    """Triton's own module, which only its processes have."""
    return importlib.import_module("triton_python_backend_utils")


def _parameter(arguments: Mapping[str, str], name: str) -> str:
    return json.loads(arguments["model_config"])["parameters"][name]["string_value"]


def _version(arguments: Mapping[str, str]) -> Path:
    return Path(arguments["model_repository"]) / arguments["model_version"]


class OneModel:
    """A model of the bundle, run by its session."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Open the model's file."""
        self._session = open_session(_version(arguments) / _parameter(arguments, "file"))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer or an error a request."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Close the session."""
        self._session.close()

    def _answer(self, request: Any) -> Any:
        utils = _utils()
        try:
            given = {name: utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._session.inputs}
            outputs = self._session.run(given)
        except SdstError as error:
            return utils.InferenceResponse(error=utils.TritonError(str(error)))
        wanted = request.requested_output_names()
        return utils.InferenceResponse([utils.Tensor(name, outputs[name]) for name in wanted])


class TritonSession(ClosedAtEnd):
    """A session that is one of Triton's models."""

    def __init__(self, name: str, signature: Mapping[str, Any]) -> None:
        """`signature` is the model's in models.json."""
        self.name = name
        self.metadata: Mapping[str, str] = signature["metadata"]
        self.inputs, self.outputs = (
            {
                tensor: TensorInfo(np.dtype(told["dtype"]), tuple(told["shape"]))
                for tensor, told in signature[side].items()
            }
            for side in ("inputs", "outputs")
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises SessionError with Triton's message when the model fails or is not there."""
        utils = _utils()
        response = utils.InferenceRequest(
            model_name=self.name,
            requested_output_names=list(self.outputs),
            inputs=[utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise SessionError(f"{self.name}: {response.error().message()}")
        return {n: np.array(utils.get_output_tensor_by_name(response, n).as_numpy()) for n in self.outputs}

    def close(self) -> None:
        """The model is Triton's."""


class TritonBundle(Bundle):
    """The bundle whose models are Triton's; tokenizer.json lies in its folder."""

    def session(self, model: str, threads: int | None = None) -> Session:
        """A model of Triton's."""
        signatures = json.loads((self.directory / SIGNATURES).read_text(encoding="utf-8"))
        session = TritonSession(model, signatures[model])
        self._require_own(model, session)
        return session


class GroundModel:
    """sdst_ground: a video (path under the root, bytes, or features with duration_s) and sentences to answers."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read what the repository says of the models; none of them is asked yet, Triton does not allow it here."""
        folder = _version(arguments)
        manifest = read_strict(Manifest, folder / MANIFEST, "write the repository again with  sdst triton")
        self._grounder = Grounder(TritonBundle(folder, manifest))
        self._root = _parameter(arguments, "root")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """An answer or an error a request; the sentences of all of them share batches of the head."""
        results: list[Any] = []  # of each request a job, or the error that it met
        for request in requests:
            try:
                results.append(self._job(request))
            except SdstError as error:
                results.append(error)
        jobs = [result for result in results if not isinstance(result, SdstError)]
        try:
            answers = iter(self._grounder.ground_many(jobs))
        except SdstError as error:
            results = [result if isinstance(result, SdstError) else error for result in results]
            answers = iter(())
        return [_refused(r) if isinstance(r, SdstError) else _answered(r[0], next(answers)) for r in results]

    def finalize(self) -> None:
        """Close the grounder."""
        self._grounder.close()

    def _job(self, request: Any) -> tuple[EncodedVideo, list[str]]:
        sentences = [_text(sentence) for sentence in _array(request, "sentences", (1, -1)).reshape(-1)]
        if not sentences:
            raise InputError("sentences: expected at least one, got none")
        for sentence in sentences:
            self._grounder.check(sentence)
        named = ("path", "bytes", "features")
        given = [name for name in named if _utils().get_input_tensor_by_name(request, name) is not None]
        if len(given) != 1:
            raise InputError(f"expected one of the inputs {', '.join(named)}, got {', '.join(given) or 'none'}")
        return getattr(self, f"_from_{given[0]}")(request), sentences

    def _from_path(self, request: Any) -> EncodedVideo:
        asked = _text(_array(request, "path", (1, 1))[0, 0])
        if not self._root:
            raise InputError("path: expected bytes or features, this repository was written without --root")
        path = path_inside(Path(self._root), asked)
        if path is None:
            raise InputError(f"path: expected one below the server's root, got {asked!r:.200}")
        return self._grounder.encode(path)

    def _from_bytes(self, request: Any) -> EncodedVideo:
        return self._grounder.encode(io.BytesIO(_array(request, "bytes", (1, 1))[0, 0]))

    def _from_features(self, request: Any) -> EncodedVideo:
        features, spec = np.array(_array(request, "features", (1, -1, -1, -1))[0]), self._grounder.spec
        duration_s = float(_array(request, "duration_s", (1, 1))[0, 0])
        return self._grounder.project(VideoFeatures(features, duration_s, spec))


def _array(request: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An input of one request. Raises InputError unless it is there with this shape; -1 is any size."""
    tensor = _utils().get_input_tensor_by_name(request, name)
    array = None if tensor is None else tensor.as_numpy()
    if array is None or array.ndim != len(shape) or any(n not in (-1, got) for n, got in zip(shape, array.shape)):
        raise InputError(f"{name}: expected shape {list(shape)}, got {None if array is None else list(array.shape)}")
    return array


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got {value[:40]!r}") from error


def _answered(video: EncodedVideo, answers: Sequence[Grounding]) -> Any:
    """answers: JSON of each sentence as in `results` of `sdst ground --json`; video: JSON of what is known of it."""
    utils = _utils()
    facts = {"duration_s": video.duration_s, "clip_s": video.spec.clip_s, "warnings": list(video.warnings)}
    outputs = {"answers": [dump_json(answer.to_dict()) for answer in answers], "video": [dump_json(facts)]}
    return utils.InferenceResponse(
        [utils.Tensor(n, np.array([[text.encode() for text in texts]], object)) for n, texts in outputs.items()]
    )


def _refused(error: SdstError) -> Any:
    utils = _utils()
    code = utils.TritonError.INVALID_ARG if isinstance(error, InputError) else utils.TritonError.INTERNAL
    return utils.InferenceResponse(error=utils.TritonError(str(error), code))
