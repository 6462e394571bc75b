"""A bundle: the directory that a device needs, and nothing else.

Models of vision, text, projection, head and sentence, tokenizer.json, and bundle.json: the feature contract and the
SHA-256 of every file. A model too large for one ONNX file has its weights beside it, in a file of its name and `.data`.
The projection is the part of the head that no sentence changes: it runs once a video. The sentence model gives what
orders the videos of a corpus; bundles of older versions lack it and do all else. scores.json is there once
`sdst calibrate scores` has written it.
"""

from __future__ import annotations

import dataclasses
import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ..contracts import SPEC_KEY, FeatureSpec
from ..errors import ContractError, InputError, SdstError
from ..files import copy_file, remove, sha256_file, write_json
from ..sessions.base import (
    GROUNDER_MODELS,
    GROUNDING_MODELS,
    MODELS,
    GroundingModel,
    ModelKind,
    Session,
    require_signature,
)
from ..sessions.open import open_session
from ..sessions.plugin_library import LIBRARIES, Brought, PluginDevice
from ..strict_json import read_strict
from .scores import SCORES, Scores, read_scores

MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
DATA_SUFFIX = ".data"
EXPORT_REPORT = "export.json"  # what the graphs hold; nothing reads it to run
FORMAT = 2  # 1 had the projection inside the head


@dataclass(frozen=True)
class Manifest:
    """bundle.json."""

    format: int
    sdst_version: str
    spec: FeatureSpec
    models: dict[str, str]  # each of MODELS, the sentence perhaps not -> file name
    files: dict[str, str]  # file name -> SHA-256


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and unchanged."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: str | Path) -> Bundle:
        """Check every file's digest. Raises InputError (missing) or ContractError (changed, another format)."""
        directory = Path(directory)
        manifest = _read_manifest(directory)
        for name, digest in manifest.files.items():
            if not (directory / name).is_file():
                raise InputError(f"{directory}: {name} is missing from the bundle; copy it again or export anew")
            got = sha256_file(directory / name)
            if got != digest:
                raise ContractError(
                    f"{directory}: {name} has changed: sha256 {got[:12]}, {MANIFEST} says {digest[:12]}; "
                    "copy it again or export anew"
                )
        for name in manifest.models.values():
            _require_listed(directory, name, manifest)
        return cls(directory, manifest)

    @property
    def models(self) -> tuple[ModelKind, ...]:
        """Those of MODELS that it has: all, or all but the sentence."""
        return tuple(model for model in MODELS if model in self.manifest.models)

    def path(self, model: str) -> Path:
        """The file of one of MODELS. Raises ContractError when the bundle is older than the model."""
        if model not in self.manifest.models:
            raise ContractError(
                f"{self.directory}: has no {model} model, it was exported by an older sdst; export the bundle again"
            )
        return self.directory / self.manifest.models[model]

    def digests(self, *models: str) -> dict[str, str]:
        """SHA-256 of the files of some models, weights beside the graphs too, by file name."""
        names = [self.manifest.models[model] for model in models]
        files = [file for name in names for file in (name, name + DATA_SUFFIX)]
        return {file: self.manifest.files[file] for file in files if file in self.manifest.files}

    def brought(self, device: PluginDevice) -> Brought:
        """The bundle's own library of sdst::RDSA, if it lists one; it is loaded on the user's word alone."""
        return Brought(self.directory, self.manifest.files.get(LIBRARIES[device]))

    @property
    def scores_path(self) -> Path | None:
        """The calibration of its scores; None before  sdst calibrate scores."""
        return self.directory / SCORES if SCORES in self.manifest.files else None

    def scores(self) -> Scores | None:
        """How its scores become probabilities, where they are calibrated. Raises what `read_scores` does."""
        return None if self.scores_path is None else read_scores(self.scores_path)

    def session(self, model: str, threads: int | None = None, as_written: bool = False) -> Session:
        """Open a model, as `open_session` does. Raises ContractError when its contract is not the bundle's."""
        session = open_session(self.path(model), threads, as_written)
        try:
            self._require_own(model, session)
        except SdstError:
            session.close()
            raise
        return session

    def _require_own(self, model: str, session: Session) -> None:
        text = session.metadata.get(SPEC_KEY)
        if text is None:
            raise ContractError(f"{self.path(model)}: carries no feature contract; export it again with this project")
        exported = FeatureSpec.from_json(text, self.path(model))
        exported.require(
            self.manifest.spec,
            have=self.path(model),
            need=self.directory / MANIFEST,
            exact=True,
            mend="export the bundle again",
        )
        require_signature(cast(ModelKind, model), session, self.path(model))

    def grounding_model(self, threads: int | None = None, as_written: bool = False) -> GroundingModel:
        """The projection and the head as one model. Raises ContractError when they do not belong together."""
        return GroundingModel(*(self.session(name, threads, as_written) for name in GROUNDING_MODELS))


