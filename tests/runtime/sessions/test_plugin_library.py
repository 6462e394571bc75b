"""The compiled sdst::RDSA through ctypes and numpy: which file is taken, what it says, results and refusals."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import numpy as np
import pytest
from host_library import EXPORTS, SOUND, compiled, stating
from rdsa_cases import CASES, RdsaCase, make_inputs

from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle
from sdst_runtime.errors import ContractError, DependencyError, InputError
from sdst_runtime.files import sha256_file
from sdst_runtime.sessions import plugin_library
from sdst_runtime.sessions.plugin_library import (
    HOST_CODE,
    LIBRARIES,
    VARIABLE,
    Brought,
    RdsaLibrary,
    RdsaProblem,
    find_plugin_library,
    find_stated_library,
    open_plugin_library,
    search_places,
)


@pytest.fixture(scope="module")
def library(host_library_path) -> RdsaLibrary:
    return RdsaLibrary(host_library_path)


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_host_library_equals_oracle(library, case):
    inputs = make_inputs(case)
    expected = rdsa_oracle(**inputs, num_heads=case.H, num_points=case.P)
    out = library.rdsa_numpy(**inputs, num_heads=case.H, num_points=case.P)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=0, atol=case.tolerance)
    if case.large:
        return
    inputs["value"] = inputs["value"].astype(np.float16)
    unavoidable = np.abs(rdsa_oracle(**inputs, num_heads=case.H, num_points=case.P).astype(np.float16) - expected).max()
    half = library.rdsa_numpy(**inputs, num_heads=case.H, num_points=case.P)
    assert half.dtype == np.float16
    assert np.abs(half - expected).max() <= 2 * unavoidable


def test_bits_of_bfloat16(library):
    """Values of 8 significant bits: both types hold them, and the result is that of float32, rounded."""
    inputs = make_inputs(next(case for case in CASES if case.name == "ragged"))
    bits = inputs["value"].view(np.uint32) >> 16
    inputs["value"] = (bits << 16).view(np.float32)
    exact = library.rdsa_numpy(**inputs, num_heads=2, num_points=4)
    inputs["value"] = bits.astype(np.uint16)
    out = library.rdsa_numpy(**inputs, num_heads=2, num_points=4)
    assert out.dtype == np.uint16
    np.testing.assert_allclose((out.astype(np.uint32) << 16).view(np.float32), exact, rtol=2**-8, atol=0)


def test_strides_are_followed(library):
    case = next(case for case in CASES if case.name == "odd_points")
    inputs = make_inputs(case)
    expected = library.rdsa_numpy(**inputs, num_heads=case.H, num_points=case.P)
    wide = np.full((case.B, case.T + 1, case.F + 8), np.nan, np.float32)
    wide[:, 1:, 4:-4] = inputs["value"]
    turned = np.full((case.T, case.B, inputs["endpoints"].shape[2] + 1), np.nan, np.float32)
    turned[..., :-1] = inputs["endpoints"].transpose(1, 0, 2)
    strided = inputs | {"value": wide[:, 1:, 4:-4], "endpoints": turned.transpose(1, 0, 2)[..., :-1]}
    np.testing.assert_array_equal(library.rdsa_numpy(**strided, num_heads=case.H, num_points=case.P), expected)
    shared = np.broadcast_to(inputs["value"][:1], inputs["value"].shape)
    out = library.rdsa_numpy(**inputs | {"value": shared}, num_heads=case.H, num_points=case.P)
    copied = library.rdsa_numpy(**inputs | {"value": shared.copy()}, num_heads=case.H, num_points=case.P)
    np.testing.assert_array_equal(out, copied)


# --- refusals --------------------------------------------------------------------------------------------------------


SMALL = RdsaCase("small", 2, 6, 4, 32, 2, 4, "full", "inside", "unit")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: {"value": x["value"].astype(np.float64)}, "value: expected float32, float16 or uint16"),
        (lambda x: {"value": x["value"].astype(">f4")}, "got >f4"),
        (lambda x: {"value": x["value"][0]}, "expected value B T F"),
        (lambda x: {"value": x["value"][..., ::2]}, "value: expected unit stride in the last dimension"),
        (lambda x: {"value": x["value"][:, ::-1]}, "value_clip_stride: expected 0 (one row for all) or at least a row"),
        (lambda x: {"endpoints": x["endpoints"].astype(np.float16)}, "endpoints: expected float32, got float16"),
        (lambda x: {"endpoints": x["endpoints"][..., 1:]}, "expected endpoints (2, 6, 48)"),
        (lambda x: {"reference": x["reference"].astype(np.float64)}, "reference: expected float32, got float64"),
        (lambda x: {"reference": x["reference"][:, ::2]}, "reference: expected a contiguous array"),
        (lambda x: {"length": x["length"].astype(np.int64)}, "length: expected int32, got int64"),
        (lambda x: {"length": x["length"][:1]}, "length (2,), got"),
        (lambda x: {"value": x["value"][..., :16].copy()}, "depth: expected 16, 32 or 64, got 8"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(library, change, says):
    inputs = make_inputs(SMALL)
    with pytest.raises(InputError) as raised:
        library.rdsa_numpy(**{**inputs, "num_heads": 2, "num_points": 4, **change(inputs)})
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("member", "bad", "says"),
    [
        ("value", 0, "value: expected a pointer, got null"),
        ("endpoints", 0, "endpoints: expected a pointer, got null"),
        ("reference", 0, "reference: expected a pointer, got null"),
        ("length", 0, "length: expected a pointer, got null"),
        ("out", 0, "out: expected a pointer, got null"),
        ("value", 8, "value: expected an address that is a multiple of 16, got 8"),
        ("out", 4, "out: expected an address that is a multiple of 16, got 4"),
        ("endpoints", 2, "endpoints: expected an address that is a multiple of 4, got 2"),
        ("batch", -1, "batch: expected 0 to "),
        ("clips", 0, "clips: expected 1 to "),
        ("clips", 2**40, "clips: expected 1 to "),
        ("moments", -1, "moments: expected 0 to "),
        ("heads", 0, "heads: expected 1 to "),
        ("points", 0, "points: expected 1 to 16, got 0"),
        ("points", 17, "points: expected 1 to 16, got 17"),
        ("depth", 8, "depth: expected 16, 32 or 64, got 8"),
        ("type", 3, "type: expected 0 to 2, got 3"),
        ("value_clip_stride", 31, "value_clip_stride: expected 0 (one row for all) or at least a row of 32"),
        ("value_clip_stride", 2**30, "value: expected at most 4 GiB a video, got 6 clips of 1073741824 elements"),
        ("value_clip_stride", 33, "strides of value: expected multiples of 4 elements (16 bytes), got 192 and 33"),
        ("endpoints_batch_stride", -48, "endpoints_batch_stride: expected 0 (one row for all) or at least a row of 48"),
    ],
)  # fmt: skip
def test_the_c_api_refuses_a_bad_member(library, member, bad, says):
    inputs = make_inputs(SMALL)
    out = np.zeros((2, 4, 32), np.float32)
    problem = RdsaProblem(
        *(array.ctypes.data for array in (*inputs.values(), out)), 2, 6, 4, 2, 4, 16, 0, 192, 32, 288, 48
    )  # fmt: skip
    setattr(problem, member, bad)
    with pytest.raises(InputError) as raised:
        library.rdsa(problem)
    assert str(raised.value).startswith(f"libsdst_plugins_host.so: rdsa: {says}")
    assert not out.any()


# --- which file, and what it says ------------------------------------------------------------------------------------


def test_info(library, host_library_path):
    info = library.info
    assert (info.version, info.device, info.cuda, info.architectures) == ("1", "host", "", ())
    assert info.path == host_library_path
    assert info.sha256 == hashlib.sha256(host_library_path.read_bytes()).hexdigest()


@pytest.fixture
def empty(monkeypatch, tmp_path) -> Path:
    """A checkout and a package folder where nothing was built."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugin_library, "PACKAGE_FOLDER", tmp_path / "lib")
    monkeypatch.setattr(plugin_library, "_CHECKOUT", tmp_path)
    header = tmp_path / "plugins" / "include" / "sdst" / "rdsa.h"
    header.parent.mkdir(parents=True)
    header.touch()
    return tmp_path


