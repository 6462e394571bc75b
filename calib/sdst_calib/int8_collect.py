"""Scales of the tensors that int8 products read, from histograms over real inputs, one query at a time.

The histograms of `sdst calibrate ranges` have sixteen bins in a doubling: enough to see a range, too few to choose one
by entropy, which compares 128 levels. So the tensors are run once more, with bins of equal width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdst_runtime.errors import InputError

from .ranges import calibrate
from .scales import GrowingHistogram, Method, activation_scale
from .taps import Feeds, open_graph, run_tapped


def require_real(path: Path, feeds: Feeds) -> None:
    """Raise InputError unless there are inputs, all finite, none of them the same number everywhere."""
    calibrate(dataclasses.replace(open_graph(path), taps=()), feeds, ("", "", ""))


def tensor_scales(
    path: Path, tensors: Sequence[str], feeds: Feeds, method: Method, on_done: Callable[[int], None]
) -> dict[str, float]:
    """The scale of each of `tensors` of an ONNX file that is not 0 throughout; `on_done` hears of the inputs done.

    Raises InputError, naming the tensor, for NaN or infinity in it.
    """
    histograms = {name: GrowingHistogram() for name in tensors}
    for done, values in enumerate(run_tapped(open_graph(path), tensors, feeds()), 1):
        for name, array in values.items():
            with _naming(path, name):
                histograms[name].add(array)
        on_done(done)
    return {
        name: activation_scale(counter.histogram(), method) for name, counter in histograms.items() if counter.amax > 0
    }


@contextmanager
def _naming(path: Path, tensor: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{path.name}, {tensor}: {error}") from error
