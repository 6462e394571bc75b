"""Clips and sentences to features, in batches that are always full.

Clips of several videos share a batch, sentences of one length share a batch, and what a last batch lacks is filled up:
the kernels then see one shape only, and on a CPU the features of a clip or a sentence are the same to the last bit
whatever else is in its batch. An extraction that was interrupted therefore ends with the same files. Decoding is
elsewhere: this takes uint8 frames.

Shape letters: N clips in a batch, n clips in a piece, T clips in a video, F frames a clip, S image size in pixels,
B sentences, L tokens, K layers, V and X widths.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sdst_runtime import bounds
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.tokenizer import Tokenizer

from .towers import TextTower, VisionTower

Key = TypeVar("Key", bound=Hashable)


def encode_pieces(
    tower: VisionTower,
    pieces: Iterable[tuple[Key, np.ndarray]],
    batch_size: int = 32,
    precision: torch.dtype = torch.float32,
) -> Iterator[tuple[Key, np.ndarray]]:
    """Features of pieces of any videos, in their order: (key, float32 n K V) for each part of a piece.

    A piece is a key and uint8 RGB n F S S 3. While the device computes one batch, the next is gathered. Raises
    InputError for another shape or type, or when a batch does not fit into the device's memory.
    """
    running: tuple[list[tuple[Key, int]], Tensor] | None = None
    for parts, batch in _batches(pieces, _clip_shape(tower), batch_size):
        launched = parts, _run(tower, [torch.from_numpy(batch)], precision)
        if running is not None:
            yield from _split(*running)
        running = launched
    if running is not None:
        yield from _split(*running)


def encode_each(
    tower: TextTower,
    tokenizer: Tokenizer,
    sentences: Iterable[str],
    batch_size: int = 32,
    precision: torch.dtype = torch.float32,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each distinct sentence and its token features, short ones first: float32 K L X, special tokens included.

    Raises InputError before anything is encoded when a sentence cannot be used.
    """
    _require_positive(batch_size)
    by_length: dict[int, list[tuple[str, np.ndarray]]] = {}
    for sentence, ids in _tokenised(tokenizer, dict.fromkeys(sentences), tower.spec.max_tokens):
        by_length.setdefault(len(ids), []).append((sentence, ids))
    for length, alike in sorted(by_length.items()):
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            ids_BL = torch.zeros(batch_size, length, dtype=torch.int64)
            ids_BL[: len(batch)] = torch.from_numpy(np.stack([ids for _, ids in batch]))
            encoded = _run(tower, [ids_BL, torch.ones_like(ids_BL, dtype=torch.bool)], precision).cpu().numpy()
            for (sentence, _), features_KLX in zip(batch, encoded):
                yield sentence, features_KLX.copy()


def _run(tower: nn.Module, inputs: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """The tower's output, perhaps still being computed; a residual stream stays float32 in every precision."""
    device = next(tower.parameters()).device
    if device.type == "cuda":  # from pinned memory a copy does not wait for the batch that is running
        inputs = [x.pin_memory() for x in inputs]
    try:
        with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return tower(*(x.to(device, non_blocking=True) for x in inputs))
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {len(inputs[0])} does not fit into the GPU's memory; use a smaller one"
        ) from error


def _clip_shape(tower: VisionTower) -> tuple[int, ...]:
    spec = tower.spec
    return (spec.frames_per_clip, spec.image_size, spec.image_size, 3)


def _batches(
    pieces: Iterable[tuple[Key, np.ndarray]], shape: tuple[int, ...], batch_size: int
) -> Iterator[tuple[list[tuple[Key, int]], np.ndarray]]:
    """Full batches, and for each the keys and counts of the clips that fill it; zeros fill up the last."""
    _require_positive(batch_size)
    batch, parts, used = np.zeros((batch_size, *shape), np.uint8), [], 0
    for key, piece in pieces:
        if piece.dtype != np.uint8 or piece.ndim != 5 or piece.shape[1:] != shape:
            want = f"uint8 of shape (T, {', '.join(map(str, shape))})"
            raise InputError(f"clips: expected {want}, got {piece.dtype} of shape {piece.shape}")
        while len(piece):
            taken, piece = piece[: batch_size - used], piece[batch_size - used :]
            batch[used : used + len(taken)] = taken
            parts.append((key, len(taken)))
            used += len(taken)
            if used == batch_size:
                yield parts, batch
                batch, parts, used = np.zeros_like(batch), [], 0
    if parts:
        yield parts, batch


def _split(parts: list[tuple[Key, int]], features_NKV: Tensor) -> Iterator[tuple[Key, np.ndarray]]:
    """The rows of a batch, back to where they came from."""
    rows, start = features_NKV.cpu().numpy(), 0
    for key, count in parts:
        yield key, rows[start : start + count]
        start += count


def _tokenised(tokenizer: Tokenizer, sentences: Iterable[str], max_tokens: int) -> list[tuple[str, np.ndarray]]:
    tokens, faults = [], []
    for sentence in sentences:
        try:
            tokens.append((sentence, tokenizer.encode(sentence, max_tokens)))
        except InputError as error:
            faults.append(str(error))
    if len(faults) > 1:
        raise InputError(f"{len(faults)} sentences cannot be used; the first: {faults[0]}")
    if faults:
        raise InputError(faults[0])
    return tokens


def _require_positive(batch_size: int) -> None:
    bounds.require("batch_size", batch_size, bounds.BATCH)
