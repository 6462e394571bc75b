"""Whether ONNX Runtime's int8 products are exact on this processor, and how to run a model where they are not.

x86 processors without VNNI multiply u8 by s8 with an instruction that adds two products in 16 bits and saturates there
(VPMADDUBSW); ONNX Runtime uses it all the same, so a graph with Q/DQ answers wrongly and says nothing. The products
are therefore tried on the processor itself, on numbers whose sums do not fit into 16 bits. Where they saturate, a
session keeps Q/DQ apart from the products, which then are products of floats, and leaves the pairs around activations
out, whose rounding would cost time and gain nothing: as fast as float32, and nearer to it. Whoever asks for the file as
it is written (parity, calibration) gets the rounding too.

Where they are exact, ONNX Runtime computes in int8 the products that are alone behind their QuantizeLinear, and the
others in float, with weights that it restores in every run. Its removal of common subexpressions would make one of the
pairs of products that read one activation, so that optimiser is left out.

(ONNX Runtime's own remedy, session.x64quantprecision, refuses files in which several products read one weight, as the
steps of a head do.)
"""

from __future__ import annotations

import functools
import mmap
from pathlib import Path

import numpy as np

from ..errors import DependencyError
from .ort import import_onnxruntime

FLOAT_PRODUCTS = ("session.disable_quant_qdq", "1")  # of a session's config: Q/DQ are computed in float
NO_ROUNDING = ("session.enable_quant_qdq_cleanup", "1")  # with the above: pairs of Q and DQ are dropped
MERGED_PAIRS = "CommonSubexpressionElimination"  # the optimiser that makes one pair of several alike
LARGEST = 127.0
K, N = 64, 8  # of the known product: x B K of codes, times a K N weight of +-127, all scales 1
MODEL = Path(__file__).parent / "assets" / "int8_product.onnx"


@functools.cache
def products_are_exact() -> bool:
    """Whether the known product is right on this processor, with ONNX Runtime's CPU kernels as a session uses them.

    Raises DependencyError where ONNX Runtime is missing or cannot run it.
    """
    return bool(np.array_equal(known_product(), expected_product()))


def has_pairs(path: Path) -> bool:
    """Whether an ONNX file has Q/DQ. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"QuantizeLinear") >= 0


def known_product(*config: tuple[str, str]) -> np.ndarray:
    """What ONNX Runtime makes of the known product, 2 N float32, under entries of a session's config."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for entry in config:
        options.add_session_config_entry(*entry)
    try:
        session = ort.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": _x()})[0]
    except Exception as error:  # the binding raises many types that share no base
        raise DependencyError(
            f"ONNX Runtime {ort.__version__} does not run a small int8 model ({error}): run"
            "  pip install --force-reinstall onnxruntime"
        ) from error


def expected_product() -> np.ndarray:
    """The known product, exactly."""
    return _x() @ known_weight().astype(np.float32)


def known_weight() -> np.ndarray:
    """int8 K N: columns of 127 and of -127 in turn, so that pairs of products leave 16 bits at both ends."""
    return np.tile(np.array([LARGEST, -LARGEST], np.int8), (K, N // 2))


def _x() -> np.ndarray:
    return np.array([[LARGEST], [-LARGEST]], np.float32) * np.ones(K, np.float32)
