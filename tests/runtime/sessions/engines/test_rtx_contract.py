"""Every name of TensorRT for RTX that this project uses, and that the tests' double of it has, is in the real bindings.

As test_tensorrt_contract.py. The bindings import without a GPU; what is asked of them are names, nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import pytest
from mocked_rtx import PATH, VERSION
from test_tensorrt_contract import ALL_SOURCES, OBJECTS, SUBCLASSED, used_names

trt: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT for RTX: pip install '.[rtx]' on Linux x86-64")

OWN = {  # variables of the files that are for TensorRT for RTX alone
    "runtime_cache": "IRuntimeCache",
    "runtime_config": "IRuntimeConfig",
    "tensor": "ITensor",
}
TENSORRT_ONLY = ("tensorrt_build.py", "inspect_plan.py")  # never reached with TensorRT for RTX
SOURCES = [path for path in ALL_SOURCES if path.name not in TENSORRT_ONLY]


def missing(names: set[str]) -> set[str]:
    def exists(name: str) -> bool:
        value = trt
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is not None

    return {name for name in names if not exists(name)}


def source_names() -> set[str]:
    found: set[str] = set()
    for path in SOURCES:
        objects = OBJECTS | OWN if path.name.startswith("rtx") else OBJECTS
        found |= used_names(path.read_text(encoding="utf-8"), objects)
    return found


def test_every_name_of_the_source_exists():
    names = source_names() | {f"{base}.{method}" for base, methods in SUBCLASSED.items() for method in methods}
    assert missing(names) == set()


def test_the_names_are_read_from_the_source():
    assert {
        "Builder", "Runtime", "OnnxParser", "ComputeCapability.__members__", "IBuilderConfig.set_compute_capability",
        "IBuilderConfig.num_compute_capabilities", "Runtime.get_engine_validity", "EngineValidity.SUBOPTIMAL",
        "ICudaEngine.create_runtime_config", "IRuntimeConfig.cuda_graph_strategy", "IRuntimeConfig.set_runtime_cache",
        "IRuntimeConfig.create_runtime_cache", "IRuntimeCache.deserialize", "IRuntimeCache.serialize",
        "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy.LAZY", "INetworkDefinition.get_input",
        "IPluginRegistry.all_creators", "ITensor.dtype", "IExecutionContext.execute_async_v3",
    } <= source_names()  # fmt: skip


def test_a_name_that_is_not_there_is_found():
    assert missing({"Runtime", "IRuntimeCache.save", "CudaGraphs"}) == {"IRuntimeCache.save", "CudaGraphs"}


def test_the_graph_strategies_of_the_source_exist():
    """The source takes them from a variable, which the reader does not follow."""
    assert missing({"CudaGraphStrategy.DISABLED", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE"}) == set()


def test_diagnostics_are_bits_and_capabilities_have_numbers():
    flags = [flag.value for flag in trt.EngineInvalidityDiagnostics.__members__.values()]
    assert flags == [1 << place for place in range(len(flags))]
    assert {"MALFORMED_ENGINE", "VERSION_MISMATCH"} <= trt.EngineInvalidityDiagnostics.__members__.keys()
    assert {"SM86", "SM89", "SM120"} <= trt.ComputeCapability.__members__.keys()


def test_the_double_has_no_name_that_the_real_one_lacks():
    names = set(double_names())
    assert {"IRuntimeCache.serialize", "IRuntimeConfig.cuda_graph_strategy", "EngineValidity.INVALID"} <= names
    assert missing(names) == set()


def test_the_double_says_the_version_that_is_pinned():
    assert trt.__version__ == VERSION


def double_names() -> Iterator[str]:
    """Classes of the double, and what they define or set on themselves."""
    for kind in ast.parse(PATH.read_text(encoding="utf-8")).body:
        if not isinstance(kind, ast.ClassDef) or kind.name.startswith("_"):
            continue
        yield kind.name
        for node in ast.walk(kind):
            name = _defined(node)
            if name and not name.startswith("_"):
                yield f"{kind.name}.{name}"


def _defined(node: ast.AST) -> str:
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            return target.attr
        return target.id if isinstance(target, ast.Name) and target.id.isupper() else ""
    return ""