@pytest.mark.parametrize("device", ["cuda", "host"])
def test_places_in_order(empty, monkeypatch, device):
    name, bundle = LIBRARIES[device], empty / "bundle"
    paths = [folder / name for folder in (empty / "lib", empty / "build", bundle)]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.write_bytes(bytes([number]))
    unsaid, said = (Brought(bundle, sha256_file(paths[2]), allowed) for allowed in (False, True))
    assert [place.path for place in search_places(device, said)] == paths
    assert [place.path for place in search_places(device, Brought(bundle, None, allowed=True))] == paths[:2]
    assert find_plugin_library(device, said) == paths[2]
    assert find_plugin_library(device, unsaid) == find_plugin_library(device) == paths[0]
    paths[0].unlink()
    assert find_plugin_library(device, unsaid) == find_plugin_library(device) == paths[1]
    monkeypatch.setenv(VARIABLE, str(paths[1]))
    assert find_plugin_library(device, said) == paths[1]
    assert [place.name for place in search_places(device, said)] == ["$SDST_PLUGINS"]


def test_a_brought_library_is_taken_on_the_users_word_or_as_the_installed_one(empty, monkeypatch):
    name, bundle, lib = LIBRARIES["host"], empty / "bundle", empty / "lib"
    for folder, content in ((bundle, b"brought"), (lib, b"installed")):
        folder.mkdir()
        (folder / name).write_bytes(content)
    digest = sha256_file(bundle / name)
    with pytest.raises(ContractError, match="expected sha256 000000000000, got"):
        find_plugin_library("host", Brought(bundle, "0" * 64, allowed=True))
    for word, allowed in (("1", True), ("0", False), ("yes", False)):
        monkeypatch.setenv(HOST_CODE, word)
        assert Brought(bundle, digest).allowed is allowed
    (lib / name).write_bytes(b"brought")
    assert find_plugin_library("host", Brought(bundle, digest, allowed=False)) == lib / name
    (lib / name).unlink()
    with pytest.raises(DependencyError, match="is code that came with the models: set SDST_ENGINE_HOST_CODE=1 if you"):
        find_plugin_library("host", Brought(bundle, digest, allowed=False))


