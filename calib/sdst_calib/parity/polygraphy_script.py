"""Writes a script that repeats a parity comparison with Polygraphy, ONNX Runtime and NumPy alone: nothing of ours.

Beside `NAME.py` lie `NAME.inputs.json` and `NAME.reference.json`, Polygraphy's own files: a list of inputs, and what
the reference answered to them, whatever it ran on. Both also serve `polygraphy run --load-inputs --load-outputs`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from polygraphy.comparator import IterationResult, RunResults
from polygraphy.json import to_json

from sdst_runtime.errors import InputError
from sdst_runtime.files import atomic_files, write_text
from sdst_runtime.sessions.base import GROUNDING_MODELS, Session

from ..taps import require_onnx


@dataclass(frozen=True)
class ScriptedBundle:
    """A bundle as the script runs it."""

    name: str
    graphs: Mapping[str, Path]  # of GROUNDING_MODELS to ONNX files
    max_abs: float  # that the script allows, of any output


def write_polygraphy_script(
    path: Path, reference: Session, bundles: Sequence[ScriptedBundle], batches: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Write the inputs, the reference's answers to them and the script, none before all are made.

    The script names the graphs by their paths from its own folder, so a tree that moves as a whole stays usable. Raises
    InputError for a graph that is not ONNX, a name that is no script's and a place that cannot be written.
    """
    path = Path(path)
    require_script(path, bundles)
    results = RunResults()
    answers = [OrderedDict(reference.run(inputs)) for inputs in batches]
    results.append(("reference", [IterationResult(answer, 0.0, "reference") for answer in answers]))
    texts = {
        path.with_suffix(".inputs.json"): to_json([OrderedDict(inputs) for inputs in batches]),
        path.with_suffix(".reference.json"): to_json(results),
        path: _script(path.parent, bundles),
    }
    with atomic_files(list(texts)) as folder:
        for place, text in texts.items():
            write_text(folder / place.name, text)


def require_script(path: Path, bundles: Sequence[ScriptedBundle]) -> None:
    """Raise InputError unless `path` can be a script's and the graphs are ONNX."""
    if path.suffix != ".py" or path.is_dir():
        got = "a directory" if path.is_dir() else f"a name that ends in {path.suffix!r}"
        raise InputError(f"{path}: expected the name of a script, which ends in .py, got {got}; name a file")
    for bundle in bundles:
        require_onnx(*bundle.graphs.values())


def _script(folder: Path, bundles: Sequence[ScriptedBundle]) -> str:
    rows = []
    for bundle in bundles:
        graphs = tuple(_relative(bundle.graphs[graph], folder) for graph in GROUNDING_MODELS)
        rows.append(f"    ({bundle.name!r}, {graphs!r}, {bundle.max_abs!r}),\n")
    return _TEMPLATE.replace("@BUNDLES@", "".join(rows))


def _relative(graph: Path, folder: Path) -> str:
    return Path(os.path.relpath(graph.resolve(), folder.resolve())).as_posix()


_TEMPLATE = '''"""Compares bundles of SDST with their reference, by Polygraphy alone.

Written by  sdst parity --polygraphy-script. Needs polygraphy (0.49 or later), onnxruntime and numpy. Prints the largest
absolute error of each output, inf for one that is missing or of another shape; exits with 1 when one is beyond its
limit.
"""

import os
import sys
import time
from collections import OrderedDict
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read while it is imported: else it calls home

import numpy as np
import onnxruntime
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.comparator import Comparator, RunResults
from polygraphy.json import load_json
from polygraphy.logger import G_LOGGER

try:  # 0.53 and later
    from polygraphy.comparator import SimpleCompareFunc as simple
except ImportError:
    from polygraphy.comparator import CompareFunc

    simple = CompareFunc.simple

HERE = Path(__file__).resolve().parent
STEM = Path(__file__).resolve().stem
BUNDLES = [  # name, (projection, head), largest absolute error of any output
@BUNDLES@]


def open_session(path):
    """Q/DQ of int8 graphs computed in float: int8 products saturate on x86 processors without VNNI."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class HeadRunner(BaseRunner):
    """A projection and the head that takes what it gives, as one model."""

    def __init__(self, name, graphs):
        super().__init__(name=name)
        self._parts = [OnnxrtRunner(open_session(HERE / graph)) for graph in graphs]

    def activate_impl(self):
        for part in self._parts:
            part.activate()

    def deactivate_impl(self):
        for part in self._parts:
            part.deactivate()

    def get_input_metadata_impl(self):
        projection, head = (part.get_input_metadata(use_numpy_dtypes=False) for part in self._parts)
        for name, entry in head.items():
            if name != "projected":
                projection[name] = entry
        return projection

    def infer_impl(self, feed_dict):
        start = time.perf_counter()
        projection, head = self._parts
        given = {name: feed_dict[name] for name in projection.get_input_metadata(use_numpy_dtypes=False)}
        values = {**feed_dict, **projection.infer(given)}
        wanted = head.get_input_metadata(use_numpy_dtypes=False)
        outputs = OrderedDict(head.infer({name: values[name] for name in wanted}))
        self.inference_time = time.perf_counter() - start
        return outputs


def compare(name, graphs, max_abs, inputs):
    """Polygraphy's results for the outputs of the reference, a dictionary for each of the inputs."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = RunResults.load(str(HERE / f"{STEM}.reference.json"))
        results.extend(Comparator.run([HeadRunner(name, graphs)], data_loader=inputs))
        function = simple(check_error_stat="max", atol=max_abs, rtol=0.0)
        compared = Comparator.compare_accuracy(results, compare_func=function, comparisons=[(1, 0)])
    of_pairs = compared if hasattr(compared, "keys") else compared[0]  # 0.53: an entry for each compare function
    (_, expected), _ = results
    return [
        {output: found.get(output, False) for output in answer}  # Polygraphy leaves out an output that is not there
        for answer, found in zip(expected, of_pairs[(name, "reference")])
    ]


def main():
    inputs = load_json(str(HERE / f"{STEM}.inputs.json"))
    failed = []
    for name, graphs, max_abs in BUNDLES:
        worst = {}
        for iteration in compare(name, graphs, max_abs, inputs):
            for output, result in iteration.items():
                apart = getattr(result, "max_absdiff", float("inf"))  # a bare False: no such output, another shape
                worst.setdefault(output, []).append(float(apart))
                if not result:
                    failed.append((name, output))
        told = " ".join(f"{output} {np.max(errors):.3g}" for output, errors in worst.items())  # NaN stays NaN
        print(f"{name}: {told} (limit {max_abs:g})")
    for name, output in sorted(set(failed)):
        print(f"beyond the limit: {name}: {output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
'''
