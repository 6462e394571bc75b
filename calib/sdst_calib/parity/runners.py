"""Polygraphy around our sessions: a runner for any of them, a loader that registers the plugin, one place for versions.

Polygraphy 0.49 (which JetPack pins) and 0.53 differ in names and in what a comparison gives; `simple_compare` and
`compare` hide it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseLoader, BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from sdst_runtime.errors import InputError
from sdst_runtime.sessions.base import Session
from sdst_runtime.sessions.plugin_library import open_plugin_library
from sdst_runtime.sessions.tensorrt.compat import load_tensorrt, register_plugin

try:  # 0.53 and later
    from polygraphy.comparator import SimpleCompareFunc as simple_compare  # type: ignore[attr-defined]
except ImportError:
    from polygraphy.comparator import CompareFunc

    simple_compare = CompareFunc.simple

Outputs = dict[str, np.ndarray]


class SessionRunner(BaseRunner):
    """Any of our sessions as a Polygraphy runner: torch, ONNX Runtime, TensorRT, or a head of two models.

    The session stays open when the runner is deactivated: it is the caller's.
    """

    def __init__(self, session: Session, name: str) -> None:
        super().__init__(name=name)
        self._session = session

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, types and shapes; a free axis is None."""
        metadata = TensorMetadata()
        for name, info in self._session.inputs.items():
            metadata.add(name, dtype=info.dtype, shape=[n if isinstance(n, int) else None for n in info.shape])
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs by name. Raises what the session's `run` raises."""
        start = time.perf_counter()
        outputs = OrderedDict(self._session.run(feed_dict))
        self.inference_time = time.perf_counter() - start
        return outputs


class RegisterPlugin(BaseLoader):
    """Makes TensorRT's registry know sdst::RDSA, then calls `then`, as EngineFromBytes(...).

    Polygraphy's own LoadPlugins, and `--plugins`, open the library and do not register what is in it.
    """

    def __init__(self, then: Callable[[], Any]) -> None:
        self._then = then

    def call_impl(self) -> Any:
        """What `then` gives. Raises DependencyError without TensorRT or the library, ContractError as registering."""
        register_plugin(load_tensorrt(), open_plugin_library("cuda").info)
        return util.invoke_if_callable(self._then)[0]


@dataclass(frozen=True)
class OutputError:
    """What Polygraphy says of one output of one batch, against the reference."""

    max_abs: float
    mean_abs: float
    max_rel: float  # against the reference's value, element by element
    mean_rel: float


def run_runners(runners: Sequence[BaseRunner], inputs: Mapping[str, np.ndarray]) -> RunResults:
    """One batch through all runners. Raises InputError when Polygraphy refuses the inputs."""
    with _in_one_line():
        results: Any = Comparator.run(list(runners), data_loader=[OrderedDict(inputs)])
    return results


def outputs_of(results: RunResults, name: str) -> Outputs:
    """The arrays that the runner of this name gave for one batch."""
    return {output: np.asarray(array) for output, array in results[name][0].items()}


def compare(results: RunResults, names: Sequence[str]) -> dict[str, dict[str, OutputError]]:
    """Errors by runner and output; `names` are the runners, the reference first.

    Raises InputError when the outputs differ in names or shapes.
    """
    _require_same_outputs(results, names)
    place = {name: number for number, (name, _) in enumerate(results)}
    pairs = [(place[name], place[names[0]]) for name in names[1:]]  # relative errors are relative to the second
    function = simple_compare(check_error_stat="max", atol=0.0, rtol=0.0)
    with _in_one_line():
        accuracy: Any = Comparator.compare_accuracy(results, compare_func=function, comparisons=pairs)
    of_pairs = accuracy if hasattr(accuracy, "keys") else accuracy[0]  # 0.53: an entry for each compare function
    return {
        name: {output: _error(result) for output, result in of_pairs[(name, names[0])][0].items()} for name in names[1:]
    }


def _error(result: Any) -> OutputError:
    values = (result.max_absdiff, result.mean_absdiff, result.max_reldiff, result.mean_reldiff)
    return OutputError(*map(float, values))


def _require_same_outputs(results: RunResults, names: Sequence[str]) -> None:
    """Polygraphy leaves out an output that one runner lacks, and gives a bare False where shapes differ."""
    expected = {output: array.shape for output, array in outputs_of(results, names[0]).items()}
    for name in names[1:]:
        got = {output: array.shape for output, array in outputs_of(results, name).items()}
        if got != expected:
            raise InputError(f"{name}: expected the outputs of {names[0]}, {expected}, got {got}; compare like models")


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Polygraphy quiet, and its errors ours."""
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            yield
    except PolygraphyException as error:
        raise InputError(f"Polygraphy: {' '.join(str(error).split())}") from error
