"""Sentences to token ids, with an answer to every bad sentence.

Shape letters: B sentences, L tokens, special tokens included.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, foreign_errors, require_package

PAD_TOKEN = "[PAD]"


class Tokenizer:
    """A `tokenizer.json` (Hugging Face tokenizers format) and the checks that a user's sentence needs."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()  # a sentence is refused, never cut in silence
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._pad_id = tokenizer.token_to_id(PAD_TOKEN) or 0

    @classmethod
    def from_text(cls, text: str, source: str | Path = "tokenizer.json") -> Tokenizer:
        """Parse the text of a tokenizer.json. Raises InputError naming `source` when it does not parse."""
        tokenizers = require_package("tokenizers", "")
        with foreign_errors(f"{source} is not a tokenizer.json", "take it from the bundle again"):
            return cls(tokenizers.Tokenizer.from_str(text))

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json. Raises InputError when it is missing or does not parse."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        return cls.from_text(text, path)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, query: str, max_tokens: int) -> np.ndarray:
        """Token ids of one sentence: int64 L, special tokens included.

        Raises InputError for what is not text, not UTF-8, empty, or longer than `max_tokens` tokens.
        """
        if not isinstance(query, str):
            raise InputError(f"query: expected text, got {type(query).__name__}")
        try:
            query.encode()
        except UnicodeEncodeError as error:
            where = f"character {error.start + 1} of {_short(query)!a}"
            raise InputError(f"query is not valid UTF-8 ({where}); type it again or set a UTF-8 locale") from error
        if not query.strip():
            raise InputError("query is empty: expected a sentence that describes what to find")
        with foreign_errors(f"the tokenizer failed on {_short(query)!a}", "take it from the bundle again"):
            encoding = self._tokenizer.encode(query)
        ids, special = encoding.ids, sum(encoding.special_tokens_mask)
        if len(ids) > max_tokens:
            raise InputError(
                f"query is too long: it has {len(ids)} tokens, at most {max_tokens} fit "
                f"({special} of them special tokens); shorten {_short(query)!r}"
            )
        if len(ids) == special:
            raise InputError(f"query has no readable words: {_short(query)!a}; describe what to find")
        return np.array(ids, dtype=np.int64)

    def encode_batch(self, queries: Sequence[str], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids int64 B L, padded at the end to the longest sentence, and mask bool B L (true = valid).

        Raises InputError as `encode` does, and for an empty batch.
        """
        if isinstance(queries, str) or not queries:
            raise InputError(f"queries: expected a list with at least one sentence, got {queries!r}")
        rows = [self.encode(query, max_tokens) for query in queries]
        lengths = np.array([len(row) for row in rows])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(rows)
        return ids, mask


def _short(query: str) -> str:
    return query if len(query) <= 40 else query[:37] + "..."
