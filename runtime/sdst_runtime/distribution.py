"""What this installation is called and needs: the one place that knows the name that pip knows.

`sdst` on the package index is another project, so the distribution is `sdst-vtg` and is installed from a checkout.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

DISTRIBUTION = "sdst-vtg"


def own_version() -> str:
    """The version of this project that is installed."""
    return version(DISTRIBUTION)


def install_command(extra: str = "") -> str:
    """What to run to install the project, or one of its extras: words that end a message."""
    what = f"'.[{extra}]'" if extra else "."
    return f"run  pip install {what}  in the project's checkout"


def requirement(package: str) -> str:
    """A package with the versions of it that a plain installation allows, for pip: "numpy>=1.26"."""
    try:
        lines = [line for line in requires(DISTRIBUTION) or [] if "extra ==" not in line]
    except PackageNotFoundError:  # run from the source, not installed
        return package
    return next((line for line in lines if re.split(r"[^\w-]", line)[0].lower() == package), package)
