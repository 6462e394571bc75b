"""What runs inside Triton's Python backend: a model of the bundle on the CPU, and sdst_ground, which asks the models.

sdst_ground is a Grounder whose sessions are requests to Triton's other models, so that its answers are those of
`sdst ground`. Triton makes one object of each class in a process of its own, calls `initialize` once and `execute`
with the requests of a batch.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import EncodedVideo, Grounding, VideoFeatures
from ...corpus.ask import pooled_sentences
from ...corpus.ranking import Ranked, Ranking
from ...corpus.store import unit_vectors
from ...doctor.installation import ASSETS
from ...errors import InputError, SdstError
from ...grounding.bundle import MANIFEST, Manifest
from ...grounding.grounder import Grounder
from ...sessions.open import open_session
from ...strict_json import dump_json, read_strict
from ..roots import path_inside
from .bls import ModelUnavailable, TritonBundle, UnaskedSession, triton_utils
from .configuration import ALIGNMENT
from .videos import RecentVideos


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
        utils = triton_utils()
        try:
            given = {name: utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._session.inputs}
            outputs = self._session.run(given)
        except SdstError as error:
            return utils.InferenceResponse(error=utils.TritonError(str(error)))
        wanted = request.requested_output_names()
        return utils.InferenceResponse([utils.Tensor(name, outputs[name]) for name in wanted])


class GroundModel:
    """sdst_ground: a video (path under the root, bytes, or features with duration_s) and sentences to answers."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read what the repository says of the models, and try all that is not theirs on a small video."""
        folder = _version(arguments)
        manifest = read_strict(Manifest, folder / MANIFEST, "write the repository again with  sdst triton")
        with Grounder(TritonBundle(folder, manifest, UnaskedSession)) as warm:
            warm.ground(ASSETS / "colours.mp4", warm.tokenizer.known_word())
        bundle = TritonBundle(folder, manifest)
        self._grounder = Grounder(bundle)
        self._sentence = bundle.session("sentence") if "sentence" in bundle.models else None
        self._root = _parameter(arguments, "root")
        self._videos = RecentVideos(int(_parameter(arguments, "video_bytes")))

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
        return [
            _refused(result) if isinstance(result, SdstError) else self._answered(request, result, next(answers))
            for request, result in zip(requests, results)
        ]

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
        given = [name for name in named if triton_utils().get_input_tensor_by_name(request, name) is not None]
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
        try:
            video = self._videos.get(path, self._grounder.encode)
        except SdstError as error:
            raise type(error)(str(error).replace(str(path), asked)) from error
        return replace(video, warnings=tuple(line.replace(str(path), asked) for line in video.warnings))

    def _from_bytes(self, request: Any) -> EncodedVideo:
        return self._grounder.encode(io.BytesIO(_array(request, "bytes", (1, 1))[0, 0]))

    def _from_features(self, request: Any) -> EncodedVideo:
        features, spec = np.array(_array(request, "features", (1, -1, -1, -1))[0]), self._grounder.spec
        duration_s = float(_array(request, "duration_s", (1, 1))[0, 0])
        return self._grounder.project(VideoFeatures(features, duration_s, spec))

    def _answered(self, request: Any, job: tuple[EncodedVideo, list[str]], answers: Sequence[Grounding]) -> Any:
        """answers: JSON of each sentence as in `results` of `sdst ground --json`; video: JSON of what is known of it;
        alignment, if it is asked for: float32 of each sentence.
        """
        utils, (video, sentences) = triton_utils(), job
        facts = {"duration_s": video.duration_s, "clip_s": video.spec.clip_s, "warnings": list(video.warnings)}
        texts = {"answers": [dump_json(answer.to_dict()) for answer in answers], "video": [dump_json(facts)]}
        outputs = {name: np.array([[line.encode() for line in lines]], object) for name, lines in texts.items()}
        if ALIGNMENT in request.requested_output_names():
            try:
                outputs[ALIGNMENT] = self._alignment(video, sentences)[None]
            except SdstError as error:
                return _refused(error)
        return utils.InferenceResponse([utils.Tensor(name, array) for name, array in outputs.items()])

    def _alignment(self, video: EncodedVideo, sentences: Sequence[str]) -> np.ndarray:
        """Of each sentence with the video, float32, -1..1: what `sdst corpus ask` orders videos by."""
        assert self._sentence is not None  # else the configuration names no such output
        vectors = np.concatenate([unit_vectors(piece) for piece in video.projected])
        ranking = Ranking((Ranked("", len(vectors), ""),), vectors)
        return ranking.alignment(pooled_sentences(self._grounder, self._sentence, sentences))[:, 0]


def _array(request: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An input of one request. Raises InputError unless it is there with this shape; -1 is any size."""
    tensor = triton_utils().get_input_tensor_by_name(request, name)
    array = None if tensor is None else tensor.as_numpy()
    if array is None or array.ndim != len(shape) or any(n not in (-1, got) for n, got in zip(shape, array.shape)):
        raise InputError(f"{name}: expected shape {list(shape)}, got {None if array is None else list(array.shape)}")
    return array


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected text in UTF-8, got {value[:40]!r}") from error


def _refused(error: SdstError) -> Any:
    utils = triton_utils()
    codes = utils.TritonError
    code = codes.UNAVAILABLE if isinstance(error, ModelUnavailable) else codes.INTERNAL
    code = codes.INVALID_ARG if isinstance(error, InputError) else code
    return utils.InferenceResponse(error=utils.TritonError(str(error), code))
