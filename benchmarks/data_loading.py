"""Reading features into batches at QVHighlights sizes: python benchmarks/data_loading.py [--output FILE].

Writes 256 videos of T 75, K 5 stored layers, V 768 and as many sentences of L 32 in each layout, then times batches of
64 that take the last 4 layers. The floor is a plain copy of the batch's float32 bytes. Files are in the page cache.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import tyro
from timing import interleave, report

from sdst_runtime.contracts import TextFeatures, VideoFeatures
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample, load_split
from sdst_runtime.data.features import text_feature_path, video_feature_path, write_text_features, write_video_features
from sdst_runtime.data.packing import pack_features
from sdst_runtime.data.stores import released_spec
from sdst_runtime.files import write_jsonl
from sdst_train.loop.batches import collate

B, T, L, STORED, K, VIDEOS = 64, 75, 32, 5, 4, 256


def main(seconds: float = 30.0, output: Path | None = None) -> None:
    """Time batches of each layout, interleaved.

    Args:
        seconds: How long to measure.
        output: JSON file for the numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_layouts(root)
        splits = {name: load_split(data_config(root, name), "train").samples for name in ("loose", "packed", "npz")}
        rng, variants = np.random.default_rng(0), {}
        for name, samples in splits.items():
            variants[name] = batch_reader(samples, rng)
        source = np.ones((B, T + L, K, 1024), np.float32)[:, :, :, :768]
        variants["copy of the bytes"] = lambda: np.ascontiguousarray(source)
        samples_s = interleave(variants, seconds=seconds)
    floor = float(np.median(samples_s["copy of the bytes"]))
    title = f"one batch, B {B} T {T} L {L}, last {K} of {STORED} layers, float16 (npz float32) on disk, no workers"
    report(title, samples_s, items=B, floors_s=dict.fromkeys(splits, floor), output=output)


def batch_reader(samples: list[Sample], rng: np.random.Generator):
    return lambda: collate([samples[i] for i in rng.choice(len(samples), B, replace=False)], [0.5] * B, K)


def data_config(root: Path, layout: str) -> DataConfig:
    return DataConfig(root=str(root), train="train.jsonl", val="train.jsonl", test="", features=layout)


def write_layouts(root: Path) -> None:
    """The same arrays loose, packed and as the released npz files."""
    rng, rows = np.random.default_rng(0), []
    spec = released_spec(STORED, 2.0, 768, 1024)
    for folder in ("vid_feats", "txt_feats"):
        (root / "npz" / folder).mkdir(parents=True)
    for qid in range(VIDEOS):
        vid, query = f"v{qid}", f"query {qid}"
        rows.append({"qid": qid, "query": query, "vid": vid, "duration": 2.0 * T, "relevant_windows": [[10, 30]]})
        video, text = (
            rng.standard_normal((T, STORED, 768), np.float32),
            rng.standard_normal((STORED, L, 1024), np.float32),
        )
        np.savez(root / "npz" / "vid_feats" / f"{vid}.npz", visual_feats_interm_pooled=video)
        np.savez(root / "npz" / "txt_feats" / f"{qid}.npz", text_feats=text)
        half = dataclasses.replace(spec)
        loose = root / "loose"
        write_video_features(video_feature_path(loose, vid), VideoFeatures(video.astype(np.float16), 2.0 * T, half))
        write_text_features(text_feature_path(loose, query), TextFeatures(text.astype(np.float16), query, half))
    pack_features(root / "loose", root / "packed")
    write_jsonl(root / "train.jsonl", rows)


if __name__ == "__main__":
    tyro.cli(main)
