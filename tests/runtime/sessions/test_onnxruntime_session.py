"""ONNX Runtime sessions: the same answers as a plain run, from several threads, and errors that say what to do."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from forked import said_by_a_fork

from sdst_runtime.errors import DependencyError, InputError, SessionError
from sdst_runtime.grounding.bundle import MODELS
from sdst_runtime.sessions import onnxruntime as onnxruntime_sessions
from sdst_runtime.sessions.base import TensorInfo
from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession
from sdst_runtime.sessions.open import open_session

SIZES = {"B": 3, "T": 9, "L": 5, "N": 2}


def arrays(session: OnnxRuntimeSession, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Random inputs of a session; masks are all true."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, info in session.inputs.items():
        shape = [axis if isinstance(axis, int) else (SIZES | sizes)[axis] for axis in info.shape]
        if info.dtype == np.bool_:
            made[name] = np.ones(shape, bool)
        elif info.dtype.kind in "iu":
            made[name] = rng.integers(4, 60, shape).astype(info.dtype)
        else:
            made[name] = rng.standard_normal(shape).astype(info.dtype)
    return made


@pytest.fixture
def head(exported) -> OnnxRuntimeSession:
    return OnnxRuntimeSession(exported.directory / "head.onnx", threads=1)


@pytest.mark.parametrize("name", MODELS)
def test_bound_outputs_are_those_of_a_plain_run(exported, name):
    path = exported.directory / f"{name}.onnx"
    session = OnnxRuntimeSession(path, threads=1, device="cpu")
    inputs = arrays(session)
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = dict(zip([value.name for value in plain.get_outputs()], plain.run(None, inputs), strict=True))

    got = session.run(inputs)

    assert session.device == "cpu"
    assert got.keys() == expected.keys()
    for key, array in expected.items():
        assert (got[key].dtype, got[key].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(got[key], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_by_default_all_cores_work_and_say_the_same(exported, monkeypatch, name):
    path, asked, load = exported.directory / f"{name}.onnx", [], onnxruntime_sessions._load
    monkeypatch.setattr(onnxruntime_sessions, "usable_cores", lambda: 2)
    monkeypatch.setattr(onnxruntime_sessions, "_load", lambda path, n, *how: asked.append(n) or load(path, n, *how))
    with OnnxRuntimeSession(path) as two, OnnxRuntimeSession(path, threads=1) as one:
        inputs = arrays(one)
        expected, got = one.run(inputs), two.run(inputs)

    assert asked == [2, 1]
    for key, array in expected.items():
        np.testing.assert_allclose(got[key], array, rtol=1e-5, atol=1e-6)


def test_types_and_axes_of_the_head(head):
    real, boolean = np.dtype(np.float32), np.dtype(np.bool_)
    assert head.inputs == {
        "projected": TensorInfo(real, ("B", "T", 2, 32)),
        "video_mask": TensorInfo(boolean, ("B", "T")),
        "text": TensorInfo(real, ("B", 2, "L", 16)),
        "text_mask": TensorInfo(boolean, ("B", "L")),
    }
    assert head.outputs == {
        "spans": TensorInfo(real, ("B", 5, 2)),
        "scores": TensorInfo(real, ("B", 5)),
        "saliency": TensorInfo(real, ("B", "T")),
    }
    assert head.metadata["sdst.kind"] == "head"


def test_arrays_that_are_not_contiguous_count_as_their_values(head):
    inputs = arrays(head)
    expected = head.run(inputs)
    strided = {
        **inputs,
        "projected": np.asfortranarray(inputs["projected"]),
        "video_mask": np.broadcast_to(np.True_, inputs["video_mask"].shape),
        "text": np.repeat(inputs["text"], 2, axis=3)[..., ::2],
    }
    assert not any(strided[name].flags.c_contiguous for name in ("projected", "video_mask", "text"))

    got = head.run(strided)

    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_an_output_stays_as_it_was_when_the_session_runs_again(head):
    first = head.run(arrays(head, seed=1))
    kept = {name: array.copy() for name, array in first.items()}
    head.run(arrays(head, seed=2))
    head.close()
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


def test_threads_get_their_own_answers(head):
    """Eight threads, other shapes and values in each call."""
    calls = [arrays(head, seed=i, B=1 + i % 3, T=4 + i % 7) for i in range(48)]
    alone = [head.run(inputs) for inputs in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(head.run, calls))
    for expected, got in zip(alone, together, strict=True):
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)


def test_wrong_inputs_are_named(head):
    inputs = arrays(head)
    with pytest.raises(InputError, match=r"head\.onnx: expected inputs \[.*'video_mask'\], got \['projected', 'text'"):
        head.run({name: inputs[name] for name in ("projected", "text")})
    with pytest.raises(InputError, match=r"'text': expected float32 \[B, 2, L, 16\], got float64 \[3, 2, 5, 16\]"):
        head.run({**inputs, "text": inputs["text"].astype(np.float64)})
    with pytest.raises(InputError, match=r"axis T is 9 in 'projected' and 8 in 'video_mask'"):
        head.run({**inputs, "video_mask": inputs["video_mask"][:, :8]})


def test_what_onnx_runtime_refuses_is_an_error_that_names_the_shapes(exported):
    """A token id outside the vocabulary passes every check of types and shapes; the session works on afterwards."""
    text = OnnxRuntimeSession(exported.directory / "text.onnx", threads=1)
    inputs = arrays(text)
    expected = text.run(inputs)["features"]
    outside = {**inputs, "token_ids": np.full_like(inputs["token_ids"], 10**6)}
    with pytest.raises(
        SessionError, match=r"text\.onnx: ONNX Runtime failed on token_ids \[3, 5\], token_mask \[3, 5\]"
    ):
        text.run(outside)
    np.testing.assert_array_equal(text.run(inputs)["features"], expected)


def test_closed_is_closed(head):
    inputs = arrays(head)
    with head as entered:
        assert entered is head
        head.run(inputs)
    head.close()
    with pytest.raises(SessionError, match=r"head\.onnx: the session is closed; open the model again"):
        head.run(inputs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_told_to_open_its_own(head):
    inputs = arrays(head)
    head.run(inputs)
    child, said = said_by_a_fork(lambda: head.run(inputs))
    assert said == (
        f"head.onnx: the session was opened by process {os.getpid()} and this is its fork {child};"
        " open the model in each process"
    )


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="needs an ONNX Runtime without CUDA"
)
def test_a_missing_provider_names_the_command(exported):
    with pytest.raises(DependencyError, match=r"no CUDA provider, only .*CPUExecutionProvider: run  pip uninstall"):
        OnnxRuntimeSession(exported.directory / "head.onnx", device="cuda")


def test_files_that_cannot_be_opened(exported, tmp_path):
    with pytest.raises(InputError, match="no such model"):
        open_session(tmp_path / "head.onnx")
    data = (exported.directory / "head.onnx").read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"broken\.onnx: ONNX Runtime cannot load it .*; export it again"):
        open_session(broken)
    with pytest.raises(InputError, match="threads: expected at least 1, got 0"):
        open_session(Path(exported.directory / "head.onnx"), threads=0)
