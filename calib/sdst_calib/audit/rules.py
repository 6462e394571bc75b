"""Which modules should stay float32, from an audit: four faults, each named where it starts.

- overflow: a half tensor whose float32 values pass 65504. Its module is named, and the modules that read it.
- broken: NaN or infinity in the half run where nothing that came in was broken, and no value passed 65504: a sum or a
  product inside the node did.
- collapse: a tensor whose signal-to-noise ratio is under 35 dB and 15 dB below the worst of what it reads: most of
  what came in cancels and its rounding stays. The rounding was done before, so that its module is named together with
  those behind it that made a half tensor of eight times its size, back to the next norm.
- wear: an output under 35 dB though no step on the way lost as much. The modules along the worst way are named.

What follows a fault is not named: mend, export and audit again. Rounding down, and looking up by what was rounded, is
no fault: where a position crosses to the next clip, its clip and its share jump at once and their sum does not.
35 and 15 dB are this project's choice: on the demo nothing else loses more than 12 dB of what it reads, and the worst
result but those has 54.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdst_runtime.files import write_text

from .compare import EXACT_DB, GraphAudit, TensorAudit

LEAST_DB = 35.0
MOST_LOST_DB = 15.0
LARGE = 8.0  # times the collapsed result


@dataclass(frozen=True)
class Finding:
    """A fault, and the modules that mend it."""

    model: str
    fault: str  # overflow, broken, collapse or wear
    tensor: str
    key: str  # the node that shows it
    reason: str  # one line
    modules: tuple[str, ...]  # paths; none where no module makes the tensor


def find_faults(audit: GraphAudit) -> list[Finding]:
    """The faults of a model, in the order of its nodes; several steps of one module that fail alike are one."""
    by_key = {tensor.key: tensor for tensor in audit.tensors}
    findings: dict[tuple[str, str], Finding] = {}
    for tensor in audit.tensors:
        fault = _fault(tensor, by_key)
        if fault is not None:
            step = tensor.key.rpartition(".")[0] if tensor.place else tensor.key
            finding = _finding(audit, fault, tensor, by_key)
            findings[fault, step] = _joined(findings[fault, step], finding) if (fault, step) in findings else finding
    worn = [by_key[key] for key in audit.outputs if (by_key[key].snr_db or 0.0) < LEAST_DB]
    return list(findings.values()) or [_finding(audit, "wear", tensor, by_key) for tensor in worn]


def _finding(audit: GraphAudit, fault: str, tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> Finding:
    modules = _modules(fault, tensor, by_key, audit.tensors)
    return Finding(audit.model, fault, tensor.tensor, tensor.key, _reason(fault, tensor, by_key), modules)


def _joined(first: Finding, second: Finding) -> Finding:
    return replace(first, modules=tuple(dict.fromkeys((*first.modules, *second.modules))))


def keep_text(findings: Sequence[Finding]) -> str:
    """The file of `sdst export --keep-fp32` (sdst_export/keep.py): each module once, with its first reason."""
    lines = ["# Modules that should stay float32, found by  sdst calibrate audit", ""]
    named: set[tuple[str, str]] = set()
    for finding in findings:
        if not finding.modules:
            lines.append(f"# {finding.model}: {finding.key} is in no module and cannot be kept: {finding.reason}")
        for module in finding.modules:
            if (finding.model, module) not in named:
                named.add((finding.model, module))
                lines.append(f"{finding.model}: {module}  # {finding.fault} at {finding.key}: {finding.reason}")
    return "\n".join(lines) + "\n"


def write_keep(path: Path, findings: Sequence[Finding]) -> None:
    """Write `keep_text`. Raises InputError when it cannot be written."""
    write_text(path, keep_text(findings))


_NORMS = {"LayerNormalization"}
_JUMPS = {"Floor", "Ceil", "Round", "Gather", "GatherElements", "GatherND"}


def _fault(tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> str | None:
    if tensor.half and tensor.overflow:
        return "overflow"
    if tensor.broken:
        return None if any(source.broken for source in _sources(tensor, by_key)) else "broken"
    return "collapse" if _collapses(tensor, by_key) else None


def _collapses(tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> bool:
    sources = _sources(tensor, by_key)
    rounded = tensor.half or any(source.half for source in sources)
    if tensor.operator in _JUMPS or tensor.snr_db is None or not rounded:
        return False
    return tensor.snr_db < LEAST_DB and _worst_read(tensor, by_key) - tensor.snr_db > MOST_LOST_DB


def _worst_read(tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> float:
    """The least ratio among what a tensor is made of, dB; inputs of the model have no error."""
    return min((source.snr_db for source in _sources(tensor, by_key) if source.snr_db is not None), default=EXACT_DB)


def _modules(
    fault: str, tensor: TensorAudit, by_key: dict[str, TensorAudit], tensors: Iterable[TensorAudit]
) -> tuple[str, ...]:
    blamed = [tensor]
    if fault == "overflow":
        makers = [] if tensor.place else _sources(tensor, by_key)  # a sum between modules is as wide as what it reads
        blamed = [*makers, tensor, *(reader for reader in tensors if tensor.key in reader.sources)]
    if fault == "collapse":
        blamed = [*_large_behind(tensor, LARGE * tensor.rms, by_key, set()), tensor]
    if fault == "wear":
        blamed = list(_worst_way(tensor, by_key))
    return tuple(dict.fromkeys(one.place for one in blamed if one.place and one.operator not in _NORMS))


def _worst_way(tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> Iterator[TensorAudit]:
    """Half tensors that lead to `tensor`, each the worst of what the next reads, back to where the signal is sound."""
    ways = [source for source in _sources(tensor, by_key) if source.snr_db is not None]
    if ways:
        worst = min(ways, key=lambda source: source.snr_db or 0.0)
        if (worst.snr_db or 0.0) < LEAST_DB + MOST_LOST_DB:
            yield from _worst_way(worst, by_key)
    if tensor.half:
        yield tensor


def _large_behind(
    tensor: TensorAudit, size: float, by_key: dict[str, TensorAudit], seen: set[str]
) -> Iterator[TensorAudit]:
    """Half tensors of at least `size` that lead to `tensor`, the first made first, back to the next norm."""
    for source in _sources(tensor, by_key):
        if source.key not in seen and source.half and source.rms >= size and source.operator not in _NORMS:
            seen.add(source.key)
            yield from _large_behind(source, size, by_key, seen)
            yield source


def _sources(tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> list[TensorAudit]:
    return [by_key[key] for key in tensor.sources if key in by_key]


def _reason(fault: str, tensor: TensorAudit, by_key: dict[str, TensorAudit]) -> str:
    if fault == "overflow":
        return f"{tensor.overflow:.2%} of its values pass 65504, the largest is {tensor.amax:.3g}"
    if fault == "broken":
        return f"{tensor.broken:.2%} of its values are NaN or infinite in half"
    if fault == "wear":
        return f"signal to noise is {tensor.snr_db:.0f} dB, lost little by little"
    return f"signal to noise falls from {_worst_read(tensor, by_key):.0f} to {tensor.snr_db:.0f} dB"
