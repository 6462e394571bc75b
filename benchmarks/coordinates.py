"""What half-precision coordinates would cost sdst::RDSA: the error in clips, and in its output, at several lengths.

    python benchmarks/coordinates.py

Everything against float64; sampled values have unit variance. Letters: T clips, M moments, P points, F channels.
"""

from __future__ import annotations

import numpy as np

LENGTHS = (75, 256, 1024)
M, P, F = 3000, 4, 32


def main() -> None:
    """A row a length."""
    print("   T | index error in clips, mean (max)          | output error, mean abs (max)")  # noqa: T201
    print("     | float32             | float16             | float32             | float16")  # noqa: T201
    for T in LENGTHS:
        rng = np.random.default_rng(T)
        value = rng.standard_normal((T, F))
        centre, width = rng.uniform(0, 1, (M, 1)), rng.uniform(0.02, 0.5, (M, 1))
        offset = rng.normal(size=(M, P))
        exact = index(centre, width, offset, T, np.dtype(np.float64))
        cells = []
        for dtype in map(np.dtype, (np.float32, np.float16)):
            apart = np.abs(index(centre, width, offset, T, dtype).astype(np.float64) - exact)
            cells.append(f"{apart.mean():.2g} ({apart.max():.2g})")
        for dtype in map(np.dtype, (np.float32, np.float16)):
            got = sample(value, index(centre, width, offset, T, dtype).astype(np.float64))
            apart = np.abs(got - sample(value, exact))
            cells.append(f"{apart.mean():.2g} ({apart.max():.2g})")
        print(f"{T:4} | " + " | ".join(f"{cell:19}" for cell in cells))  # noqa: T201


def index(centre: np.ndarray, width: np.ndarray, offset: np.ndarray, T: int, dtype: np.dtype) -> np.ndarray:
    """M P: where RDSA looks, each step rounded to `dtype`, its inputs too."""
    centre, width, offset = centre.astype(dtype), width.astype(dtype), offset.astype(dtype)
    place = centre + offset * width / dtype.type(2)
    return place * dtype.type(T) - dtype.type(0.5)


def sample(value: np.ndarray, index: np.ndarray) -> np.ndarray:
    """M F: the mean over P of linear interpolation, zero outside the video."""
    weight = np.maximum(0, 1 - np.abs(np.arange(len(value)) - index[..., None]))
    return (weight @ value).mean(axis=1)


if __name__ == "__main__":
    main()