def test_a_plan_gets_the_library_of_its_sidecar_and_no_other(empty):
    name, folder, lib = LIBRARIES["host"], empty / "engines", empty / "lib"
    with pytest.raises(DependencyError, match="is missing"):
        find_stated_library("host", Brought(folder, "0" * 64, allowed=True))
    for place, content in ((folder, b"brought"), (lib, b"installed")):
        place.mkdir()
        (place / name).write_bytes(content)
    own, installed = sha256_file(folder / name), sha256_file(lib / name)
    with pytest.raises(ContractError, match=r"is code that came with it.*SDST_ENGINE_HOST_CODE=1"):
        find_stated_library("host", Brought(folder, own, allowed=False))
    assert find_stated_library("host", Brought(folder, own, allowed=True)) == folder / name
    assert find_stated_library("host", Brought(folder, installed, allowed=False)) == lib / name
    with pytest.raises(ContractError, match=r"plugin sha256: the engine was built with 000000000000.*sdst build"):
        find_stated_library("host", Brought(folder, "0" * 64, allowed=True))


def test_nothing_built(empty, monkeypatch):
    with pytest.raises(DependencyError) as raised:
        find_plugin_library()
    looked = ", ".join(str(empty / folder / "libsdst_plugins.so") for folder in ("lib", "build"))
    assert str(raised.value) == f"the compiled sdst::RDSA is missing (looked for {looked}): run  sdst plugins build"
    with pytest.raises(DependencyError, match=r"run  sdst plugins build --host$"):
        open_plugin_library("host")
    (empty / "lib").mkdir()
    (empty / "lib" / "libsdst_plugins.so").touch()
    monkeypatch.setenv(VARIABLE, str(empty / "none.so"))
    with pytest.raises(InputError, match=r"^SDST_PLUGINS=.*none\.so: expected a library, no such file"):
        find_plugin_library()


def test_an_installed_package_has_no_build_folder(empty):
    (empty / "plugins" / "include" / "sdst" / "rdsa.h").unlink()
    assert [place.name for place in search_places()] == ["package"]


