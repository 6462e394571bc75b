"""One TensorRTSession for many: threads, a forked child, and ten thousand calls.

As in test_tensorrt_session.py: the real bindings over the mock; `in_process_` functions run in a fresh process.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import SMALL, TOLERANCE, engine_inputs, engine_oracle, message, opened, worst, write_engine
from mocked_tensorrt import BINDINGS, MockedTensorRT, mocked_tensorrt

SHAPES = ((2, 8, 5), (1, 3, 2), (4, 24, 9), (3, 8, 5), (1, 24, 1))  # B, T, M


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return mocked_tensorrt(request.param)


@pytest.fixture
def plan(tensorrt, tmp_path) -> str:
    return str(write_engine(tmp_path, tensorrt.bindings.version, tensorrt.plugin))


def in_process_threads(plan: str) -> dict[str, Any]:
    session, device = opened(plan, workers=3)
    inputs = [engine_inputs(*shape, seed) for seed, shape in enumerate(SHAPES)]
    expected = [engine_oracle(each) for each in inputs]
    errors: list[float] = []
    start = threading.Barrier(8)

    def work(first: int) -> None:
        start.wait()
        for call in range(25):
            which = (first + call) % len(inputs)
            errors.append(float(np.abs(session.run(inputs[which])["out"] - expected[which]).max()))

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lanes = {stream for call, stream in device.calls if call == "to host"}
    session.close()
    return {"errors": errors, "lanes": len(lanes), "left": len(device.live)}


def test_threads_share_a_session(tensorrt, plan):
    said = tensorrt.call(in_process_threads, plan)
    assert len(said["errors"]) == 8 * 25
    assert max(said["errors"]) < TOLERANCE
    assert 1 <= said["lanes"] <= 3
    assert said["left"] == 0


def in_process_fork(plan: str) -> dict[str, Any]:
    session, _ = opened(plan)
    inputs = engine_inputs(*SMALL)
    read, write = os.pipe()
    if os.fork() == 0:
        said = [message(lambda: session.run(inputs)), message(session.warm_up), message(session.close)]
        os.write(write, "|".join(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        child = pipe.read().split("|")
    os.wait()
    return {"child": child, "parent": worst(session, *SMALL), "pid": os.getpid()}


def test_a_forked_child_is_told_to_open_its_own(tensorrt, plan):
    said = tensorrt.call(in_process_fork, plan)
    run, warm_up, close = said["child"]
    for words in (run, warm_up):
        assert words.startswith("SessionError: head.plan")
        assert str(said["pid"]) in words
        assert "fork" in words
    assert close == "nothing"
    assert said["parent"] < TOLERANCE


def in_process_ten_thousand_calls(plan: str) -> dict[str, Any]:
    session, device = opened(plan, workers=2)
    inputs = [engine_inputs(1, 4, 2, seed) for seed in range(4)] + [engine_inputs(1, 5, 2)]
    expected = [engine_oracle(each) for each in inputs]

    def calls(count: int) -> float:
        most = 0.0
        for call in range(count):
            which = call % len(inputs)
            if call % 10:
                out = session.run(inputs[which])["out"]
            else:
                out = np.from_dlpack(session.run_on_device(inputs[which])["out"])
            most = max(most, float(np.abs(out - expected[which]).max()))
            device.calls.clear()
        return most

    errors = [calls(1000)]
    before = [len(device.live), device.open_graphs, _resident_kib()]
    errors.append(calls(9000))
    after = [len(device.live), device.open_graphs, _resident_kib()]
    session.close()
    return {"errors": errors, "before": before, "after": after, "left": [len(device.live), device.open_graphs]}


def _resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def test_ten_thousand_calls_leak_nothing(tensorrt, plan):
    said = tensorrt.call(in_process_ten_thousand_calls, plan)
    assert max(said["errors"]) < TOLERANCE
    (blocks, graphs, kib), (blocks_after, graphs_after, kib_after) = said["before"], said["after"]
    assert (blocks_after, graphs_after) == (blocks, graphs)
    assert kib_after - kib < 2048  # 9,000 calls; 256 bytes lost in each would be more
    assert said["left"] == [0, 0]
