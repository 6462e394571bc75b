"""Loose feature files to packed ones, which a data loader opens once instead of once a video.

    video-00000.safetensors  tensors T K V by vid;    metadata: spec, durations_s (JSON {vid: seconds}) and, of
                             those that say it, decoders (JSON {vid: decoder})
    text-00000.safetensors   tensors K L X by digest; metadata: spec, queries (JSON {digest: sentence})

A digest is the name of the sentence's loose file. The bytes depend on the loose files and `per_shard` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, require_package
from ..files import pack_header, unpack_header, write_bytes
from ..strict_json import dump_json
from .features import DECODER, DECODERS, SPEC, STATED, stated_duration
from .lazy_arrays import Header, read_header, read_tensor
from .stores import Contract

_PARSERS: dict[str, Callable[[str, Path], Any]] = {"video": stated_duration, "text": lambda sentence, _: sentence}


def pack_features(
    directory: Path,
    out: Path,
    per_shard: int = 512,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the loose features of `directory` as packed ones into `out`; shards that are there already are kept.

    A shard is there when it holds the same names, shapes and metadata and is no older than its loose files. Raises
    InputError for a folder without features, a broken file or an unwritable `out`, ContractError naming the field and
    both files when not all were made under one contract. `on_done` gets (files packed, of all).
    """
    if per_shard < 1:
        raise InputError(f"per_shard: expected 1 or more, got {per_shard}")
    files = {kind: sorted((Path(directory) / kind).glob("*.safetensors")) for kind in STATED}
    for kind, paths in files.items():
        if not paths:
            raise InputError(f"{directory}/{kind}: no feature files there; extract the features first")
    contract = Contract.of(files["video"][0])
    total, done = sum(map(len, files.values())), 0
    for kind, paths in files.items():
        for number, start in enumerate(range(0, len(paths), per_shard)):
            part = paths[start : start + per_shard]
            _pack(kind, part, Path(out) / f"{kind}-{number:05d}.safetensors", contract)
            done += len(part)
            on_done(done, total)


def _pack(kind: str, paths: Sequence[Path], target: Path, contract: Contract) -> None:
    (own_key, key), parse = STATED[kind], _PARSERS[kind]
    stated, shapes, decoders = {}, {}, {}
    for path in paths:
        header = read_header(path)
        values = unpack_header(header.metadata, (SPEC, own_key), path)
        contract.check(path, values[SPEC])
        stated[path.stem] = parse(values[own_key], path)
        if "features" not in header.shapes:
            raise InputError(f"{path}: expected a tensor features; extract it again")
        shapes[path.stem] = header.shapes["features"]
        if DECODER in values:
            decoders[path.stem] = values[DECODER]
    lists = {key: stated} | ({DECODERS: decoders} if decoders else {})
    metadata = pack_header(**{SPEC: contract.text}, **{name: dump_json(values) for name, values in lists.items()})
    if _is_made(target, Header(metadata, shapes), max(path.stat().st_mtime_ns for path in paths)):
        return
    arrays = {path.stem: read_tensor(path, tuple(slice(0, n) for n in shapes[path.stem])) for path in paths}
    numpy_io: Any = require_package("safetensors.numpy", "")
    write_bytes(target, numpy_io.save(arrays, metadata))


def _is_made(target: Path, header: Header, newest_ns: int) -> bool:
    """Whether a shard says of itself what would be written, and is no older than any file that it is made of."""
    try:
        return target.is_file() and target.stat().st_mtime_ns >= newest_ns and read_header(target) == header
    except InputError:  # broken: made again
        return False
