"""Run by the server's Python, which has tritonclient: sdst_ground over gRPC, and config.pbtxt as Triton reads it.

triton_client.py grpc URL VIDEO SENTENCE...    prints the answers of a video's bytes, a line of JSON
triton_client.py configuration REPOSITORY      prints the configuration of each model, a line of JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def grpc(url: str, video: str, *sentences: str) -> list[dict]:
    import numpy as np
    from tritonclient.grpc import InferenceServerClient, InferInput

    given = {"sentences": [[s.encode() for s in sentences]], "bytes": [[Path(video).read_bytes()]]}
    inputs = [InferInput(name, [1, len(rows[0])], "BYTES") for name, rows in given.items()]
    for one, rows in zip(inputs, given.values()):
        one.set_data_from_numpy(np.array(rows, object))
    with InferenceServerClient(url) as client:
        return [json.loads(text) for text in client.infer("sdst_ground", inputs).as_numpy("answers")[0]]


def configuration(repository: str) -> dict[str, dict]:
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    files = sorted(Path(repository).glob("*/config.pbtxt"))
    return {
        path.parent.name: json_format.MessageToDict(
            text_format.Parse(path.read_text(), ModelConfig()), preserving_proto_field_name=True
        )
        for path in files
    }


if __name__ == "__main__":
    print(json.dumps({"grpc": grpc, "configuration": configuration}[sys.argv[1]](*sys.argv[2:])))
