"""The TensorRT plugin keeps TensorRT's contract: built against every version's headers at hand, driven by a harness.

Needs TENSORRT_INCLUDE_DIR (folders of NvInfer.h, several separated as in PATH), cmake, a C++ compiler and
cuda_runtime_api.h; neither libnvinfer nor a GPU. The harness is plugins/tests/contract; here it is built and run, also
against libraries built with other versions' headers, and against copies of the plugin with one bug each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from places import ROOT
from tensorrt_headers import HEADERS, MISSING, header_name

EXPORTS = {"sdst_rdsa", "sdst_last_error", "sdst_build_info", "getCreators", "setLoggerFinder"}
TENSORRT_NAMES = ("nvinfer1", "createInfer", "getInferLib", "getPluginRegistry", "getBuilderPluginRegistry", "NvOnnx")


def _missing() -> str:
    if not HEADERS:
        return MISSING
    for name, command in (("cmake", "cmake"), ("a C++ compiler", os.environ.get("CXX", "c++")), ("binutils", "nm")):
        if shutil.which(command) is None:
            return f"needs {name} ({command})"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())
each_version = pytest.mark.parametrize("version", range(len(HEADERS)) or [0], ids=[*map(header_name, HEADERS)] or None)


@dataclass(frozen=True)
class Build:
    """A build folder of the host plugin and the harness."""

    directory: Path

    @property
    def library(self) -> Path:
        return self.directory / "libsdst_plugins_host.so"

    @property
    def harness(self) -> Path:
        return self.directory / "contract_test"

    def make(self, target: str) -> None:
        _run(["cmake", "--build", str(self.directory), "--parallel", "1", "--target", target])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout


def _configure(source: Path, directory: Path, headers: Path, *options: str) -> Build:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    # None: neither an optimiser that takes minutes nor assertions of the standard library
    fast = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
    command = ["cmake", *generator, "-S", str(source), "-B", str(directory), "-DSDST_CUDA=OFF", *fast, *options]
    says = _run([*command, f"-DTENSORRT_INCLUDE_DIR={headers}"])
    if "its headers need cuda_runtime_api.h" in says:
        pytest.skip("needs cuda_runtime_api.h, which the TensorRT headers include (a CUDA toolkit)")
    return Build(directory)


def _harness(harness: Path, library: Path) -> tuple[int, list[str], str]:
    """Exit code, failed checks and all that was printed."""
    command = [str(harness), str(library)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("FAIL ")], done.stdout


@pytest.fixture(scope="module")
def builds(tmp_path_factory) -> list[Build]:
    """Host plugin and harness, one build for each version's headers."""
    root = tmp_path_factory.mktemp("contract")
    made = [_configure(ROOT, root / str(i), headers) for i, headers in enumerate(HEADERS)]
    for build in made:
        build.make("contract_test")
    return made


@each_version
def test_ctest_passes(builds, version):
    directory = str(builds[version].directory)
    says = _run(["ctest", "--test-dir", directory, "-R", "^plugin_contract$", "--output-on-failure"])
    assert "100% tests passed, 0 tests failed out of 1" in says


@each_version
def test_one_library_serves_every_version(builds, version):
    for other in builds:
        code, failed, said = _harness(other.harness, builds[version].library)
        assert (code, failed) == (0, []), said
        assert said.count("\nok ") > 200


@each_version
def test_the_library_exports_its_entry_points_and_needs_nothing_of_tensorrt(builds, version):
    library = str(builds[version].library)
    defined = {line.split()[-1] for line in _run(["nm", "-D", "--defined-only", library]).splitlines()}
    assert defined == EXPORTS
    undefined = _run(["nm", "-D", "--undefined-only", library]).splitlines()
    assert any("memcpy" in line for line in undefined)  # nm shows what is there
    assert [line for line in undefined if any(name in line for name in (*TENSORRT_NAMES, "cuda"))] == []


