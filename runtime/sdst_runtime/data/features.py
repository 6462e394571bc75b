"""Feature files: one safetensors file a video and one a distinct sentence, each with its whole contract.

`DIR/video/{vid}.safetensors` holds "features" T K V; `DIR/text/{digest of the sentence}.safetensors` K L X.
A video's file also says which decoder made it; files without that word are older, and as good.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..contracts import FeatureSpec, TextFeatures, VideoFeatures
from ..errors import InputError, foreign_errors, require_package
from ..files import only_process, pack_header, remove_leftovers, unpack_header, write_bytes
from .lazy_arrays import read_header

SPEC = "spec"  # keys of a file's header, which packed files have too
STATED = {"video": ("duration_s", "durations_s"), "text": ("query", "queries")}  # of a loose file, of a packed one
DECODER, DECODERS = "decoder", "decoders"  # of a loose file and of a packed one; older files lack them


def video_feature_path(directory: Path, vid: str) -> Path:
    """Where the features of a video lie."""
    return Path(directory) / "video" / f"{vid}.safetensors"


def text_feature_path(directory: Path, query: str) -> Path:
    """Where the features of a sentence lie: its SHA-256 names it, so equal sentences are stored once."""
    return (
        Path(directory)
        / "text"
        / f"{hashlib.sha256(query.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.safetensors"
    )


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


def write_video_features(path: Path, video: VideoFeatures) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    stated = {STATED["video"][0]: json.dumps(video.duration_s)} | ({DECODER: video.decoder} if video.decoder else {})
    _write(path, video.features, pack_header(**{SPEC: video.spec.to_json()}, **stated))


def write_text_features(path: Path, text: TextFeatures) -> None:
    """Write atomically. Raises InputError when `path` cannot be written."""
    _write(path, text.features, pack_header(**{SPEC: text.spec.to_json(), STATED["text"][0]: text.query}))


def read_video_features(path: Path, needed: FeatureSpec | None = None) -> VideoFeatures:
    """Read and check. Raises InputError (missing, broken, NaN) or ContractError (not made as `needed`)."""
    features, header, spec = _read(path, needed, "video")
    try:
        duration_s = float(header[STATED["video"][0]])
        return VideoFeatures(features, duration_s, spec, decoder=str(header.get(DECODER, "")))
    except (InputError, ValueError) as error:
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
