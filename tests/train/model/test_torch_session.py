"""The torch session: its halves, its types, its errors; on a GPU also half precision, the kernel and CUDA graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from forked import said_by_a_fork
from places import ROOT

from sdst_calib.parity.measure import max_abs_error
from sdst_export.serving import serving_model
from sdst_runtime.errors import DeviceError, InputError, SessionError
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions.base import GroundingModel, TensorInfo
from sdst_train.config import ModelConfig
from sdst_train.loop.checkpoint import load_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def model(exported) -> SDST:
    return load_checkpoint(exported.checkpoint_path).model


def inputs_of(session: TorchSession | GroundingModel, B: int = 3, T: int = 11, L: int = 6, seed: int = 0, K: int = 2):
    """Random inputs with ragged lengths."""
    rng, sizes = np.random.default_rng(seed), {"B": B, "T": T, "L": L, "K": K}
    made = {}
    for name, info in session.inputs.items():
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in info.shape]
        if info.dtype == np.bool_:
            made[name] = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
        else:
            made[name] = rng.standard_normal(shape).astype(info.dtype)
    return made


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_halves_make_the_whole(model, precision):
    served = serving_model(model, CPU, precision)
    whole = TorchSession(served)
    joined = GroundingModel(TorchSession(served, "projection"), TorchSession(served, "head"))
    inputs = inputs_of(whole)
    expected, got = whole.run(inputs), joined.run(inputs)
    assert joined.projection.outputs["projected"].dtype == (np.float16 if precision == "fp16" else np.float32)
    for name, array in expected.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(got[name], array)


def test_halves_take_and_give_what_the_models_of_a_bundle_do(exported, model):
    bundle = Bundle.open(exported.directory)
    for part in ("projection", "head"):
        ours, theirs = TorchSession(model, part), bundle.session(part, threads=1)
        assert ours.outputs == theirs.outputs
        assert {name: info.dtype for name, info in ours.inputs.items()} == {
            name: info.dtype for name, info in theirs.inputs.items()
        }
        inputs = inputs_of(ours)
        for name, array in theirs.run(inputs).items():
            np.testing.assert_allclose(ours.run(inputs)[name], array, atol=1e-4)


def test_the_served_model_answers_as_the_trained_one(model):
    trained, served = TorchSession(model), TorchSession(serving_model(model, CPU))
    errors = max_abs_error(trained, served, [inputs_of(trained)])
    assert max(errors.values()) < 1e-5


def test_serving_leaves_the_trained_model_alone(model):
    before = {name: (x.dtype, x.clone()) for name, x in model.state_dict().items()}
    serving_model(model, CPU, "fp16")
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, (kind, x) in before.items():
        assert after[name].dtype == kind
        assert torch.equal(after[name], x)


def test_several_threads_at_once(model):
    session = TorchSession(model)
    calls = [inputs_of(session, B=1 + i % 3, T=5 + i % 4, seed=i) for i in range(24)]
    alone = [session.run(inputs) for inputs in calls]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(session.run, calls))
    for expected, got in zip(alone, together, strict=True):
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, atol=1e-6)


def test_arrays_that_are_not_contiguous_or_not_writable(model):
    session = TorchSession(model)
    inputs = inputs_of(session)
    expected = session.run(inputs)
    other = {name: np.asfortranarray(array) for name, array in inputs.items()}
    other["text"].flags.writeable = False
    for name, array in session.run(other).items():
        np.testing.assert_array_equal(array, expected[name])


def test_wrong_inputs_are_named(model):
    session = TorchSession(model, "head")
    inputs = inputs_of(session)
    assert session.inputs["projected"] == TensorInfo(np.dtype(np.float32), ("B", "T", 2, 32))
    with pytest.raises(InputError, match=r"the torch model \(head\): expected inputs .* got \['projected'\]"):
        session.run({"projected": inputs["projected"]})
    with pytest.raises(InputError, match=r"'projected': expected float32 \[B, T, 2, 32\], got float16"):
        session.run({**inputs, "projected": inputs["projected"].astype(np.float16)})
    with pytest.raises(InputError, match="graphs: expected 0 on cpu, got 2; CUDA graphs need a GPU"):
        TorchSession(model, graphs=2)


def test_closed_is_closed(model):
    with TorchSession(model) as session:
        inputs = inputs_of(session)
        session.run(inputs)
    with pytest.raises(SessionError, match="the session is closed; open the model again"):
        session.run(inputs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_told_to_open_its_own(model):
    session = TorchSession(model)
    inputs = inputs_of(session)
    child, said = said_by_a_fork(lambda: session.run(inputs))
    assert f"was opened by process {os.getpid()} and this is its fork {child};" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_script_says_what_it_lacks():
    script = ROOT / "benchmarks" / "serve_gpu.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("serve_gpu: no GPU: torch ")


@needs_gpu
@pytest.mark.parametrize("graphs", [0, 2])
def test_half_with_the_kernel_on_a_gpu(graphs):
    """Three shapes through a cache of two, there and back, against float32 on the CPU."""
    torch.manual_seed(0)
    trained = SDST(ModelConfig()).eval()
    served = serving_model(trained, torch.device("cuda"), "fp16")
    expected, got = TorchSession(trained), TorchSession(served, graphs=graphs)
    shapes = [(1, 75, 32), (2, 40, 9), (3, 150, 20)]
    for seed, (B, T, L) in enumerate([*shapes, *shapes[::-1]]):
        inputs = inputs_of(expected, B, T, L, seed, K=4)
        errors = max_abs_error(expected, got, [inputs])
        assert max(errors.values()) < 2e-2  # half weights and activations, random weights


@needs_gpu
def test_a_session_outlives_a_shape_that_does_not_fit():
    model = serving_model(SDST(ModelConfig()).eval(), torch.device("cuda"), "fp16")
    session = TorchSession(model, graphs=2)
    small = inputs_of(session, 1, 75, 20, K=4)
    before = session.run(small)
    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(int(free * 0.97), dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceError, match="too little memory on cuda"):
        session.run(inputs_of(session, 16, 4000, 20, K=4))
    del held
    torch.cuda.empty_cache()
    for name, array in session.run(small).items():
        np.testing.assert_array_equal(array, before[name])
