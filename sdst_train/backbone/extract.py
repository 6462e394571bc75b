"""Clips and sentences to features, in batches.

Decoding is elsewhere: this takes uint8 frames, or an iterator of them, and keeps the tower fed with full batches.

Shape letters: N clips in a piece, T clips in the video, S image size in pixels, K layers, L tokens, V and X widths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from sdst_runtime.errors import InputError
from sdst_runtime.text import Tokenizer

from .towers import TextTower, VisionTower


def encode_clips(tower: VisionTower, clips: np.ndarray | Iterable[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Features of one video: float32 T K V.

    `clips` is uint8 RGB, T, frames_per_clip, S, S, 3, or an iterator of such arrays of any lengths, which are joined
    into batches of `batch_size`. Raises InputError for another shape or type, or when no clip comes.
    """
    pieces = [clips] if isinstance(clips, np.ndarray) else clips
    device = next(tower.parameters()).device
    features = []
    with torch.inference_mode():
        for batch in _batches(pieces, _clip_shape(tower), batch_size):
            features.append(tower(torch.from_numpy(batch).to(device)).cpu().numpy())
    if not features:
        raise InputError("clips: expected at least one clip, got none; is the video empty?")
    return np.concatenate(features)


def encode_sentences(
    tower: TextTower, tokenizer: Tokenizer, sentences: Sequence[str], batch_size: int = 64
) -> list[np.ndarray]:
    """Token features of each sentence, in the order given: float32 K L X, special tokens included, no padding.

    Sentences of like length share a batch, and each distinct sentence is encoded once: equal ones share one array.
    Raises InputError for a sentence that cannot be used.
    """
    _require_positive(batch_size)
    device = next(tower.parameters()).device
    tokens = {sentence: tokenizer.encode(sentence, tower.spec.max_tokens) for sentence in dict.fromkeys(sentences)}
    by_length = sorted(tokens, key=lambda sentence: len(tokens[sentence]))
    features: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            ids, mask = tokenizer.encode_batch(batch, tower.spec.max_tokens)
            encoded = tower(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy()
            for sentence, row_KLX in zip(batch, encoded, strict=True):
                features[sentence] = row_KLX[:, : len(tokens[sentence])].copy()
    return [features[sentence] for sentence in sentences]


def _clip_shape(tower: VisionTower) -> tuple[int, ...]:
    spec = tower.spec
    return (spec.frames_per_clip, spec.image_size, spec.image_size, 3)


def _batches(pieces: Iterable[np.ndarray], shape: tuple[int, ...], batch_size: int) -> Iterator[np.ndarray]:
    """Join pieces of any length into contiguous batches of `batch_size`; the last one may be shorter."""
    _require_positive(batch_size)
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        if piece.dtype != np.uint8 or piece.ndim != 5 or piece.shape[1:] != shape:
            want = f"uint8 of shape (T, {', '.join(map(str, shape))})"
            raise InputError(f"clips: expected {want}, got {piece.dtype} of shape {piece.shape}")
        start = 0
        while start < len(piece):
            taken = piece[start : start + batch_size - count]
            held.append(taken)
            start, count = start + len(taken), count + len(taken)
            if count == batch_size:
                yield np.ascontiguousarray(np.concatenate(held) if len(held) > 1 else held[0])
                held, count = [], 0
    if held:
        yield np.ascontiguousarray(np.concatenate(held) if len(held) > 1 else held[0])


def _require_positive(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