def write_manifest(
    directory: Path, spec: FeatureSpec, models: dict[str, str], version: str, beside: Sequence[str] = ()
) -> Bundle:
    """Digest the files of a finished bundle and write bundle.json, last, so that a bundle without it is unfinished.

    `beside` names files that the models need: sidecars of engines, a plugin's library. The export report and the
    calibration of the scores are listed where they are there.
    """
    weights = [name + DATA_SUFFIX for name in models.values() if (directory / (name + DATA_SUFFIX)).is_file()]
    more = [name for name in (EXPORT_REPORT, SCORES) if (directory / name).is_file()]
    names = [*models.values(), *weights, *beside, TOKENIZER, *more]
    files = {name: sha256_file(directory / name) for name in names}
    return _write(directory, Manifest(FORMAT, version, spec, models, files))


def _write(directory: Path, manifest: Manifest) -> Bundle:
    write_json(directory / MANIFEST, dataclasses.asdict(manifest))
    return Bundle(directory, manifest)


def add_scores(bundle: Bundle, scores: Scores) -> Bundle:
    """The bundle with these scores, in place of its own. It is whole at any time, at first perhaps without scores."""
    others = {name: digest for name, digest in bundle.manifest.files.items() if name != SCORES}
    if SCORES in bundle.manifest.files:
        _write(bundle.directory, dataclasses.replace(bundle.manifest, files=others))
    write_json(bundle.directory / SCORES, dataclasses.asdict(scores))
    files = others | {SCORES: sha256_file(bundle.directory / SCORES)}
    return _write(bundle.directory, dataclasses.replace(bundle.manifest, files=files))


def copy_scores(source: Path | None, out: Path) -> None:
    """A calibration of scores, of a run or of another bundle, into the bundle `out`; without one it has none."""
    if source is None:
        remove(out / SCORES)  # an older bundle's
    else:
        copy_file(source, out / SCORES)


def _require_listed(directory: Path, model: str, manifest: Manifest) -> None:
    """Raise ContractError when a model reads files that bundle.json does not list: nobody knows what is in them."""
    path = directory / model
    if path.suffix == ".plan":
        from ..sessions.tensorrt.sidecar import SUFFIX  # what is of TensorRT is no cost to a bundle of ONNX files

        used = [model + SUFFIX]
    else:
        used = _weight_files(path)
    for name in used:
        if name not in manifest.files:
            raise ContractError(
                f"{path}: reads the file {name}, which {MANIFEST} does not list; copy the bundle again or export anew"
            )


_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x7f])")  # a key and its value's length


def _weight_files(path: Path) -> list[str]:
    """Names of the files beside an ONNX file that hold its weights: `location` of each TensorProto.external_data."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = {}
            for match in _LOCATION.finditer(data):
                low, *high = match[1]
                length = (low & 0x7F) + (high[0] << 7 if high else 0)
                found[data[match.end() : match.end() + length].decode("utf-8", "replace")] = None
            return list(found)
    except ValueError:  # an empty file, which the runner refuses
        return []
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{directory}: not a bundle, it has no {MANIFEST}; give the directory that  sdst export  wrote"
        )
    manifest = read_strict(Manifest, path, "export the bundle again")
    if manifest.format != FORMAT:
        raise ContractError(f"{path}: bundle format {manifest.format}, this sdst reads {FORMAT}; export it again")
    unknown = sorted(set(GROUNDER_MODELS) - manifest.models.keys()) or sorted(
        name for name in (*manifest.models.values(), *manifest.files) if Path(name).name != name or name in ("", "..")
    )
    if unknown or not {*manifest.models.values(), TOKENIZER} <= manifest.files.keys():
        raise ContractError(f"{path}: does not list its models and their digests; export the bundle again")
    return manifest
