"""`sdst demo --web`: the server's page on the demo's videos."""

from __future__ import annotations

import os
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path

from sdst_runtime.errors import require_package

_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # of the environment: without them Linux has no window to open
_HELD_OUT = "?find=val_"  # the page lists these first: the model was not trained on them


def is_finished(out: Path) -> bool:
    """Whether a demo has run to its end in `out`."""
    return (out / "summary.json").is_file() and (out / "bundle" / "bundle.json").is_file()


def require_server() -> None:
    """Raise DependencyError when the extra `serve` is missing."""
    require_package("sdst_runtime.serving.run", "serve")


def show_page(out: Path) -> None:
    """Serve the demo's bundle and videos on a free port of this machine, with a page, until Ctrl-C."""
    from sdst_runtime.serving.limits import Limits
    from sdst_runtime.serving.run import Options, serve

    def listening(address: str) -> None:
        page = f"{address}/{_HELD_OUT}"
        print(f"The page: {page}\nCtrl-C ends it.", flush=True)  # noqa: T201
        if sys.platform != "linux" or any(map(os.environ.get, _SCREENS)):
            webbrowser.open(page)

    with suppress(KeyboardInterrupt):
        serve(Options(out / "bundle", out / "videos", port=0), Limits(), listening)
