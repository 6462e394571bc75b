"""Is the engine what was asked for? TensorRT's inspector lists the layers of a finished plan.

An engine has layers of its own for each optimisation profile; the inspector lists them all, those of profile 1 and up
with "[profile N]" in their names (NVIDIA/TensorRT, tools/experimental/trt-engine-explorer, trex/parser.py). Without
the plugin, or with the function in its place, TensorRT may build something slower and say nothing.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdst_runtime.errors import InputError
from sdst_runtime.strict_json import load_json

from ..errors import EngineError

LOGGER = logging.getLogger("sdst.engine")
HALF_SLACK = 0.5  # fusion merges nodes into layers, so the engine's share of half is not quite the graph's


@dataclass(frozen=True)
class Layers:
    """What the inspector lists."""

    all: int
    rdsa: Mapping[int, int]  # layers of the plugin in each profile that appears; profile 0 always does
    floating: int  # layers that read or write floating numbers, as far as the inspector tells
    half: int  # of these, those that read or write float16
    fused: int = 0  # layers of fused regions, of which only the outer tensors show


def read_layers(inspected: str) -> Layers:
    """Count the layers of `get_engine_information(JSON)` under detailed verbosity. Raises EngineError."""
    try:
        content = load_json(inspected, "TensorRT's inspector:")
    except InputError as error:
        raise EngineError(f"expected a list of layers from TensorRT's inspector, got {inspected[:80]!r}") from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise EngineError(f"expected a list of layers from TensorRT's inspector, got {inspected[:80]!r}")
    if not all(isinstance(layer, dict) for layer in layers):
        raise EngineError("expected layers with details from TensorRT's inspector, got names only; build again")
    typed = [types for types in map(_floating_types, layers) if types]
    plugins = Counter(map(_profile, filter(_is_rdsa, layers)))
    return Layers(
        all=len(layers),
        rdsa={profile: plugins[profile] for profile in sorted({0, *map(_profile, layers)})},
        floating=len(typed),
        half=sum("half" in types for types in typed),
        fused=sum(map(_is_fused, layers)),
    )


def require_layers(model: str, layers: Layers, rdsa: int, half_share: float) -> None:
    """Raise EngineError unless each profile has one plugin layer a step, and the graph's share of half layers is kept.

    Where regions are fused the share is a guess: then only a warning is logged.
    """
    for profile, found in layers.rdsa.items():
        if found != rdsa:
            raise EngineError(
                f"{model}: expected {rdsa} layers of the plugin sdst::RDSA, one a step, profile {profile} of the engine"
                f" has {found} among {layers.all} layers in all; export the bundle again and look for the plugin with"
                "  sdst plugins info"
            )
    fault = half_fault(model, "engine", layers.half, layers.floating, half_share)
    if fault and not layers.fused:
        raise EngineError(f"{fault}; export the bundle again with this version")
    if fault:
        LOGGER.warning("%s, %d of them fused regions that do not show all", fault, layers.fused)


def half_fault(model: str, what: str, half: int, floating: int, half_share: float) -> str:
    """What is wrong unless the engine or network keeps about the graph's share of half precision, else nothing.

    `floating` are its layers of floating numbers, `half` those of float16. Where none tells its type, as when all of
    it is fused into what the inspector does not open, nothing is wrong.
    """
    if not floating or (half / floating >= half_share * HALF_SLACK and (half_share or not half)):
        return ""
    shares = f"the graph is {half_share:.0%} half, the {what} {half / floating:.0%}"
    return f"{model}: {shares} ({half} of {floating} layers)"


def _is_rdsa(layer: dict[str, Any]) -> bool:
    kind = str(layer.get("LayerType", "")).upper().replace("_", "")
    return kind == "PLUGINV3" and any("RDSA" in str(value) for value in layer.values())


def _profile(layer: dict[str, Any]) -> int:
    found = re.search(r"\[profile +(\d+)\]", str(layer.get("Name", "")))
    return int(found[1]) if found else 0


def _is_fused(layer: dict[str, Any]) -> bool:
    text = f"{layer.get('Name', '')} {layer.get('LayerType', '')}".lower()
    return any(word in text for word in ("foreignnode", "myelin", "myln"))


def _floating_types(layer: dict[str, Any]) -> set[str]:
    """ "half" and "float" among the types of a layer's tensors: versions write Half, FP16, or a sentence with it."""
    found = set()
    for text in _tensor_types(layer):
        if "half" in text or "fp16" in text:
            found.add("half")
        elif "float" in text or "fp32" in text:
            found.add("float")
    return found


def _tensor_types(layer: dict[str, Any]) -> Iterator[str]:
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        if isinstance(tensor, dict):
            yield str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))).lower()
