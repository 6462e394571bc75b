"""Feature files: one safetensors file a video and one a distinct sentence, each with its whole contract.

`DIR/video/{vid}.safetensors` holds "features" T K V; `DIR/text/{digest of the sentence}.safetensors` K L X.
A video's file also says which decoder made it, and of which video file; those without these words are older.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import bounds
from ..contracts import FeatureSpec, TextFeatures, VideoFeatures
from ..errors import InputError, foreign_errors, require_package
from ..files import only_process, pack_header, remove_leftovers, unpack_header, write_bytes
from ..strict_json import dump_json
from ..text import normalise
from .lazy_arrays import read_header

SPEC = "spec"  # keys of a file's header, which packed files have too
STATED = {"video": ("duration_s", "durations_s"), "text": ("query", "queries")}  # of a loose file, of a packed one
SOURCE = "source"  # of a loose file of a video; older files lack it
_LONGEST_NAME = 255  # bytes, of every usual file system
DECODER, DECODERS = "decoder", "decoders"  # of a loose file and of a packed one; older files lack them


def video_feature_path(directory: Path, vid: str) -> Path:
    """Where the features of a video lie."""
    return Path(directory) / "video" / file_name(vid, "safetensors")


def file_name(identity: str | int, suffix: str) -> str:
    """The name of the file of a video's or query's id, which comes from annotations that anyone may have written.

    Raises InputError for an id that leads to another folder, or that no file can be called.
    """
    name = f"{identity}.{suffix}"
    if Path(name).name != name or "\\" in name or "\0" in name or not str(identity).strip():
        raise InputError(
            f"id {identity!r}: expected the name of a file without folders, got a path or nothing; mend the annotations"
        )
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise InputError(f"id {str(identity)[:40]!r}...: longer than a file's name may be; mend the annotations")
    return name


def stated_duration(text: Any, path: Path) -> float:
    """The seconds that a video's feature file states. Raises InputError unless they are those of a video."""
    try:
        seconds = float(text)
        bounds.require("duration_s", seconds, bounds.DURATION_S, "seconds")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: expected a duration in seconds, got {text!r:.40}; extract it again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}; extract it again") from error
    return seconds


def text_feature_path(directory: Path, query: str) -> Path:
    """Where the features of a sentence lie: the SHA-256 of its normal form names it, so equal ones are stored once.

    A sentence that normalisation changes had another name before there was any; its old file is never read, since its
    features are those of the characters that are now left out.
    """
    digest = hashlib.sha256(normalise(query).encode("utf-8", "surrogatepass")).hexdigest()
    return Path(directory) / "text" / f"{digest[:24]}.safetensors"


@contextmanager
def claim(directory: Path, kind: Literal["video", "text"]) -> Iterator[None]:
    """Write one kind of features into a folder, alone, without what a killed process left. InUseError when not alone.

    Videos and sentences may be extracted at the same time, by two processes.
    """
    with only_process(Path(directory) / f".{kind}.lock"):
        remove_leftovers(Path(directory) / kind)
        yield


def is_made(path: Path, spec: FeatureSpec) -> bool:
    """Whether a whole feature file is there; only its header is read. A broken one is not: it is made again.

    Raises ContractError when it was made under another contract than `spec`.
    """
    if not Path(path).is_file():
        return False
    try:
        text = unpack_header(read_header(path).metadata, (SPEC,), path)[SPEC]
    except InputError:
        return False
    if text != spec.to_json():
        mend = "choose another folder, or delete the features in this one"
        FeatureSpec.from_json(text, path).require(spec, have=path, need="what is made now", exact=True, mend=mend)
    return True


def stored_source(path: Path) -> str:
    """Which video file a whole feature file was made of; "" where it does not say."""
    return str(unpack_header(read_header(path).metadata, (SPEC,), path).get(SOURCE, ""))


def write_video_features(path: Path, video: VideoFeatures) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    facts = {DECODER: video.decoder, SOURCE: video.source}
    stated = {STATED["video"][0]: dump_json(video.duration_s)} | {key: fact for key, fact in facts.items() if fact}
    _write(path, video.features, pack_header(**{SPEC: video.spec.to_json()}, **stated))


def write_text_features(path: Path, text: TextFeatures) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    _write(path, text.features, pack_header(**{SPEC: text.spec.to_json(), STATED["text"][0]: text.query}))


def read_video_features(path: Path, needed: FeatureSpec | None = None) -> VideoFeatures:
    """Read and check. Raises InputError (missing, broken, NaN) or ContractError (not made as `needed`)."""
    features, header, spec = _read(path, needed, "video")
    duration_s = stated_duration(header[STATED["video"][0]], path)
    try:
        facts = {"decoder": str(header.get(DECODER, "")), "source": str(header.get(SOURCE, ""))}
        return VideoFeatures(features, duration_s, spec, **facts)
    except InputError as error:
        raise InputError(f"{path}: {str(error)[:300]}") from error


def read_text_features(path: Path, needed: FeatureSpec | None = None) -> TextFeatures:
    """Read and check. Raises InputError (missing, broken, NaN) or ContractError (not made as `needed`)."""
    features, header, spec = _read(path, needed, "text")
    try:
        return TextFeatures(features, header[STATED["text"][0]], spec)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _write(path: Path, features: np.ndarray, metadata: dict[str, str]) -> None:
    numpy_io: Any = require_package("safetensors.numpy", "")
    write_bytes(path, numpy_io.save({"features": np.ascontiguousarray(features)}, metadata))


def _read(path: Path, needed: FeatureSpec | None, kind: str) -> tuple[np.ndarray, dict, FeatureSpec]:
    safetensors: Any = require_package("safetensors", "")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such feature file; extract the features of this dataset first")
    with (
        foreign_errors(f"{path}: not a readable feature file", "extract it again"),
        safetensors.safe_open(path, "numpy") as stored,
    ):
        metadata = stored.metadata()
        features = stored.get_tensor("features")
    header = unpack_header(metadata, (SPEC, STATED[kind][0]), path)
    spec = FeatureSpec.from_json(header[SPEC], path)
    if needed is not None:
        spec.require(needed, have=path, need="the model")
    return features, header, spec
