"""The store of a corpus: a file a video, which is the checkpoint of its indexing.

    STORE/store.json              the contract, and which bundle made all of it
    STORE/videos/ID.safetensors   `vectors` N K F int8 and `projected.i` n K F float16 of each window i; what they were
                                  made of and with
    STORE/ranking*                the vectors of all videos in one file (ranking.py)

N clips of all windows of a video, n of one, K steps, F width of the head. A vector is the projected clip at length one,
times 127: so rounded, no cosine of the demo moved by more than 0.011.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..contracts import EncodedVideo, FeatureSpec, ProjectedVideo, Window
from ..data.features import file_name, stated_duration
from ..distribution import own_version
from ..errors import ContractError, InputError
from ..files import only_process, remove_leftovers, write_json
from ..grounding.bundle import Bundle
from ..strict_json import load_json, read_strict
from ..tensor_files import read_arrays, write_arrays

FORMAT = 1
FACTS = "store.json"
SCALE = 127  # of a vector of length one
_STATED = ("spec", "duration_s", "windows", "projection_sha256", "source", "video", "decoder", "warnings")
_MEND = "run  sdst corpus index  again, which makes it anew"


@dataclass(frozen=True)
class StoreFacts:
    """store.json."""

    format: int
    sdst_version: str
    spec: FeatureSpec
    bundle: str  # its folder when the store was made
    projection_sha256: str
    models: dict[str, str]  # file -> SHA-256 of the models that made the store


@dataclass(frozen=True, eq=False)
class StoredVideo:
    """One file of the store."""

    video: ProjectedVideo  # its `projected` in float16
    vectors: np.ndarray  # N K F int8
    source: str  # `media.containers.source_digest` of the video file
    path: str  # of it, when it was indexed
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """A store that is there, and what it was made with."""

    directory: Path
    facts: StoreFacts

    @classmethod
    def open(cls, directory: Path) -> Store:
        """Raises InputError when it is no store, ContractError when it is of another format."""
        path = Path(directory) / FACTS
        if not path.is_file():
            raise InputError(f"{directory}: not a store, it has no {FACTS}; make one with  sdst corpus index")
        facts = read_strict(StoreFacts, path, "index the videos again into another folder")
        if facts.format != FORMAT:
            raise ContractError(f"{path}: store format {facts.format}, this sdst reads {FORMAT}; index again elsewhere")
        return cls(Path(directory), facts)

    @classmethod
    def make(cls, directory: Path, bundle: Bundle) -> Store:
        """Open the store of a bundle, or make an empty one. Raises ContractError when another bundle made it."""
        if (Path(directory) / FACTS).is_file():
            store = cls.open(directory)
            store.require(bundle)
            return store
        manifest = bundle.manifest
        facts = StoreFacts(
            FORMAT, own_version(), manifest.spec, str(bundle.directory.absolute()), projection_digest(bundle),
            bundle.digests("vision", "projection"),
        )  # fmt: skip
        write_json(Path(directory) / FACTS, dataclasses.asdict(facts))
        return cls(Path(directory), facts)

    def require(self, bundle: Bundle) -> None:
        """Raise ContractError unless `bundle` has the contract and the models that made the store."""
        mend = "give the bundle that made the store, or index again into another folder"
        place = self.directory / FACTS
        self.facts.spec.require(bundle.manifest.spec, have=place, need=bundle.directory, exact=True, mend=mend)
        have, need = self.facts.models, bundle.digests("vision", "projection")
        for file in sorted(have.keys() | need.keys()):
            if have.get(file) != need.get(file):
                made, given = (digests.get(file, "none")[:12] for digests in (have, need))
                raise ContractError(f"{place}: made with {file} {made}, {bundle.directory} has {given}; {mend}")

    def path(self, vid: str) -> Path:
        """The file of a video. Raises InputError for an id that no file can have."""
        return self.directory / "videos" / file_name(vid, "safetensors")

    def ids(self) -> list[str]:
        """Of all videos with a file, sorted."""
        return sorted(path.stem for path in (self.directory / "videos").glob("*.safetensors"))

    def write(self, vid: str, encoded: EncodedVideo, arrays: dict[str, np.ndarray], source: str, path: Path) -> None:
        """Write a video's file, whole or not at all; `arrays` are its `stored_arrays`, `source` the digest of `path`.

        Raises InputError when it cannot be written.
        """
        write_arrays(
            self.path(vid), arrays, spec=encoded.spec.to_json(), duration_s=json.dumps(encoded.duration_s),
            windows=json.dumps([(window.start, window.stop) for window in encoded.windows]), source=source,
            projection_sha256=encoded.projection_sha256, video=str(path), decoder=encoded.decoder,
            warnings=json.dumps(encoded.warnings),
        )  # fmt: skip

    def read(self, vid: str) -> StoredVideo:
        """Read and check a video's file; its arrays are held against their digest.

        Raises InputError (missing, damaged) or ContractError (made with another bundle).
        """
        path = self.path(vid)
        arrays, header = read_arrays(path, _STATED, _MEND)
        spec = FeatureSpec.from_json(header["spec"], path)
        spec.require(self.facts.spec, have=path, need=self.directory / FACTS, exact=True, mend=_MEND)
        if header["projection_sha256"] != self.facts.projection_sha256:
            raise ContractError(f"{path}: made with another projection than the store's; {_MEND}")
        try:
            ends = [(int(start), int(stop)) for start, stop in load_json(header["windows"], f"{path}: windows:")]
            windows = tuple(Window(*pair) for pair in ends)
            projected = tuple(arrays[f"projected.{i}"] for i in range(len(windows)))
            vectors = arrays["vectors"]
            warnings = tuple(str(line) for line in load_json(header["warnings"], f"{path}: warnings:"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not a video of a store ({error!r}); {_MEND}") from error
        lengths = [window.clips for window in windows]
        if not windows or [len(piece) for piece in projected] != lengths or vectors.shape[:1] != (sum(lengths),):
            raise InputError(f"{path}: its windows and arrays do not fit together; {_MEND}")
        duration_s = stated_duration(load_json(header["duration_s"], f"{path}: duration_s:"), path)
        video = ProjectedVideo(duration_s, spec, windows, projected, self.facts.projection_sha256)
        return StoredVideo(video, vectors, header["source"], header["video"], warnings)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Write into a store, alone, without what a killed process left. Raises InUseError when not alone."""
    with only_process(Path(directory) / ".lock"):
        remove_leftovers(Path(directory))
        remove_leftovers(Path(directory) / "videos")
        yield


def projection_digest(bundle: Bundle) -> str:
    """SHA-256 of the projection's file, as encoded videos state it."""
    return bundle.manifest.files[bundle.manifest.models["projection"]]


def unit_vectors(projected: np.ndarray) -> np.ndarray:
    """n K F of any float type as int8: each vector at length one, times SCALE."""
    values = projected.astype(np.float32)
    length = np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
    return np.rint(values / length * SCALE).astype(np.int8)


def stored_arrays(encoded: EncodedVideo, path: Path) -> dict[str, np.ndarray]:
    """`vectors` and `projected.i` of a video. Raises InputError, naming `path`, when a value exceeds float16."""
    with np.errstate(over="ignore"):
        halves = [piece.astype(np.float16) for piece in encoded.projected]
    if not all(np.isfinite(piece).all() for piece in halves):
        raise InputError(f"{path}: its projected features exceed float16, which a store keeps; they cannot be stored")
    vectors = np.concatenate([unit_vectors(piece) for piece in encoded.projected])
    return {"vectors": vectors} | {f"projected.{i}": piece for i, piece in enumerate(halves)}
