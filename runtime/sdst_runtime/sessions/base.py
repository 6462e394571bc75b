"""Sessions: one way to run a model file, whatever runs it.

A session maps named numpy arrays to named numpy arrays. open.py opens one by its file's suffix.
Shapes: B batch, T clips, K layers, V video width, F width, L tokens, X text width, M moments.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

from ..errors import ContractError, InputError, SessionError

ModelKind = Literal["vision", "text", "projection", "head", "sentence"]  # the models of a bundle
MODELS: tuple[ModelKind, ...] = get_args(ModelKind)
GROUNDER_MODELS = MODELS[:4]  # what a Grounder runs; the sentence serves a corpus, and older bundles lack it
GROUNDING_MODELS: tuple[ModelKind, ...] = ("projection", "head")  # what GroundingModel runs, in this order
PROJECTED = "projected"  # B T K F, from the projection to the head
SENTENCE = "sentence"  # B K F, a unit vector a step, which is held against the clips of `projected`

Self = TypeVar("Self")  # typing has it from Python 3.11 on


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of an input or output; a free axis has a name, and axes of one name have one size."""

    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class Session(Protocol):
    """Runs one model. A context manager; closed at its end."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the exporter wrote into the file."""
        ...

    @property
    def inputs(self) -> Mapping[str, TensorInfo]: ...

    @property
    def outputs(self) -> Mapping[str, TensorInfo]: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or shape of the inputs is wrong, else SessionError."""
        ...

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...


class ClosedAtEnd:
    """A context manager that closes itself."""

    def close(self) -> None:
        """Give back what it holds; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ProcessSession(ClosedAtEnd):
    """What the sessions of all runners share: they run until they are closed, in the process that opened them.

    Neither a runner's threads nor the GPU's memory come along into a fork: each process opens its own session.
    """

    def __init__(self, name: str) -> None:
        """`name` of the model, for messages."""
        self.name = name
        self._process, self._closed = os.getpid(), False

    def close(self) -> None:
        """Give back what the session holds; a second call does nothing."""
        self._closed = True
        if self._process == os.getpid():  # else all of it is the parent's
            self._release()

    def _release(self) -> None:
        raise NotImplementedError

    def _require_open(self) -> None:
        if self._closed:
            raise self._closed_error()
        if self._process != os.getpid():
            raise SessionError(
                f"{self.name}: the session was opened by process {self._process} and this is its fork {os.getpid()};"
                " open the model in each process"
            )

    def _closed_error(self) -> SessionError:
        return SessionError(f"{self.name}: the session is closed; open the model again")


class GroundingModel(ClosedAtEnd):
    """The projection of the video and the head, which does what follows for the sentence, behind one `run`.

    Inputs video B T K V float32, video_mask B T bool, text B K L X float32, text_mask B L bool; outputs spans B M 2
    (start, end, fractions of the valid clips), scores B M, saliency B T and, of heads that predict it, presence B. For
    many sentences about one video run `projection` once and `head` for each.
    """

    def __init__(self, projection: Session, head: Session) -> None:
        """Raises ContractError when one model's `projected` is not the other's: files of two exports."""
        self.projection, self.head = projection, head
        have, need = projection.outputs.get(PROJECTED), head.inputs.get(PROJECTED)
        if have is None or need is None or have != need:
            raise ContractError(f"{PROJECTED}: the projection gives {have}, the head takes {need}; export both again")
        self.name = " and ".join(getattr(model, "name", "a model") for model in (projection, head))
        self.metadata = head.metadata
        self.inputs = {**projection.inputs, **head.inputs}
        del self.inputs[PROJECTED]
        self.outputs = head.outputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises InputError when a name, type or shape of the inputs is wrong."""
        require_inputs("the grounding model", self.inputs, inputs)
        projected = self.projection.run({name: inputs[name] for name in self.projection.inputs})
        given = {**inputs, **projected}
        return self.head.run({name: given[name] for name in self.head.inputs})

    def close(self) -> None:
        """Close both sessions."""
        self.projection.close()
        self.head.close()


SIGNATURES: dict[ModelKind, tuple[tuple[str, ...], tuple[str, ...]]] = {  # inputs and outputs of the models
    "vision": (("clips",), ("features",)),
    "text": (("token_ids", "token_mask"), ("features",)),
    "projection": (("video", "video_mask"), (PROJECTED,)),
    "head": ((PROJECTED, "text", "text_mask", "video_mask"), ("saliency", "scores", "spans")),
    "sentence": (("text", "text_mask"), (SENTENCE,)),
}


def require_signature(model: ModelKind, session: Session, source: object) -> None:
    """Raise ContractError naming `source` unless a session has the inputs and the outputs of such a model."""
    inputs, outputs = SIGNATURES[model]
    if sorted(session.inputs) != sorted(inputs) or not set(outputs) <= set(session.outputs):
        raise ContractError(
            f"{source}: expected a {model} model with inputs {', '.join(inputs)} and outputs {', '.join(outputs)}, got"
            f" {', '.join(session.inputs) or 'none'} and {', '.join(session.outputs) or 'none'}; export it again"
        )


def limit_of(session: Session, name: str, default: int) -> int:
    """A positive number that a model's file says of itself. Raises ContractError for another value."""
    told = session.metadata.get(name)
    if told is None:
        return default
    if not (told.isascii() and told.isdigit() and 0 < len(told) < 10 and int(told) > 0):
        raise ContractError(f"{name} of a model is {told[:20]!r}, expected a positive number; export or build it again")
    return int(told)


def require_inputs(model: str, expected: Mapping[str, TensorInfo], inputs: Mapping[str, np.ndarray]) -> None:
    """Raise InputError, naming the input, unless names, types and shapes are the expected ones."""
    if inputs.keys() != expected.keys():
        raise InputError(f"{model}: expected inputs {sorted(expected)}, got {sorted(inputs)}")
    sizes: dict[str, tuple[int, str]] = {}  # of each free axis, and the input that first had it
    for name, info in expected.items():
        array = inputs[name]
        fits = array.dtype == info.dtype and array.ndim == len(info.shape)
        if not fits or any(isinstance(n, int) and n != got for n, got in zip(info.shape, array.shape, strict=True)):
            raise InputError(
                f"{model}: input {name!r}: expected {info}, got {TensorInfo(array.dtype, array.shape)}; "
                "give the features and types of the bundle's contract"
            )
        for axis, got in zip(info.shape, array.shape, strict=True):
            size, first = sizes.setdefault(str(axis), (got, name))
            if size != got:
                raise InputError(f"{model}: axis {axis} is {size} in {first!r} and {got} in {name!r}; give one size")
