"""Makes the two binary assets that `sdst doctor` tries a machine with:  .venv/bin/python tests/doctor_assets.py

`check.onnx` computes answer = given @ weights + given as a function that the file carries, as a head carries
sdst::RDSA, with the opset and the file format of a bundle. `colours.mp4` has the bars of test_colours.py, 16 pixels
each, in 4:2:0 and BT.709: H.264 without loss, 2 pictures a second for 2 seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from places import ROOT

ASSETS = ROOT / "runtime" / "sdst_runtime" / "doctor" / "assets"
IR_VERSION, OPSET = 10, 20


def model_bytes() -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    from sdst_runtime.doctor.installation import WEIGHTS

    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("sdst", 1)]
    body = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "x"], ["y"])]
    function = helper.make_function("sdst", "Check", ["x", "w"], ["y"], body, opsets[:1])
    given, answer = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 3]) for n in ("given", "answer"))
    node = helper.make_node("Check", ["given", "weights"], ["answer"], domain="sdst")
    weights = numpy_helper.from_array(np.asarray(WEIGHTS, np.float32), "weights")
    graph = helper.make_graph([node], "check", [given], [answer], [weights])
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=IR_VERSION)
    model.producer_name = "sdst"
    checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def write_clip(path: Path) -> None:
    import av
    from test_colours import BARS, SIZE, planes

    wide = SIZE // len(BARS)
    y, cb, cr = np.repeat(planes("BT.709", False)[:, 0, wide // 2 :: wide], 16, axis=1)  # 128 values each
    values = [np.tile(y, (32, 1)), np.tile(cb[::2], (16, 1)), np.tile(cr[::2], (16, 1))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 128, 32, "yuv420p"
        stream.options = {"qp": "0", "preset": "veryslow"}
        for name, value in {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}.items():
            setattr(stream.codec_context, name, value)
        for i in range(4):
            frame = av.VideoFrame(128, 32, "yuv420p")
            frame.colorspace, frame.color_range, frame.pts = 1, 1, i
            for plane, rows in zip(frame.planes, values, strict=True):
                padded = np.zeros((rows.shape[0], plane.line_size), np.uint8)
                padded[:, : rows.shape[1]] = rows
                plane.update(padded.tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    (ASSETS / "check.onnx").write_bytes(model_bytes())
    write_clip(ASSETS / "colours.mp4")
