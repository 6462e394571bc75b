"""The page of `sdst calibrate audit`: one self-contained HTML file, no script, no network; audit.json beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdst_runtime.files import write_json, write_text
from sdst_runtime.pages.charts import fixed, short
from sdst_runtime.pages.templates import render
from sdst_runtime.strict_json import nulls_for_nan

from .compare import GraphAudit, TensorAudit
from .rules import Finding

KEEP_FILE = "keep-fp32.txt"
_STEPS_DB = (70.0, 60.0, 50.0, 35.0)  # between the colours; 35 is where a collapse begins
_LABELS = ("70 dB and more", "60 to 70", "50 to 60", "35 to 50", "under 35", "NaN, infinite or overflowing")
_WORST = 12
_LETTER_PCT = {"on-wide": 0.85, "on-narrow": 3.2}  # share of the plot that a letter takes: of 1280 pixels, of 390


def write_audit(folder: Path, audits: Sequence[GraphAudit], findings: Sequence[Finding], facts: Facts) -> None:
    """Write audit.json and audit.html into `folder`. Raises InputError when they cannot be written."""
    document: dict[str, Any] = {"facts": dict(facts), "findings": [dataclasses.asdict(finding) for finding in findings]}
    write_json(
        folder / "audit.json", nulls_for_nan(document | {"models": [dataclasses.asdict(audit) for audit in audits]})
    )
    write_text(folder / "audit.html", render_audit(audits, findings, facts))


Facts = Sequence[tuple[str, str]]


def render_audit(audits: Sequence[GraphAudit], findings: Sequence[Finding], facts: Facts) -> str:
    """The page as text. Everything that comes from outside is escaped."""
    return render(
        "audit.html",
        facts=facts,
        findings=findings,
        keep_file=KEEP_FILE,
        legend=[(f"q{i}", label) for i, label in enumerate(_LABELS)],
        queries=max(audit.feeds for audit in audits),
        graphs=[_graph(audit) for audit in audits],
    )


def _graph(audit: GraphAudit) -> dict[str, Any]:
    halves = sum(tensor.half for tensor in audit.tensors)
    lost = f"; {len(audit.unmatched)} without a twin" if audit.unmatched else ""
    return {
        "model": audit.model,
        "summary": f"{len(audit.tensors)} floating-point tensors, {halves} of them half, {audit.feeds} inputs{lost}",
        "width": max(len(audit.tensors), 1),
        "lanes": [
            {"name": "SNR, half", "cells": _cells([tensor if tensor.half else None for tensor in audit.tensors])},
            {"name": "SNR, float32", "cells": _cells([None if tensor.half else tensor for tensor in audit.tensors])},
        ],
        "names": _names(audit.tensors),
        "all": [
            {"key": tensor.key, "type": _type(tensor), "amax": short(tensor.amax), "snr": _snr(tensor)}
            for tensor in audit.tensors
        ],
        "worst": [_row(tensor) for tensor in _worst(audit.tensors)],
    }


def _cells(tensors: Sequence[TensorAudit | None]) -> list[dict[str, Any]]:
    return [
        {"x": x, "class": _colour(tensor), "title": f"{tensor.key}: {_snr(tensor)} dB, largest {short(tensor.amax)}"}
        for x, tensor in enumerate(tensors)
        if tensor is not None
    ]


def _colour(tensor: TensorAudit) -> str:
    if tensor.snr_db is None or (tensor.half and tensor.overflow):
        return "q5"
    return f"q{sum(tensor.snr_db < step for step in _STEPS_DB)}"


def _names(tensors: Sequence[TensorAudit]) -> list[dict[str, Any]]:
    """Where each stretch of one part of the model begins; names of short stretches are left out."""
    parts = [_part(tensor.place) for tensor in tensors]
    named = [i for i, part in enumerate(parts) if part]
    starts = [i for before, i in pairwise([-1, *named]) if before < 0 or parts[before] != parts[i]]
    names: list[dict[str, Any]] = []
    ends = {(width, row): -100.0 for width in _LETTER_PCT for row in (0, 1)}  # of the last name in a row, percent
    for i in starts:
        at = 100 * i / len(tensors)
        rows = {}
        for width, letter_pct in _LETTER_PCT.items():
            end = at + letter_pct * len(parts[i])
            row = next((row for row in (0, 1) if at > ends[width, row] and end < 100), None)
            if row is not None:
                ends[width, row], rows[width] = end, row
        names += [{"x_pct": at, "row": row, "label": parts[i], "class": width} for width, row in rows.items()]
    return names


def _part(place: str) -> str:
    """Of a path, as much as names a part: up to its first number, else two names."""
    names = place.split(".")
    number = next((i for i, name in enumerate(names) if name.isdecimal()), 1)
    return ".".join(names[: number + 1])


def _worst(tensors: Sequence[TensorAudit]) -> list[TensorAudit]:
    """The worst tensor of each place, the worst places first."""
    ranked = sorted(tensors, key=lambda tensor: float("-inf") if tensor.snr_db is None else tensor.snr_db)
    worst: dict[str, TensorAudit] = {}
    for tensor in ranked:
        worst.setdefault(tensor.place, tensor)
    return list(worst.values())[:_WORST]


def _row(tensor: TensorAudit) -> dict[str, str]:
    return {
        "key": tensor.key,
        "type": _type(tensor),
        "amax": short(tensor.amax),
        "overflow": _share(tensor.overflow),
        "subnormal": _share(tensor.subnormal),
        "flushed": _share(tensor.flushed),
        "max_error": short(tensor.max_error),
        "snr": _snr(tensor),
    }


def _type(tensor: TensorAudit) -> str:
    return "half" if tensor.half else "float32"


def _share(value: float) -> str:
    return "0" if value == 0 else f"{value:.2%}" if value >= 5e-5 else "< 0.01%"


def _snr(tensor: TensorAudit) -> str:
    return "broken" if tensor.snr_db is None else fixed(tensor.snr_db, 0)
