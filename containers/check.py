"""Run the CPU image as docs/containers.md says, ask it, stop it: with podman, and nothing else than Python.

    python3 containers/check.py IMAGE --bundle BUNDLE --video VIDEO "a sentence" ...

In a container without a network, with a read-only root and no capabilities: the server becomes healthy, runs as
another user than root, answers what `sdst ground --json` in the same image answers, and ends in time when it is told
to. Exit code 1 and one line when it does not. `--podman` is the command with its global options, `--option` one more
option of `podman run`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

READY_S = 120.0  # in which the server must be healthy
GRACE_S = 30  # what `podman stop` waits before it kills
TOKEN = "a-token"
CLIENT = """
import json, sys, urllib.error, urllib.request
SERVER = "http://127.0.0.2:8080"  # not where localhost is: whoever is answered there has listened on all addresses
def post(path, body, kind, token):
    headers = {"Content-Type": kind, "Authorization": "Bearer " + token}
    try:
        with urllib.request.urlopen(urllib.request.Request(SERVER + path, body, headers)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code}
def ask(token):
    asked = {"video": sys.argv[1], "sentences": sys.argv[3:]}
    with open(sys.argv[2], "rb") as file:
        video = post("/v1/videos", file.read(), "video/mp4", token)
    if "video" not in video:
        return video
    return post("/v1/ground", json.dumps({**asked, "video": video["video"]}).encode(), "application/json", token)
print(json.dumps([ask("another"), ask(sys.argv[1])]))
"""


class Failed(Exception):
    """What was expected and what came."""


@dataclass(frozen=True)
class Podman:
    """An image, and how containers of it are run."""

    command: Sequence[str]
    options: Sequence[str]
    image: str
    bundle: Path
    video: Path

    def say(self, *words: str, given: str | None = None, codes: Sequence[int] = (0,)) -> str:
        """What a command of podman prints. Raises Failed for another exit code."""
        done = subprocess.run([*self.command, *words], input=given, text=True, capture_output=True)
        if done.returncode not in codes:
            raise Failed(f"podman {words[0]}: exit code {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def run(self, *words: str, more: Sequence[str] = ()) -> str:
        """`podman run` as the documentation has it."""
        return self.say(
            "run", "--pull=never", "--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=all",
            "--security-opt=no-new-privileges", f"--volume={self.bundle.absolute()}:/bundle:ro",
            f"--volume={self.video.absolute()}:/videos/{self.video.name}:ro", *self.options, *more, self.image, *words,
        )  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("sentences", nargs="+")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--podman", type=shlex.split, default=["podman"])
    parser.add_argument("--option", action="append", default=[])
    given = parser.parse_args()
    podman = Podman(given.podman, given.option, given.image, given.bundle, given.video)
    try:
        for name, value in {**serve(podman, given.sentences), **stop_early(podman)}.items():
            sys.stdout.write(f"{name}: {value}\n")
    except Failed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def serve(podman: Podman, sentences: Sequence[str]) -> dict[str, Any]:
    """A server from its start to its end; what was seen of it."""
    name = f"sdst-check-{secrets.token_hex(4)}"
    podman.run(more=["--detach", f"--name={name}", f"--env=SDST_SERVE_TOKEN={TOKEN}"])
    try:
        ready_s = until_healthy(podman, name)
        user = podman.say("exec", name, "id", "-u").strip()
        expect("the user", user != "0", user)
        podman.say("exec", name, "touch", "/opt/sdst/written", codes=[1])
        podman.say("exec", name, "python3", "-c", "import torch", codes=[1])
        video = f"/videos/{podman.video.name}"
        said = podman.say("exec", "-i", name, "python3", "-", TOKEN, video, *sentences, given=CLIENT)
        refused, answer = json.loads(said)
        expect("an answer to a wrong token", refused == {"status": 401}, refused)
        ground = json.loads(podman.run("ground", video, *sentences, "--bundle", "/bundle", "--json", more=["--rm"]))
        expect("the answer of sdst ground", {**answer, "video": 0} == {**ground, "video": 0}, answer)
        memory = podman.say("stats", "--no-stream", "--format", "{{.MemUsage}}", name).split("/")[0].strip()
        stop(podman, name)
        code, (stopping, stopped) = exit_code(podman, name), log(podman, name)[-2:]
        expect("exit code 0 after a stop", code == 0, code)
        expect("an orderly end", stopped.get("event") == "stopped", stopped)
        stop_s = (datetime.fromisoformat(stopped["time"]) - datetime.fromisoformat(stopping["time"])).total_seconds()
        size = int(podman.say("image", "inspect", podman.image, "--format", "{{.Size}}"))
        return {
            "healthy after": f"{ready_s:.1f} s", "user": user, "moments": len(answer["results"][0]["moments"]),
            "best": answer["results"][0]["moments"][0], "memory": memory,
            "stopped after": f"{stop_s:.1f} s", "image": f"{size / 1e6:.0f} MB",
        }  # fmt: skip
    finally:
        podman.say("rm", "--force", "--time=0", name)


def stop_early(podman: Podman) -> dict[str, Any]:
    """A server that is told to end as soon as Python runs, long before it is ready: the first process must hear it."""
    name = f"sdst-check-{secrets.token_hex(4)}"
    podman.run(more=["--detach", f"--name={name}"])
    try:
        until_heard(podman, name)
        stop(podman, name)
        return {"stopped at its start": f"exit code {exit_code(podman, name)}"}
    finally:
        podman.say("rm", "--force", "--time=0", name)


def until_healthy(podman: Podman, name: str) -> float:
    """Seconds until the image's own HEALTHCHECK passes."""
    begin = time.monotonic()
    while (waited := time.monotonic() - begin) < READY_S:
        done = subprocess.run([*podman.command, "healthcheck", "run", name], capture_output=True, text=True)
        if done.returncode == 0:
            return waited
        expect("a HEALTHCHECK in the image", "no defined healthcheck" not in done.stderr, done.stderr.strip())
        time.sleep(0.5)
    raise Failed(f"not healthy after {READY_S:.0f} s; its log ends with {log(podman, name)[-2:]}")


def until_heard(podman: Podman, name: str) -> None:
    """Until process 1 catches SIGTERM: one that comes before is lost, as to every first process."""
    begin = time.monotonic()
    while time.monotonic() - begin < READY_S:
        status = podman.say("exec", name, "cat", "/proc/1/status")
        if int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
    raise Failed(f"process 1 does not catch SIGTERM after {READY_S:.0f} s")


def stop(podman: Podman, name: str) -> None:
    """Raises Failed when it had to be killed."""
    podman.say("stop", f"--time={GRACE_S}", name)
    expect(f"an end within {GRACE_S} s", exit_code(podman, name) != 137, "it was killed")


def log(podman: Podman, name: str) -> list[dict[str, Any]]:
    """The server's lines."""
    done = subprocess.run([*podman.command, "logs", name], capture_output=True, text=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def exit_code(podman: Podman, name: str) -> int:
    """Of a container that has ended."""
    return int(podman.say("inspect", name, "--format", "{{.State.ExitCode}}"))


def expect(what: str, holds: bool, came: object) -> None:
    """Raise Failed unless it holds."""
    if not holds:
        raise Failed(f"expected {what}, got {str(came)[:500]}")


if __name__ == "__main__":
    sys.exit(main())