def test_library_of_the_other_device(empty, monkeypatch, host_library_path):
    monkeypatch.setenv(VARIABLE, str(host_library_path))
    assert open_plugin_library("host").info.path == host_library_path
    with pytest.raises(
        ContractError, match=r"expected a library for cuda, this one is for host; name libsdst_plugins\.so"
    ):
        open_plugin_library("cuda")


def test_a_file_that_is_no_library(host_library_path, tmp_path):
    """Cut anywhere, it is one line; without the check the loader dies of a bus error."""
    whole, path = host_library_path.read_bytes(), tmp_path / "libsdst_plugins.so"
    with pytest.raises(InputError, match=r"cannot read .*No such file or directory; run  sdst plugins build"):
        RdsaLibrary(path)
    with pytest.raises(InputError, match="Is a directory"):
        RdsaLibrary(tmp_path)
    for content in (b"", b"not a library\n", whole[:5]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a shared library for 64-bit Linux; run  sdst plugins build"):
            RdsaLibrary(path)
    for size in (6, 63, 64, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=f"the library is cut short at {size} bytes; run  sdst plugins build"):
            RdsaLibrary(path)
    other = bytearray(whole)
    other[18] ^= 0xFF  # another processor
    path.write_bytes(other)
    with pytest.raises(InputError, match=r"^cannot load .*; build it here with  sdst plugins build"):
        RdsaLibrary(path)


def test_what_a_library_states_is_read(tmp_path):
    info = RdsaLibrary(compiled(tmp_path, stating(SOUND))).info
    assert (info.cuda, info.architectures, info.ptx, info.tensorrt) == ("12.2", (75, 90), (90,), "10.3.0")


def test_errors_of_the_device(tmp_path):
    path = compiled(tmp_path, stating(SOUND))
    with pytest.raises(plugin_library.DeviceError, match=f"^{path.name}: the device said no$"):
        RdsaLibrary(path).rdsa(RdsaProblem())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (EXPORTS, "undefined symbol: sdst_build_info"),
        (stating("no JSON"), "its build information lacks one of version, device, cuda, architectures, ptx, tensorrt;"),
        (stating("[]"), "its build information lacks one of"),
        (stating(SOUND.replace("[75, 90]", '"75"')), "its build information lacks one of"),
        (stating(SOUND.replace('"1"', '"2"')), "expected version 1 for cuda or host, got version 2 for host; run"),
        (stating(SOUND.replace("host", "npu")), "expected version 1 for cuda or host, got version 1 for npu; run"),
    ],
    ids=["symbols", "no JSON", "no object", "type", "version", "device"],
)
def test_a_library_of_something_else(tmp_path, source, says):
    with pytest.raises(ContractError) as raised:
        RdsaLibrary(compiled(tmp_path, source))
    assert says in str(raised.value)
    assert "run  sdst plugins build" in str(raised.value)


def test_problem_is_laid_out_as_in_the_header(tmp_path):
    """Sizes and offsets that the compiler states for `sdst_rdsa_problem`."""
    names = [name for name, _ in RdsaProblem._fields_]
    offsets = ", ".join(f"offsetof(sdst_rdsa_problem, {name})" for name in names)
    source = '#include <cstddef>\n#include "sdst/rdsa.h"\n'
    source += f'extern "C" size_t layout[] = {{sizeof(sdst_rdsa_problem), {offsets}}};\n'
    library = ctypes.CDLL(str(compiled(tmp_path, source)))
    layout = (ctypes.c_size_t * (len(names) + 1)).in_dll(library, "layout")
    assert list(layout) == [ctypes.sizeof(RdsaProblem), *(getattr(RdsaProblem, name).offset for name in names)]


def test_calls_from_threads_keep_their_own_errors(library):
    """The message is the calling thread's, also while another thread fails otherwise."""
    from concurrent.futures import ThreadPoolExecutor

    def fail(points: int) -> str:
        problem = RdsaProblem(16, 16, 16, 16, 16, 1, 1, 1, 1, points, 16, 0, 0, 0, 0, 0)
        messages = set()
        for _ in range(200):
            with pytest.raises(InputError) as raised:
                library.rdsa(problem)
            messages.add(str(raised.value).split("got ")[1])
        return ",".join(messages)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fail, (17, 99))) == ["17", "99"]
