"""Writes unmocked.h: for each abstract class of TensorRT that the mock stands behind, a class whose every method ends
the process and says its name. The mock overrides what a session calls. The lists of methods differ from version to
version, so they are read from the headers at hand: generate_unmocked.py INCLUDE_DIR OUTPUT.
"""

import re
import sys
from pathlib import Path

CLASSES = {
    "NvInferImpl.h": ["VRuntime", "VCudaEngine", "VExecutionContext", "VEngineInspector", "VHostMemory"],
    "NvInferRuntimeCommon.h": ["IPluginRegistry"],
}
OPENING = """// Written by generate_unmocked.py.
#ifndef SDST_MOCK_UNMOCKED_H
#define SDST_MOCK_UNMOCKED_H

#include <NvInferRuntime.h>
#include <cstdio>
#include <cstdlib>

namespace nvinfer1
{
[[noreturn]] inline void end_unmocked(char const* method)
{
    std::fprintf(stderr, "mock libnvinfer: %s is not mocked\\n", method);
    std::abort();
}
"""
CLOSING = "} // namespace nvinfer1\n\n#endif\n"


def pure_methods(header: str, class_name: str) -> list[str]:
    """Declarations of the class's pure virtual methods without `virtual` and `= 0`, in their order."""
    body = re.search(rf"\nclass {class_name}\b[^;{{]*{{\n(.*?)\n}};", header, re.DOTALL)
    if body is None:
        sys.exit(f"expected class {class_name} in the headers, found none")
    declarations = re.findall(r"virtual\s+([^;{}~]*?)\s*=\s*0\s*;", body[1])
    return [" ".join(declaration.split()) for declaration in declarations]


def unmocked_class(header: str, class_name: str) -> str:
    """A class Unmocked<name without V or I> that implements every method by ending the process."""
    base = f"apiv::{class_name}" if class_name.startswith("V") else class_name
    lines = [f"class Unmocked{class_name[1:]} : public {base}", "{", "public:"]
    for declaration in pure_methods(header, class_name):
        method = re.search(r"(\w+)\(", declaration)
        assert method is not None
        lines.append(f'    {declaration} override {{ end_unmocked("{class_name}::{method[1]}"); }}')
    return "\n".join([*lines, "};\n"])


def main() -> None:
    include, output = Path(sys.argv[1]), Path(sys.argv[2])
    parts = [OPENING]
    for name, classes in CLASSES.items():
        header = re.sub(r"//[^\n]*", "", (include / name).read_text(encoding="utf-8"))
        parts += [unmocked_class(header, class_name) for class_name in classes]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join([*parts, CLOSING]), encoding="utf-8")


if __name__ == "__main__":
    main()
