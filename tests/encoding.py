"""Arrays and lists through the encoders, which themselves work on streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sdst_runtime.errors import InputError
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_train.backbone.extract import encode_each, encode_pieces
from sdst_train.backbone.towers import TextTower, VisionTower


def encode_clips(tower: VisionTower, clips: np.ndarray | Iterable[np.ndarray], batch_size: int = 32) -> np.ndarray:
    """Features of one video: float32 T K V.

    `clips` is uint8 RGB, T F S S 3, or an iterator of such arrays of any lengths. Raises InputError as `encode_pieces`
    does, and when no clip comes.
    """
    pieces = [clips] if isinstance(clips, np.ndarray) else clips
    features = [part for _, part in encode_pieces(tower, ((0, piece) for piece in pieces), batch_size)]
    if not features:
        raise InputError("clips: expected at least one clip, got none; is the video empty?")
    return np.concatenate(features)


def encode_sentences(
    tower: TextTower, tokenizer: Tokenizer, sentences: Sequence[str], batch_size: int = 32
) -> list[np.ndarray]:
    """Token features of each sentence, in the order given, as `encode_each` makes them; equal ones share one array."""
    features = dict(encode_each(tower, tokenizer, sentences, batch_size))
    return [features[sentence] for sentence in sentences]
