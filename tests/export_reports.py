"""Reads the export report of a bundle, which only people read."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from sdst_export.report.export_report import ExportReport
from sdst_runtime.grounding.bundle import EXPORT_REPORT


def read_report(directory: Path) -> ExportReport:
    """export.json as the object that was written, strictly."""
    return TypeAdapter(ExportReport).validate_json((directory / EXPORT_REPORT).read_bytes(), strict=True)
