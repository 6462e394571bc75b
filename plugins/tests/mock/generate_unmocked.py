"""Writes unmocked.h: for each abstract class of TensorRT that the mock stands behind, a class whose every method ends
the process and says its name. The mock overrides what a session or a builder calls. The lists of methods differ from
version to version, so they are read from the headers at hand:

    generate_unmocked.py INCLUDE_DIR PARSER_INCLUDE_DIR OUTPUT

The second folder is that of NvOnnxParser.h, which not every version's headers hold; without it the parser's classes
are left out.
"""

import re
import sys
from pathlib import Path

CLASSES = {
    "NvInferImpl.h": [
        "VRuntime", "VCudaEngine", "VExecutionContext", "VEngineInspector", "VHostMemory", "VBuilder", "VBuilderConfig",
        "VNetworkDefinition", "VLayer", "VOptimizationProfile", "VTimingCache",
    ],
    "NvInferRuntimeCommon.h": ["IPluginRegistry"],
}  # fmt: skip
PARSER_HEADER, PARSER_CLASSES = "NvOnnxParser.h", ["IParser", "IParserError"]
OPENING = """// Written by generate_unmocked.py.
#ifndef SDST_MOCK_UNMOCKED_H
#define SDST_MOCK_UNMOCKED_H

#include <NvInfer.h>
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
CLOSING = "} // namespace nvinfer1\n\n"
PARSER_OPENING = f"""#include <{PARSER_HEADER}>

namespace nvonnxparser
{{
using nvinfer1::end_unmocked;
"""
PARSER_CLOSING = "} // namespace nvonnxparser\n\n"


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


def unmocked_classes(header: Path, class_names: list[str]) -> list[str]:
    text = re.sub(r"//[^\n]*", "", header.read_text(encoding="utf-8"))
    return [unmocked_class(text, class_name) for class_name in class_names]


def main() -> None:
    include, parser_include, output = map(Path, sys.argv[1:])
    parts = [OPENING]
    for name, class_names in CLASSES.items():
        parts += unmocked_classes(include / name, class_names)
    parts.append(CLOSING)
    if (parser_include / PARSER_HEADER).is_file():
        parts += [PARSER_OPENING, *unmocked_classes(parser_include / PARSER_HEADER, PARSER_CLASSES), PARSER_CLOSING]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join([*parts, "#endif\n"]), encoding="utf-8")


if __name__ == "__main__":
    main()
