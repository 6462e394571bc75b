"""How far apart two sessions of one model are, output by output, on real inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sdst_runtime.errors import ContractError
from sdst_runtime.session import Session


def max_abs_error(
    reference: Session, other: Session, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:  # fmt: skip
    """Largest absolute difference of each output over all batches; NaN where either session gives NaN.

    Raises ContractError when the sessions differ in the names or shapes of their outputs.
    """
    worst: dict[str, float] = {}
    for inputs in batches:
        expected, got = reference.run(inputs), other.run(inputs)
        shapes = [{name: array.shape for name, array in outputs.items()} for outputs in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ContractError(f"the sessions' outputs differ in shape: {shapes[0]} and {shapes[1]}")
        for name, array in expected.items():
            error = float(np.abs(array.astype(np.float64) - got[name].astype(np.float64)).max())
            worst[name] = float(np.maximum(worst.get(name, 0.0), error))  # keeps NaN
    return worst