def test_sanitizers_find_nothing(builds, tmp_path):
    build = _configure(ROOT, tmp_path, HEADERS[-1], "-DSDST_SANITIZE=ON")
    build.make("contract_test")
    code, failed, said = _harness(build.harness, build.library)
    assert (code, failed) == (0, []), said
    assert "runtime error" not in said
    assert "AddressSanitizer" not in said


@dataclass(frozen=True)
class Bug:
    """One mistake: `old` occurs once in `file` (under plugins/); the failed checks begin with `check`."""

    name: str
    file: str
    old: str
    new: str
    check: str

    def __str__(self) -> str:
        return self.name


def _bugs(file: str, *rows: tuple[str, str, str, str]) -> list[Bug]:
    return [Bug(name, file, old, new, check) for name, old, new, check in rows]


# Bugs of one file stand together: then each takes one compilation.
BUGS = [
    *_bugs(
        "tensorrt/rdsa_plugin.cpp",
        ("output has T for M", "out->d[1] = in[REFERENCE]", "out->d[1] = in[VALUE]", "output shape is B M F"),
        ("output type is always float", "= in_types[VALUE];", "= nvinfer1::DataType::kFLOAT;", "output type follows"),
        ("format beyond the position", "return desc.format ==", "return tensors[OUT].desc.format ==", "formats: two"),
        (
            "type beyond the position",
            "return desc.format ==",
            "return tensors[OUT].desc.type != nvinfer1::DataType::kHALF && desc.format ==",
            "formats: two",
        ),
        ("any format is taken", "return desc.format == nvinfer1::TensorFormat::kLINEAR &&", "return", "formats: two"),
        (
            "wrong field in the plan",
            "{NUM_POINTS_FIELD, &attributes_.num_points,",
            "{NUM_POINTS_FIELD, &attributes_.num_heads,",
            "a plan holds the fields",
        ),
        (
            "a field is missing in the plan",
            "collection_{2, fields_}",
            "collection_{1, fields_}",
            "a plan holds the fields",
        ),
        (
            "timing cache ID without the points",
            "NUM_POINTS_FIELD, attributes_.num_points);",
            "NUM_POINTS_FIELD, 4);",
            "timing cache ID differs",
        ),
        ("a clone loses its state", "RdsaPlugin(attributes_); }", "RdsaPlugin({1, 1}); }", "a clone keeps the fields"),
        ("contexts share a plugin", "{ return clone(); }", "{ return this; }", "each context has its own plugin"),
        (
            "clips for moments in enqueue",
            "problem.moments = in_desc[REFERENCE].dims.d[1];",
            "problem.moments = value.d[1];",
            "enqueue, float, more moments than clips",
        ),
        (
            "stride of a batch is that of a clip",
            "problem.endpoints_batch_stride = endpoints.d[1] *",
            "problem.endpoints_batch_stride =",
            "enqueue, half, ragged",
        ),
        ("half is read as bfloat16", "? SDST_HALF", "? SDST_BFLOAT16", "enqueue, half, one of everything"),
        (
            "status of enqueue is dropped",
            "return sdst_rdsa(&problem, stream);",
            "sdst_rdsa(&problem, stream);\n    return 0;",
            "enqueue reports depth 20",
        ),
        (
            "onShapeChange checks nothing",
            "return check_shapes(attributes_, in, *out);",
            "return in == nullptr || out == nullptr ? 1 : 0;",
            "onShapeChange refuses value of int8",
        ),
    ),
    *_bugs(
        "tensorrt/rdsa_plugin.h",
        (
            "timing cache ID is null",
            "getTimingCacheID() noexcept override { return attributes_text_; }",
            "getTimingCacheID() noexcept override { return nullptr; }",
            "timing cache ID is there",
        ),
        ("wrong namespace", 'PLUGIN_NAMESPACE = "sdst"', 'PLUGIN_NAMESPACE = ""', "creator is sdst::RDSA version 1"),
    ),
    *_bugs(
        "tensorrt/tensor_checks.cpp",
        (
            "length of int64 is taken",
            "case LENGTH: return type == DataType::kINT32;",
            "case LENGTH: return type == DataType::kINT32 || type == DataType::kINT64;",
            "onShapeChange refuses length of int64",
        ),
        (
            "any E is taken",
            "fits = learn_one(",
            "if (signature.sizes[i] != E) fits = learn_one(",
            "onShapeChange refuses endpoints E of one end",
        ),
        (
            "any depth is taken",
            "whole && is_depth(depth)",
            "whole && depth > 0",
            "onShapeChange refuses value F of depth 24",
        ),
        (
            "wildcards are refused",
            "dynamic.desc.dims, true)",
            "dynamic.desc.dims, false)",
            "configurePlugin takes dynamic",
        ),
        (
            "max is not looked at",
            "if (const int status = check_bound(attributes, value_type, tensor, dynamic.max)) return status;",
            "",
            "configurePlugin by max refuses",
        ),
        (
            "no message",
            "bad(signature.name, describe(signature, before), to_string(dims));",
            "int{SDST_BAD_ARGUMENT};",
            "onShapeChange refuses reference with 3 columns",
        ),
    ),
    *_bugs(
        "tensorrt/rdsa_creator.cpp",
        (
            "a field may come twice",
            'if (found != nullptr) return bad(name, "one", "two");',
            "",
            "createPlugin refuses num_heads twice",
        ),
        (
            "a field of any type is taken",
            "field->type != nvinfer1::PluginFieldType::kINT32 || ",
            "",
            "createPlugin refuses num_heads of FLOAT32",
        ),
        ("no heads are taken", "number < 1 ||", "number < 0 ||", "createPlugin refuses num_heads of 0"),
    ),
    *_bugs(
        "tensorrt/exports.cpp",
        (
            "a logger is asked for",
            "(nvinfer1::ILoggerFinder*) noexcept {}",
            "(nvinfer1::ILoggerFinder* finder) noexcept {\n    if (finder != nullptr) finder->findLogger();\n}",
            "no logger is asked for",
        ),
    ),
    *_bugs(
        "src/rdsa_item.h",
        (
            "clips beyond the length are read",
            "clamp(problem.length[b], 1,",
            "clamp(static_cast<int32_t>(problem.clips), 1,",
            "enqueue, float, ragged",
        ),
        (
            "ends of the moment are swapped",
            "+ 2 * end * logits;",
            "+ 2 * (2 - end) * logits;",
            "enqueue, float, ragged",
        ),
    ),
]


