"""The engines of a bundle against ONNX Runtime on the same random inputs: python device_parity.py BUNDLE ENGINES

Prints one JSON object: by model and shape the error of each output (max_abs, mean_abs, cosine, snr_db, not_finite) and
whether it keeps the tolerance of the bundle's precision (calib/sdst_calib/parity/tolerances.py), or the one-line error
of a model that could not be run. Exit code 1 when one did not pass. Shapes: B videos, T clips, Q queries a video.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "calib")]

from sdst_calib.parity.tolerances import DEFAULTS  # noqa: E402
from sdst_calib.tensor_errors import TensorSums  # noqa: E402
from sdst_runtime.bench.measure import Shape, head_inputs, make_inputs  # noqa: E402
from sdst_runtime.contracts import PRECISION_KEY  # noqa: E402
from sdst_runtime.errors import ContractError, SdstError  # noqa: E402
from sdst_runtime.grounding.bundle import TOKENIZER, Bundle  # noqa: E402
from sdst_runtime.grounding.tokenizer import Tokenizer  # noqa: E402
from sdst_runtime.sessions.base import SIGNATURES, Session, limit_of  # noqa: E402
from sdst_runtime.strict_json import dump_json, nulls_for_nan  # noqa: E402

SHAPES = (Shape(1, 75, 3, 8), Shape(2, 40, 2, 8), Shape(1, 300, 1, 8))


def main(bundle: Path, engines: Path) -> int:
    have, built = Bundle.open(bundle), Bundle.open(engines)
    results = [result for model in built.models for result in compare(model, have, built)]
    sys.stdout.write(dump_json(nulls_for_nan(results)) + "\n")
    return int(not all(result["passed"] for result in results))


def compare(model: str, bundle: Bundle, engines: Bundle) -> list[dict[str, Any]]:
    """A result a shape; one with the error where the sessions cannot be opened."""
    try:
        with ExitStack() as stack:
            head, other = (stack.enter_context(engines.session(name)) for name in ("head", model))
            projection, reference = (stack.enter_context(bundle.session(name)) for name in ("projection", model))
            return [
                run_both(model, shape, inputs_of(bundle, model, shape, projection), reference, other)
                for shape in shapes_within(bundle, head)[: 1 if model == "vision" else None]  # it sees clips only
            ]
    except SdstError as error:
        return [failed(model, error)]


def shapes_within(bundle: Bundle, head: Session) -> list[Shape]:
    """SHAPES cut to what the engines take, as their head says."""
    clips = limit_of(head, "sdst.max_clips", SHAPES[-1].clips)
    rows = limit_of(head, "sdst.max_batch", 1 << 20)
    tokens = bundle.manifest.spec.max_tokens
    cut = [
        Shape(min(s.batch, rows), min(s.clips, clips), max(min(s.queries, rows // s.batch), 1), min(s.tokens, tokens))
        for s in SHAPES
    ]
    return list(dict.fromkeys(cut))


def inputs_of(bundle: Bundle, model: str, shape: Shape, projection: Session) -> Mapping[str, np.ndarray]:
    """Random inputs of a model; those of the head hold the reference's projection of the random videos."""
    vocabulary = Tokenizer.from_file(bundle.directory / TOKENIZER).vocab_size
    inputs = make_inputs(bundle.manifest.spec, shape, vocabulary)
    if model == "sentence":
        return {name: inputs["head"][name] for name in SIGNATURES[model][0]}
    return head_inputs({"projection": projection}, inputs, shape.queries) if model == "head" else inputs[model]


def run_both(
    model: str, shape: Shape, inputs: Mapping[str, np.ndarray], reference: Session, other: Session
) -> dict[str, Any]:
    try:
        expected, got = reference.run(dict(inputs)), other.run(dict(inputs))
        least = DEFAULTS[reference.metadata[PRECISION_KEY]].snr_db or 0.0
        outputs = {}
        for name, array in expected.items():
            if name not in got or got[name].shape != array.shape:
                raise ContractError(f"{model}: expected output {name} {array.shape}, got {sorted(got)}; build it again")
            sums = TensorSums()
            sums.add(array, got[name])
            error = sums.error()
            passed = not error.not_finite and error.snr_db >= least
            outputs[name] = {**asdict(error), "least_snr_db": least, "passed": passed}  # null: no error at all
        passed = all(output["passed"] for output in outputs.values())
        return {"model": model, "shape": str(shape), "passed": passed, "outputs": outputs}
    except SdstError as error:
        return failed(model, error, str(shape))


def failed(model: str, error: SdstError, shape: str = "") -> dict[str, Any]:
    return {"model": model, "shape": shape, "passed": False, "error": str(error), "outputs": {}}


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """One line: the first that did not pass, or the worst of all."""
    for result in results:
        if "error" in result:
            return f"{result['model']}: {result['error']}"
        for name, output in result["outputs"].items():
            if not output["passed"]:
                return (
                    f"{result['model']} {result['shape']}: {name} has {output['snr_db']} dB, the limit is"
                    f" {output['least_snr_db']:g}, max abs {output['max_abs']}"
                )
    return ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
