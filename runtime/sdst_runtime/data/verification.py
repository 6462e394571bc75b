"""Every feature of a folder read and checked: shapes, values, one contract, clips as many as the duration has.

A folder is loose or packed (stores.py). Shape letters: T clips, K layers, L tokens, V and X widths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..contracts import FeatureSpec
from ..errors import InputError, SdstError
from ..files import unpack_header
from ..media.clips import clip_count
from .annotations import Query
from .features import DECODER, DECODERS, SPEC, STATED, stated_duration, text_feature_path
from .lazy_arrays import Shape, TensorFile, read_header
from .stores import Contract, stated_in


@dataclass
class Verification:
    """What a folder holds and all that is wrong with it, a line each."""

    spec: FeatureSpec | None = None  # the contract that most files state; None when no file states one
    videos: int = 0  # sound ones
    clips: int = 0
    sentences: int = 0
    decoders: Counter[str] = field(default_factory=Counter)  # sound videos by what decoded them; "": not stated
    problems: list[str] = field(default_factory=list)


def verify_features(
    directory: Path,
    queries: Iterable[Query] = (),
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Read all features in `directory`, and look for those that `queries` need. `on_done` gets (files, of all).

    Raises InputError when there are no feature files, or loose and packed ones side by side.
    """
    directory, report = Path(directory), Verification()
    files = [_open(path, kind, report.problems) for kind, path in _list_files(directory)]
    stated = Counter(file.spec_text for file in files if file is not None)
    if not stated:
        return report
    usual = stated.most_common(1)[0][0]
    contract = Contract(next(file.path for file in files if file is not None and file.spec_text == usual), usual)
    report.spec, sound = contract.spec, set()
    for done, file in enumerate(files, 1):
        if file is not None:
            sound |= {(file.kind, name) for name in _verify_file(file, contract, report)}
        on_done(done, len(files))
    report.problems += _missing(directory, queries, sound)
    return report


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    spec_text: str
    shapes: dict[str, Shape]  # of the tensors, by vid or digest
    stated: dict[str, Any]  # durations or sentences, by the same
    is_loose: bool
    decoders: dict[str, Any]  # of the videos that state it, by vid


def _list_files(directory: Path) -> list[tuple[str, Path]]:
    loose = [(kind, path) for kind in STATED for path in sorted((directory / kind).glob("*.safetensors"))]
    packed = [(kind, path) for kind in STATED for path in sorted(directory.glob(f"{kind}-*.safetensors"))]
    if not loose and not packed:
        raise InputError(
            f"{directory}: no feature files there; expected video/ and text/, or video-00000.safetensors and so on "
            "(npz files are read by  sdst features convert)"
        )
    if loose and packed:
        raise InputError(f"{directory}: loose and packed features side by side; keep one of them")
    return loose or packed


def _open(path: Path, kind: str, problems: list[str]) -> _File | None:
    """A file's header, or None and a problem."""
    is_loose = path.parent.name == kind
    key = STATED[kind][0 if is_loose else 1]
    try:
        header = read_header(path)
        values = unpack_header(header.metadata, (SPEC, key), path)
        FeatureSpec.from_json(values[SPEC], path)
        if is_loose and set(header.shapes) != {"features"}:
            raise InputError(f"{path}: expected one tensor, features, got {', '.join(header.shapes) or 'none'}")
        stated = {path.stem: values[key]} if is_loose else stated_in(values, key, path)
        if is_loose:
            decoders = {path.stem: values.get(DECODER, "")}
        else:
            decoders = stated_in({DECODERS: "{}"} | values, DECODERS, path)
    except SdstError as error:
        problems.append(str(error))
        return None
    shapes = {path.stem: header.shapes["features"]} if is_loose else header.shapes
    return _File(path, kind, values[SPEC], shapes, stated, is_loose, decoders)


def _verify_file(file: _File, contract: Contract, report: Verification) -> Iterator[str]:
    """Yields the vids or digests that are sound."""
    try:
        contract.check(file.path, file.spec_text)
    except SdstError as error:
        report.problems.append(str(error))
        return
    tensors = TensorFile(file.path)
    for name, shape in file.shapes.items():
        where = file.path if file.is_loose else f"{file.path}, {name}"
        try:
            check = contract.check_video if file.kind == "video" else contract.check_text
            check(shape, file.path)
            _check_stated(file, name, shape, contract.spec)
            tensors.read("features" if file.is_loose else name, tuple(slice(0, n) for n in shape))
        except SdstError as error:
            report.problems.append(f"{where}: {str(error).removeprefix(f'{file.path}: ')}")
            continue
        if file.kind == "video":
            report.videos, report.clips = report.videos + 1, report.clips + shape[0]
            report.decoders[str(file.decoders.get(name, ""))] += 1
        else:
            report.sentences += 1
        yield name


def _check_stated(file: _File, name: str, shape: Shape, spec: FeatureSpec) -> None:
    """Raise InputError unless the shape is that of the duration, or the digest that of the sentence."""
    stated = file.stated.get(name)
    if file.kind == "video":
        expected = clip_count(stated_duration(stated, file.path), spec.clip_s, spec.frames_per_clip)
        if shape[0] != expected:
            raise InputError(f"holds {shape[0]} clips, its {stated} s have {expected}; extract it again")
        return
    if not isinstance(stated, str) or text_feature_path(file.path.parent, stated).stem != name:
        raise InputError(
            f"holds the sentence {stated!r}, whose digest is another (of one with characters that are now normalised,"
            " the file is an old one); delete it and extract the sentence again"
        )
    if shape[1] > spec.max_tokens:
        raise InputError(f"holds {shape[1]} tokens, the contract allows {spec.max_tokens}; extract it again")


def _missing(directory: Path, queries: Iterable[Query], sound: set[tuple[str, str]]) -> list[str]:
    problems: dict[str, None] = {}  # many queries may share one
    for query in queries:
        if ("video", query.vid) not in sound:
            problems[f"{directory}: no sound features of video {query.vid}"] = None
        if ("text", text_feature_path(directory, query.query).stem) not in sound:
            problems[f"{directory}: no sound features of the sentence {query.query!r}"] = None
    return list(problems)
