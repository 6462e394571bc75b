"""Trials of a bundle with some layers in int8: its metrics and outputs on labelled queries, beside its own.

A layer is named "model:module". Trials that follow one another differ in few layers: what these do not change is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import onnx
from onnxscript import ir

from sdst_export.graph import INLINE_LIMIT, save_model, weight_bytes
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample
from sdst_runtime.files import temporary_folder
from sdst_runtime.grounding.bundle import TOKENIZER, Bundle
from sdst_runtime.grounding.decode import predict
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_runtime.metrics.score import score
from sdst_runtime.sessions.base import GROUNDING_MODELS, GroundingModel, Session, TensorInfo
from sdst_runtime.sessions.open import open_session

from ..parity.task import CHECKED
from ..taps import Feeds
from .collect import features_snr_db
from .quantise import Quantised, quantise_model
from .sensitivity import Measured


@dataclass(frozen=True)
class Answers:
    """What a head answered to all queries."""

    metrics: dict[str, float]  # percent
    outputs: list[dict[str, np.ndarray]]  # of each batch


class Trial:
    """Quantises some layers of a bundle, runs the queries, and compares with the bundle itself."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, onnx.ModelProto],
        scales: Mapping[str, Mapping[str, float]],
        samples: Sequence[Sample],
        data: DataConfig,
        threads: int | None,
        place: Path,
    ) -> None:
        """`graphs`: the models that may get int8 layers; `scales`: model -> tensor -> scale. With a text model among
        them the sentences are encoded anew, else the features that the samples have are taken. Models that are tried
        lie in a temporary folder inside `place`."""
        self._bundle, self._graphs, self._scales = bundle, graphs, scales
        self._samples, self._data, self._threads, self._place = samples, data, threads, place
        self._last = {name: lru_cache(1)(partial(self._quantised, name)) for name in graphs}
        self._encoded = lru_cache(2)(self._encode)  # with the text model as it is, and as it was last

    @cached_property
    def reference(self) -> Answers:
        """Of the bundle as it is."""
        return self.answers(())

    def quantise(self, layers: Iterable[str]) -> dict[str, Quantised]:
        """The graphs that have some of `layers`, with these in int8."""
        layers = list(layers)
        chosen = {name: modules(name, layers) for name in self._graphs}
        return {name: self._last[name](those) for name, those in chosen.items() if those}

    def answers(self, layers: Iterable[str]) -> Answers:
        """Of the bundle with `layers` in int8; those of vision do not matter here, the samples have its features."""
        layers, spec = list(layers), self._bundle.manifest.spec
        samples = self._encoded(modules("text", layers)) if "text" in self._graphs else self._samples
        with temporary_folder(self._place) as folder:
            paths = [self._file(name, modules(name, layers), folder) for name in GROUNDING_MODELS]
            projection, head = (open_session(path, self._threads, as_written=True) for path in paths)
            with _Recorder(GroundingModel(projection, head)) as recorder:
                rows = predict(recorder, samples, spec.clip_s, layers=spec.layers)
        brief = score(rows, samples, self._data, rounded=False)["brief"]
        return Answers({name: brief[name] for name in CHECKED[self._data.metrics]}, recorder.answered)

    def vision_snr_db(self, layers: Iterable[str], feeds: Feeds) -> float | None:
        """Signal to noise of the vision model's features with `layers` in int8, dB; None where none is."""
        chosen = modules("vision", layers)
        if not chosen:
            return None
        with (
            temporary_folder(self._place) as folder,
            open_session(self._bundle.path("vision"), self._threads) as reference,
            open_session(self._file("vision", chosen, folder), self._threads, as_written=True) as other,
        ):
            return features_snr_db(reference, other, feeds)

    def measure(self, layers: frozenset[str]) -> Measured:
        """`layers` in int8 against the bundle."""
        return self.compare(self.answers(layers))

    def compare(self, answers: Answers) -> Measured:
        """Answers against the bundle's own."""
        drops = [self.reference.metrics[name] - value for name, value in answers.metrics.items()]
        return Measured(max(drops), _error(self.reference.outputs, answers.outputs))

    def _quantised(self, name: str, chosen: frozenset[str]) -> Quantised:
        return quantise_model(self._graphs[name], chosen, self._scales[name], self._bundle.directory)

    def _file(self, name: str, chosen: frozenset[str], folder: Path) -> Path:
        """A model with these modules in int8; the bundle's own file where there are none."""
        if not chosen:
            return self._bundle.path(name)
        path = folder / f"{name}.onnx"
        save_quantised(self._last[name](chosen).model, path, self._bundle.directory)
        return path

    def _encode(self, chosen: frozenset[str]) -> list[Sample]:
        """The samples with text features of the text model with these modules in int8."""
        tokenizer = Tokenizer.from_file(self._bundle.directory / TOKENIZER)
        samples = []
        with (
            temporary_folder(self._place) as folder,
            open_session(self._file("text", chosen, folder), self._threads, as_written=True) as session,
        ):
            for sample in self._samples:
                ids, mask = tokenizer.encode_batch([sample.row["query"]], self._bundle.manifest.spec.max_tokens)
                features = session.run({"token_ids": ids, "token_mask": mask})["features"][0]
                samples.append(dataclasses.replace(sample, text=features))
        return samples


def save_quantised(model: onnx.ModelProto, path: Path, folder: Path) -> None:
    """Write a model; weights that it has left in a file of `folder` are copied. Raises what `save_model` does."""
    whole = ir.from_proto(model)
    ir.external_data.set_base_dir(whole.graph, folder)
    if weight_bytes(whole) <= INLINE_LIMIT:  # in int8 it fits into one file
        whole = ir.external_data.load_to_model(whole)
    save_model(whole, path)


def modules(model: str, layers: Iterable[str]) -> frozenset[str]:
    """The modules of one model among layers."""
    named = (layer.split(":", 1) for layer in layers)
    return frozenset(module for owner, module in named if owner == model)


class _Recorder:
    """A session that keeps what it answered."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.metadata: Mapping[str, str] = session.metadata
        self.inputs: Mapping[str, TensorInfo] = session.inputs
        self.outputs: Mapping[str, TensorInfo] = session.outputs
        self.answered: list[dict[str, np.ndarray]] = []

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.answered.append(self._session.run(inputs))
        return self.answered[-1]

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _error(reference: Sequence[Mapping[str, np.ndarray]], other: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Norm of the difference over the norm, mean over the outputs."""
    ratios = []
    for name in reference[0]:
        expected, got = (
            np.concatenate([batch[name].astype(np.float64).ravel() for batch in batches])
            for batches in (reference, other)
        )
        ratios.append(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    return float(np.mean(ratios))
