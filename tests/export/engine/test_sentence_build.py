"""The sentence model of a corpus as an engine: the real bindings over the mock of libnvinfer, and a double of the GPU.

The mock copies the text's first numbers to `sentence`. Letters: B rows, K layers, L tokens, X text width, which is the
head's too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_files import SPEC, message
from host_device import HostDevice
from mocked_tensorrt import BINDINGS, EngineNode, EngineTensor, MockedTensorRT, building_tensorrt, engine_bytes
from onnx import TensorProto, helper
from rich.console import Console
from rich.progress import Progress

from sdst_export.engine.build import build_engine
from sdst_export.engine.options import EngineOptions
from sdst_export.engine.profiles import Bucket
from sdst_runtime.sessions.base import require_signature
from sdst_runtime.sessions.tensorrt import TensorRTSession

K, X = SPEC.layers, SPEC.text_width
BUCKETS = (Bucket(8, 2), Bucket(24, 4))


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return building_tensorrt(request.param)


def write_sentence(path: Path) -> Path:
    """A graph with the sentence model's inputs and output, and the text of its engine for the mock."""
    tensors = [
        EngineTensor("text", "input", "float", (-1, K, -1, X)),
        EngineTensor("text_mask", "input", "bool", (-1, -1)),
        EngineTensor("sentence", "output", "float", ("text:0", K, X)),
    ]
    node = EngineNode("pooled", ("text",), ("sentence",), {"start": 0}, plugin="copy")
    smallest = {"text": ((1, K, 1, X),) * 3, "text_mask": ((1, 1),) * 3}
    value = helper.make_tensor_value_info
    inputs = [value("text", TensorProto.FLOAT, ["B", K, "L", X]), value("text_mask", TensorProto.BOOL, ["B", "L"])]
    outputs = [value("sentence", TensorProto.FLOAT, ["B", K, X])]
    pooled = helper.make_node("ReduceMax", ["text"], ["sentence"], name="pooled", axes=[2], keepdims=0)
    graph = helper.make_graph([pooled], "sentence", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    told = {"sdst.kind": "sentence", "sdst.spec": SPEC.to_json(), "sdst.precision": "fp32"}
    helper.set_model_props(model, told | {"sdst.mock": engine_bytes(tensors, [node], [smallest]).decode()})
    onnx.save(model, str(path))
    return path


def in_process_sentence(directory: str) -> dict[str, Any]:
    os.environ["SDST_CACHE"] = f"{directory}/cache"
    place, device = Path(directory), HostDevice()
    out = place / "engines" / "sentence.plan"
    bar = Progress(console=Console(quiet=True))
    sidecar = build_engine(write_sentence(place / "sentence.onnx"), out, BUCKETS, EngineOptions(), device, bar)
    with TensorRTSession(out, device=device) as session:
        require_signature("sentence", session, out)
        session.warm_up()
        right = []
        for rows, tokens in ((1, 1), (1, SPEC.max_tokens), (2, 1), (2, SPEC.max_tokens)):
            text = np.random.default_rng(rows).standard_normal((rows, K, tokens, X)).astype(np.float32)
            found = session.run({"text": text, "text_mask": np.ones((rows, tokens), bool)})["sentence"]
            right.append(bool(np.array_equal(found, text.ravel()[: rows * K * X].reshape(rows, K, X))))
        long = np.zeros((1, K, SPEC.max_tokens + 1, X), np.float32)
        mask = np.ones((1, SPEC.max_tokens + 1), bool)
        outside = message(lambda: session.run({"text": long, "text_mask": mask}))
    return {
        "kind": sidecar.kind,
        "plugin": sidecar.plugin is not None,
        "most": [profile["text"].max for profile in sidecar.profiles],
        "right": right,
        "outside": outside,
    }


def test_the_sentence_model_is_built_and_runs(tensorrt, tmp_path):
    said = tensorrt.call(in_process_sentence, str(tmp_path))
    assert (said["kind"], said["plugin"]) == ("sentence", False)
    assert said["most"] == [[rows, K, SPEC.max_tokens, X] for rows in (1, 2)]
    assert said["right"] == [True] * 4
    assert said["outside"].startswith("InputError: sentence.plan: ")
