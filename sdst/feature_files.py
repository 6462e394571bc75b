"""`sdst features pack`, `verify` and `convert`: feature files that are there already. None of them needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from sdst_runtime.data.annotations import Query, read_queries
from sdst_runtime.data.packing import pack_features
from sdst_runtime.data.released import convert_released
from sdst_runtime.data.verification import verify_features
from sdst_runtime.errors import InputError

from .next_step import advise
from .progress import counted


def pack(features: tyro.conf.Positional[Path], *, out: Path, per_shard: int = 512) -> None:
    """Put feature files into few large ones, which a data loader opens once. Shards that are there are kept.

    Args:
        features: Folder with video/ and text/.
        out: Folder of the packed features.
        per_shard: Videos or sentences in a file.
    """
    with counted("packing features") as on_done:
        pack_features(features, out, per_shard, on_done)
    videos, texts = (len(list(out.glob(f"{kind}-*.safetensors"))) for kind in ("video", "text"))
    print(f"{out}: {videos} files of videos, {texts} of sentences")  # noqa: T201
    advise("sdst", "train", "CONFIG", "--data.features", out.resolve())


def verify(features: tyro.conf.Positional[Path], *, annotations: tuple[Path, ...] = ()) -> None:
    """Read every feature in a folder and list all that is wrong: shapes, values, contracts, clips against durations.

    Args:
        features: Folder of loose or packed features.
        annotations: .jsonl, .txt or .json files whose videos and sentences must all be there.
    """
    queries = _read(annotations)
    with counted("reading features") as on_done:
        found = verify_features(features, queries, on_done)
    for line in found.problems:
        print(line)  # noqa: T201
    print(f"{features}: {found.videos} videos, {found.clips} clips, {found.sentences} sentences are sound")  # noqa: T201
    if found.spec is not None:
        print(f"contract: {found.spec.to_json()}")  # noqa: T201
    told = [f"{name or 'a decoder that is not told'} ({count})" for name, count in sorted(found.decoders.items())]
    if told:
        print(f"videos decoded by: {', '.join(told)}")  # noqa: T201
    if found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        raise InputError(f"{count} in {features}, listed on stdout; delete those files and extract them again")
    advise("sdst", "train", "CONFIG", "--data.features", features.resolve())


def convert(
    released: tyro.conf.Positional[Path], *, annotations: tuple[Path, ...], out: Path, clip_s: float = 2.0
) -> None:
    """Turn the npz files that the authors of SDST publish into feature files; whole ones that are there are kept.

    Args:
        released: Folder with vid_feats/ and txt_feats/.
        annotations: .jsonl, .txt or .json files, for the sentences of the qids.
        out: Folder of the feature files.
        clip_s: Seconds a clip, which the npz files do not state.
    """
    with counted("converting features") as on_done:
        done = convert_released(released, _read(annotations), out, clip_s, on_done)
    print(f"{out}: {done.videos} videos, {done.sentences} sentences")  # noqa: T201
    if done.unknown:
        print(f"text files of no annotation, left out: {len(done.unknown)} (first: qid {done.unknown[0]})")  # noqa: T201
    advise("sdst", "features", "verify", out, "--annotations", *annotations)


def _read(annotations: Sequence[Path]) -> list[Query]:
    return [query for path in annotations for query in read_queries(path)]
