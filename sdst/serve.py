"""`sdst serve`: questions about videos over HTTP, and a page."""

from __future__ import annotations

from pathlib import Path

import tyro

from sdst_runtime.serving.limits import Limits
from sdst_runtime.serving.run import Options, token_of_environment
from sdst_runtime.serving.run import serve as run_server

_DEFAULTS = Limits()


def serve(
    bundle: tyro.conf.Positional[Path],
    *,
    root: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int | None = None,
    limits: tyro.conf.OmitArgPrefixes[Limits] = _DEFAULTS,
) -> None:
    """Answer sentences about videos over HTTP, with a page at / and its interface at /openapi.json.

    SIGTERM ends it: no new work, what is there is finished. With $SDST_SERVE_TOKEN set, clients must send it as
    `Authorization: Bearer TOKEN`. The log goes to stderr, a line of JSON each.

    Args:
        bundle: The directory that `sdst export`, `sdst build` or `sdst demo` wrote.
        root: Folder whose videos may be listed, named by path and played; default: videos are uploaded only.
        host: Address to listen on; 0.0.0.0 for all of this machine.
        port: Port to listen on; 0 takes a free one, which the log names.
        threads: Threads for each model; default: all cores.
        limits: What is refused.
    """
    run_server(Options(bundle, root, host, port, threads, token_of_environment()), limits)
