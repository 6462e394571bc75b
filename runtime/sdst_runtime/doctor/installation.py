"""What a plain installation must be able to do, tried on small things that ship with it (`assets/`).

Each check does the thing: a clip of known colours is decoded, an annotation of each form is read, a model is run. What
came out is compared with what is known, so that a package that can be imported and works otherwise is found out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import FeatureSpec
from ..data.annotations import read_annotations
from ..distribution import requirement
from ..errors import ContractError, DependencyError, SdstError
from ..media.clips import read_clips
from ..sessions.onnxruntime import OnnxRuntimeSession
from ..sessions.ort import import_onnxruntime
from .check import Check, split_message

ASSETS = Path(__file__).parent / "assets"
# The bars of colours.mp4, left to right, RGB; it holds them in BT.709.
BARS = (
    (200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128),
    (240, 240, 240), (20, 20, 20), (200, 200, 30), (100, 150, 200),
)  # fmt: skip
COLOUR_TOLERANCE = 6  # of 255: 4:2:0 and its scaling are off by 4, BT.709 read as BT.601 by 29
WEIGHTS = ((0.5, -1.0, 2.0), (1.5, 0.25, -0.5), (-2.0, 1.0, 0.75))  # of check.onnx: answer = given @ weights + given
MODEL_TOLERANCE = 1e-5
# Of each form: file, what qid, video, sentence, duration and windows must come of it.
FORMS = (
    ("QVHighlights", "annotations.jsonl", (7, "v_0.0_12.0", "a dog runs", 12.0, [[4.0, 8.0]])),
    ("Charades-STA", "annotations.txt", (0, "AO8RW", "a person opens the door.", 33.67, [[2.5, 6.9]])),
    ("TACoS", "annotations.json", ("s13-d21_0", "s13-d21", "He cuts the bread.", 40.0, [[2.0, 6.0]])),
)
_COMMON = ("h264", "hevc", "vp9", "av1")


def check_onnxruntime() -> Check:
    """ONNX Runtime: a small model with a function of ours in it runs and says what it must."""
    name = "ONNX Runtime"
    try:
        ort = import_onnxruntime()
    except DependencyError as error:
        return Check(name, "fault", str(error.__cause__), install("onnxruntime"), needed=True)
    providers = ", ".join(provider.removesuffix("ExecutionProvider") for provider in ort.get_available_providers())
    found = f"{ort.__version__}, runs on {providers}"
    return _tried(name, found, _run_model, install("onnxruntime", again=True))


def check_video() -> Check:
    """PyAV with the libraries of ffmpeg: a clip of known colours is decoded, and the commonest decoders are there."""
    name = "video decoding"
    try:
        av: Any = importlib.import_module("av")
        codecs: Any = importlib.import_module("av.codec")
    except ImportError as error:
        return Check(name, "fault", str(error), install("av"), needed=True)
    libavcodec = ".".join(map(str, av.library_versions.get("libavcodec", ())))
    found = f"PyAV {av.__version__}, libavcodec {libavcodec}"
    lacking = [codec for codec in _COMMON if codec not in codecs.codecs_available]
    found += f", without {', '.join(lacking)}" if lacking else ""
    return _tried(name, found, _decode_clip, f"{install('av', again=True)}: its wheels bring ffmpeg with them")


def check_annotations() -> Check:
    """An annotation of each form is read, through pydantic."""
    found = f"pydantic {importlib.import_module('pydantic').VERSION}" if _has_pydantic() else "no pydantic"
    return _tried("annotations", found, _read_forms, install("pydantic", again=True))


def install(package: str, again: bool = False) -> str:
    """The command that brings a version of a package that this project allows."""
    return f"run  pip install {'--force-reinstall ' if again else ''}'{requirement(package)}'"


def _tried(name: str, found: str, run: Callable[[], str], mend: str) -> Check:
    """`run` says what it did, and raises when it went wrong."""
    try:
        return Check(name, "fine", f"{found}; {run()}", needed=True)
    except ContractError as error:  # it ran, and the result is wrong
        return Check(name, "fault", f"{found}: {error}", mend, needed=True)
    except SdstError as error:
        return Check(name, "fault", f"{found}: {split_message(str(error))[0]}", mend, needed=True)
    except Exception as error:  # noqa: BLE001  a package that does not fit raises anything, and this is to say so
        return Check(name, "fault", f"{found}: {type(error).__name__}: {error}", mend, needed=True)


def _decode_clip() -> str:
    half, size = (0.5, 0.5, 0.5), 16 * len(BARS)
    spec = FeatureSpec("check", "", 1, "mean", 2, 1.0, size, "bicubic", half, half, 1, "check", 1, 1)
    clips, duration_s = read_clips(ASSETS / "colours.mp4", spec)
    if clips.shape != (2, 2, size, size, 3) or duration_s != 2.0:
        raise ContractError(f"its 2 s came as {duration_s} s, {len(clips)} clips")
    middles = clips[:, :, size // 2, 8::16].astype(int)
    off = abs(middles - np.asarray(BARS)).max()
    if off > COLOUR_TOLERANCE:
        raise ContractError(
            f"the colours are wrong: a clip in BT.709 is off by {off} of 255, expected at most {COLOUR_TOLERANCE}"
        )
    return f"decoded a clip, colours right within {off} of 255"


def _run_model() -> str:
    given = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    with OnnxRuntimeSession(ASSETS / "check.onnx", threads=1, device="cpu") as session:
        answer = session.run({"given": given})["answer"]
    error = float(abs(answer - (given @ np.asarray(WEIGHTS, np.float32) + given)).max())
    if not error <= MODEL_TOLERANCE:
        raise ContractError(f"the answer of a small model is off by {error:.1e}, expected at most {MODEL_TOLERANCE}")
    return "ran a model"


def _read_forms() -> str:
    for form, name, expected in FORMS:
        (row,) = read_annotations(ASSETS / name, [ASSETS / "annotations.csv"]).rows
        got = (row["qid"], row["vid"], row["query"], row["duration"], row["relevant_windows"])
        if got != expected:
            raise ContractError(f"an annotation of {form} was read as {got}, expected {expected}")
    return f"read {', '.join(form for form, _, _ in FORMS)}"


def _has_pydantic() -> bool:
    try:
        importlib.import_module("pydantic")
    except ImportError:
        return False
    return True
