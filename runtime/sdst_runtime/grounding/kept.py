"""Encoded videos that are kept in a folder: the second question about a video costs the text model and the head.

A file's name is a digest of all that the encoding depends on: the video's whole content, whatever it is called, the
contract, the vision model and projection, the windows, the decoder and this project's version. A video whose content
changed is another one; reading it to know costs about a second a GB, a small part of encoding it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from ..contracts import EncodedVideo, FeatureSpec
from ..distribution import own_version
from ..errors import InputError, SdstError
from ..files import make_directory, sha256_file
from ..media.clips import decoder_name

_NAME = "\0"  # stands for the video's name in the warnings of a kept file
FORMAT = 1  # one more when the same file comes to other clips or features, as after a change of decoding


@dataclass(frozen=True)
class Place:
    """Where the encoding of one video lies, whether it is there or not."""

    path: Path
    video: Path
    state: tuple[int, ...]  # of the video's file when it was digested


class KeptVideos:
    """The encodings of one bundle in a folder. Raises InputError when the folder cannot be made."""

    def __init__(
        self, directory: Path, spec: FeatureSpec, projection_sha256: str, made_with: Mapping[str, str]
    ) -> None:
        """`made_with`: what encodings of this bundle depend on, beyond contract and decoder."""
        make_directory(directory)
        self._directory, self._spec, self._projection_sha256 = directory, spec, projection_sha256
        own = {"format": str(FORMAT), "sdst": _version(), "decoder": decoder_name(), "spec": spec.to_json()}
        self._facts = own | {"projection": projection_sha256} | dict(made_with)

    def place(self, video: Path) -> Place | None:
        """The place of a video's encoding; None when the video cannot be read, which decoding it will explain."""
        try:
            state = _state(video)
            facts = self._facts | {"video": sha256_file(video)}
        except (InputError, OSError):
            return None
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Place(self._directory / f"{key}.safetensors", video, state)

    def find(self, place: Place | None) -> EncodedVideo | None:
        """What is kept there; None when nothing is, or nothing that can be used: it is made again."""
        if place is None or not place.path.is_file():
            return None
        try:
            encoded = EncodedVideo.load(place.path, self._spec, self._projection_sha256)
        except SdstError:
            return None
        return _renamed(encoded, _NAME, str(place.video))

    def keep(self, place: Place | None, encoded: EncodedVideo) -> EncodedVideo:
        """Keep an encoding, unless its video was changed meanwhile. Where it cannot be kept, a warning says so."""
        try:
            if place is not None and _state(place.video) == place.state:
                _renamed(encoded, str(place.video), _NAME).save(place.path)
        except (InputError, OSError) as error:
            return replace(encoded, warnings=(*encoded.warnings, f"the encoded video was not kept: {error}"))
        return encoded


def _renamed(encoded: EncodedVideo, name: str, other: str) -> EncodedVideo:
    """Warnings name the file; a file of the same content may have another name."""
    return replace(encoded, warnings=tuple(line.replace(name, other) for line in encoded.warnings))


def _state(path: Path) -> tuple[int, ...]:
    told = os.stat(path)
    return told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns


def _version() -> str:
    try:
        return own_version()
    except PackageNotFoundError:  # run from the source, not installed
        return ""
