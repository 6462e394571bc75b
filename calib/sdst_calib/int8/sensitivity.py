"""Which layers int8 hurts: one at a time, and a search that leaves the worst out until a metric is within a budget.

A layer is "model:module". What is measured comes from a function, so that this file knows no model. Drops are in
points of a metric in percent; an error is a ratio of norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdst_runtime.errors import InputError


@dataclass(frozen=True)
class Measured:
    """A model with some layers in int8, against the one that it was made from."""

    drop: float  # of the metric that lost most, in points; below 0: all gained
    error: float  # |difference| / |outputs|, mean over the outputs


@dataclass(frozen=True)
class Sensitivity:
    """What one layer alone in int8 costs."""

    layer: str
    drop: float
    error: float


Measure = Callable[[frozenset[str]], Measured]  # of the layers in int8


def rank_layers(layers: Sequence[str], measure: Measure, on_done: Callable[[int, int], None]) -> list[Sensitivity]:
    """Each layer alone in int8, the most sensitive first: by drop, then by error, which tells more finely."""
    ranked = []
    for done, layer in enumerate(layers, 1):
        measured = measure(frozenset([layer]))
        ranked.append(Sensitivity(layer, measured.drop, measured.error))
        on_done(done, len(layers))
    return sorted(ranked, key=lambda one: (-one.drop, -one.error))


def search_within(
    ranked: Sequence[Sensitivity], measure: Measure, budget: float, on_done: Callable[[int, int], None]
) -> list[str]:
    """The layers to leave out, the most sensitive first, so that the others lose at most `budget` points.

    Greedy: layers that hurt only together are found late, and one that hurts alone but not with others is left out all
    the same. Raises InputError, with the least drop, when no layer can be int8 within the budget.
    """
    least = math.inf
    for count in range(len(ranked)):
        worst, rest = ranked[:count], ranked[count:]
        measured = measure(frozenset(one.layer for one in rest))
        on_done(count + 1, len(ranked))
        least = min(least, measured.drop)
        if measured.drop <= budget:
            return [one.layer for one in worst]
    raise InputError(
        f"--budget {budget:g}: no layer can be int8 within it, the least drop reached is {least:.4g} points;"
        " allow more points or try another --method"
    )