@pytest.fixture(scope="module")
def buggy(builds, tmp_path_factory) -> Build:
    """A build of a copy of the sources, to be spoilt."""
    root = tmp_path_factory.mktemp("buggy")
    shutil.copytree(ROOT / "plugins", root / "plugins")
    shutil.copy(ROOT / "CMakeLists.txt", root)
    build = _configure(root, root / "build", HEADERS[0])
    build.make("sdst_plugins_host")
    return build


@pytest.fixture
def spoilt(buggy, request) -> Iterator[tuple[Bug, Path]]:
    """A bug and the library that has it."""
    bug: Bug = request.param
    file = buggy.directory.parent / "plugins" / bug.file
    text = file.read_text()
    assert text.count(bug.old) == 1, f"{bug.old!r} occurs {text.count(bug.old)} times in {bug.file}: adapt the bug"
    try:
        file.write_text(text.replace(bug.old, bug.new))
        buggy.make("sdst_plugins_host")
        yield bug, buggy.library
    finally:
        file.write_text(text)


@pytest.mark.parametrize("spoilt", BUGS, indirect=True, ids=str)
def test_the_harness_catches(builds, spoilt):
    bug, library = spoilt
    code, failed, said = _harness(builds[0].harness, library)
    assert code != 0
    assert any(line.startswith(f"FAIL {bug.check}") for line in failed), said[-3000:]
