"""The features that the authors of SDST publish, as npz files, to feature files of this project.

The npz files state no contract (`stores.released_spec` fills it in) and no duration: that of their clips is written.
Sentences come from the annotations. Shape letters: T clips, K layers, L tokens, V and X widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import bounds
from ..contracts import TextFeatures, VideoFeatures
from ..errors import InputError
from .annotations import Query
from .features import claim, is_made, text_feature_path, video_feature_path, write_text_features, write_video_features
from .stores import open_features


@dataclass(frozen=True)
class Converted:
    """What a conversion found."""

    videos: int
    sentences: int  # distinct ones
    unknown: tuple[str, ...]  # qids of text files that no annotation has: left out


def convert_released(
    directory: Path,
    queries: Iterable[Query],
    out: Path,
    clip_s: float = 2.0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write vid_feats/{vid}.npz and txt_feats/{qid}.npz of `directory` as loose feature files; whole ones are kept.

    Raises InputError for another folder, a broken file, a qid with two sentences or an unwritable `out`. `on_done`
    gets (files, of all).
    """
    bounds.require("clip_s", clip_s, bounds.CLIP_S, "seconds")
    directory, sentences = Path(directory), _by_qid(queries)
    videos, texts = (sorted((directory / folder).glob("*.npz")) for folder in ("vid_feats", "txt_feats"))
    if not videos:
        raise InputError(f"{directory}: expected the released features, vid_feats/*.npz and txt_feats/*.npz")
    store, total = open_features(directory, clip_s), len(videos) + len(texts)
    known = [path.stem for path in texts if path.stem in sentences]
    with claim(out, "video"):
        for done, path in enumerate(videos, 1):
            target = video_feature_path(out, path.stem)
            if not is_made(target, store.spec):
                features = np.asarray(store.video({"vid": path.stem}))
                write_video_features(target, VideoFeatures(features, len(features) * clip_s, store.spec))
            on_done(done, total)
    with claim(out, "text"):
        for done, qid in enumerate(known, 1 + len(videos)):
            target = text_feature_path(out, sentences[qid])
            if not is_made(target, store.spec):
                features = np.asarray(store.text({"qid": qid}))
                write_text_features(target, TextFeatures(features, sentences[qid], store.spec))
            on_done(done, total)
    unknown = tuple(path.stem for path in texts if path.stem not in sentences)
    return Converted(len(videos), len({sentences[qid] for qid in known}), unknown)


def _by_qid(queries: Iterable[Query]) -> dict[str, str]:
    sentences: dict[str, str] = {}
    for query in queries:
        if sentences.setdefault(str(query.qid), query.query) != query.query:
            both = f"{sentences[str(query.qid)]!r} and {query.query!r}"
            raise InputError(f"qid {query.qid} has two sentences, {both}: convert files whose qids repeat one by one")
    return sentences
