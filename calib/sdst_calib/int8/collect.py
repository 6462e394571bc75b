"""Scales of the tensors that int8 products read, from histograms over real inputs, one query at a time; and how far an
int8 vision model's features are from those of the model that it was made from.

The histograms of `sdst calibrate ranges` have sixteen bins in a doubling: enough to see a range, too few to choose one
by entropy, which compares 128 levels. So the tensors are run once more, with bins of equal width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdst_runtime.errors import InputError
from sdst_runtime.sessions.base import Session

from ..audit.ranges import calibrate
from ..taps import Feeds, Graph, groups, open_graph, run_tapped
from ..tensor_errors import TensorSums
from .scales import GrowingHistogram, Method, activation_scale


def require_real(path: Path, feeds: Feeds) -> None:
    """Raise InputError unless there are inputs, all finite, none of them the same number everywhere."""
    calibrate(dataclasses.replace(open_graph(path), taps=()), feeds, ("", "", ""))


def tensor_scales(
    path: Path, tensors: Sequence[str], feeds: Feeds, method: Method, on_done: Callable[[int, int], None]
) -> dict[str, float]:
    """The scale of each of `tensors` of an ONNX file that is not 0 throughout; `on_done` hears of
    (passes over the data done, of all).

    Raises InputError, naming the tensor, for NaN or infinity in it.
    """
    graph = open_graph(path)
    histograms = {name: GrowingHistogram() for name in tensors}
    parts = list(_parts(graph, tensors))
    for done, part in enumerate(parts, 1):
        for values in run_tapped(graph, part, feeds()):
            for name, array in values.items():
                with _naming(path, name):
                    histograms[name].add(array)
        on_done(done, len(parts))
    return {
        name: activation_scale(counter.histogram(), method) for name, counter in histograms.items() if counter.amax > 0
    }


def features_snr_db(reference: Session, other: Session, feeds: Feeds) -> float:
    """Signal to noise of the features of two vision models over all of `feeds`, dB."""
    sums = TensorSums()
    for inputs in feeds():
        sums.add(reference.run(inputs)["features"], other.run(inputs)["features"])
    return sums.error().snr_db


def _parts(graph: Graph, tensors: Sequence[str]) -> Iterator[list[str]]:
    """What one pass over the data taps; inputs of the graph, which no node makes, go with the first."""
    taps_of_nodes = [tap for tap in graph.taps if tap.tensor in set(tensors)]
    inputs = sorted(set(tensors) - {tap.tensor for tap in taps_of_nodes})
    for number, taps in enumerate(groups(taps_of_nodes)):
        yield [*(inputs if number == 0 else ()), *(tap.tensor for tap in taps)]


@contextmanager
def _naming(path: Path, tensor: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{path.name}, {tensor}: {error}") from error
