"""HTML pages from the templates beside this file: no network, no script but what a page's policy names by digest."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ..errors import require_package

_FOLDER = Path(__file__).parent / "templates"


def render(template: str, **told: Any) -> str:
    """A template of this package as text; everything that comes from outside is escaped.

    Raises jinja2.UndefinedError for something that the template names and `told` lacks, DependencyError without jinja2.
    """
    jinja2: Any = require_package("jinja2", "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**told)


def source(name: str) -> str:
    """A file of this package as it is: a script that a template puts into its page."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def policy_digest(script: str) -> str:
    """What names a script in a Content-Security-Policy, so that the page runs it and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
