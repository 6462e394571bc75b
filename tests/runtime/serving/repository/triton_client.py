"""Run by the server's Python, which has tritonclient: clients over HTTP and gRPC, and config.pbtxt as Triton reads it.

Each prints a line of JSON:

triton_client.py documented PROTOCOL URL TIMES      all answers of the code of docs/triton.md, where only protocol and
                                                    address are others, and of its `ask` so many times, 4 at once
triton_client.py cut                                what the code of docs/triton.md hears of a server whose first answer
                                                    over HTTP ends in the middle, and which refuses the next question
triton_client.py bytes PROTOCOL URL VIDEO SENTENCE...    the answers of a video's bytes
triton_client.py configuration REPOSITORY           the configuration of each model
"""

from __future__ import annotations

import importlib
import json
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[4] / "docs" / "triton.md"
THREADS = 4


def documented(protocol: str, url: str, times: str) -> list[list[dict]]:
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for old, new in (("tritonclient.grpc as", f"tritonclient.{protocol} as"), ("127.0.0.1:8001", url)):
        assert old in code
        code = code.replace(old, new)
    options: dict[str, Any] = {"client_timeout": 60}
    if protocol == "http":
        code, options = code.replace(", client_timeout=60)", ")"), {}
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCS), "exec"), names)

    def ask_often(count: int) -> list[list[dict]]:
        with names["triton"].InferenceServerClient(url) as client:  # a client of each thread's own
            return [names["ask"](client, "lecture.mp4", ["a blue square"], tries=11, **options) for _ in range(count)]

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(ask_often, [int(times) // THREADS] * THREADS)
        return [names["answers"], *(answer for some in found for answer in some)]


def cut() -> str:
    from tritonclient.utils import InferenceServerException

    answers = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf",
        b'HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\n\r\n{"error": "asked again!!"}',
    )

    def answer(listening: socket.socket) -> None:
        for text in answers:
            with listening.accept()[0] as connection:
                while b"lecture.mp4" not in connection.recv(1 << 16):
                    pass
                connection.sendall(text)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        try:
            documented("http", f"127.0.0.1:{listening.getsockname()[1]}", "0")
        except InferenceServerException as error:
            return str(error)
    return "answered"


def of_bytes(protocol: str, url: str, video: str, *sentences: str) -> list[dict]:
    import numpy as np

    triton = importlib.import_module(f"tritonclient.{protocol}")
    given = {"sentences": [[s.encode() for s in sentences]], "bytes": [[Path(video).read_bytes()]]}
    inputs = [triton.InferInput(name, [1, len(rows[0])], "BYTES") for name, rows in given.items()]
    for one, rows in zip(inputs, given.values()):
        one.set_data_from_numpy(np.array(rows, object))
    with triton.InferenceServerClient(url) as client:
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
    run = {"documented": documented, "cut": cut, "bytes": of_bytes, "configuration": configuration}[sys.argv[1]]
    print(json.dumps(run(*sys.argv[2:])))
