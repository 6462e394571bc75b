"""HTML pages from the templates beside this file: self-contained, no script, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import require_package


def render(template: str, **told: Any) -> str:
    """A template of this package as text; everything that comes from outside is escaped.

    Raises jinja2.UndefinedError for something that the template names and `told` lacks, DependencyError without jinja2.
    """
    jinja2: Any = require_package("jinja2", "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**told)
