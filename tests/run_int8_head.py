"""Runs an int8 head, with our session and with ONNX Runtime alone, on the inputs of a folder; its answers go there.

A process of its own, for an emulated processor:  run_int8_head.py HEAD.onnx FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from sdst_runtime.sessions.int8_products import products_are_exact
from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession

head, folder = map(Path, sys.argv[1:])
inputs = dict(np.load(folder / "inputs.npz"))
with OnnxRuntimeSession(head, 1, "cpu", as_written=True) as session:
    np.savez(folder / "session.npz", **session.run(inputs))
plain = ort.InferenceSession(str(head), providers=["CPUExecutionProvider"])
names = [value.name for value in plain.get_outputs()]
np.savez(folder / "plain.npz", **dict(zip(names, plain.run(names, inputs), strict=True)))
print(json.dumps({"exact": products_are_exact()}))
