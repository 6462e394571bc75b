"""Sentences to token ids, with an answer to every bad sentence.

Shape letters: B sentences, L tokens, special tokens included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, foreign_errors, require_package
from ..text import MARK, normalise, read_text

PAD_TOKEN, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
_NAMED = 10  # unknown words in a summary


class Tokenizer:
    """A `tokenizer.json` (Hugging Face tokenizers format) and the checks that a user's sentence needs."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()  # a sentence is refused, never cut in silence
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._pad_id = tokenizer.token_to_id(PAD_TOKEN) or 0
        unknown = getattr(tokenizer.model, "unk_token", None) or UNKNOWN_TOKEN
        self._unknown_id = tokenizer.token_to_id(unknown)  # None: the vocabulary spells every word

    @classmethod
    def from_text(cls, text: str, source: str | Path = "tokenizer.json") -> Tokenizer:
        """Parse the text of a tokenizer.json. Raises InputError naming `source` when it does not parse."""
        tokenizers = require_package("tokenizers", "")
        with foreign_errors(f"{source} is not a tokenizer.json", "take it from the bundle again"):
            return cls(tokenizers.Tokenizer.from_str(text.removeprefix(MARK)))

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Read a tokenizer.json. Raises InputError when it is missing or does not parse."""
        return cls.from_text(read_text(path), path)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, query: str, max_tokens: int) -> np.ndarray:
        """Token ids of one sentence, `normalise`d: int64 L, special tokens included, unknown words as such.

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
            encoding = self._tokenizer.encode(normalise(query))
        ids, special = encoding.ids, sum(encoding.special_tokens_mask)
        if len(ids) > max_tokens:
            raise InputError(
                f"query is too long: it has {len(ids)} tokens, at most {max_tokens} fit "
                f"({special} of them special tokens); shorten {_short(query)!r}"
            )
        if len(ids) == special:
            raise InputError(f"query has no readable words: {_short(query)!a}; describe what to find")
        return np.array(ids, dtype=np.int64)

    def unknown_words(self, query: str) -> tuple[str, ...]:
        """The words of a sentence that the vocabulary lacks, each once, in order; marks such as a comma are no words.

        They are those for which the tokenizer gives its unknown token, and mean nothing to the text model.
        """
        words = (word for word, is_known in self._words(query) if not is_known)
        return tuple(dict.fromkeys(words))

    def knows(self, query: str) -> bool:
        """Whether a sentence has a word that the vocabulary knows."""
        return any(is_known and any(map(str.isalnum, word)) for word, is_known in self._words(query))

    def known_word(self) -> str:
        """A word that the vocabulary knows, to try the models with."""
        words = sorted(self._tokenizer.get_vocab(), key=lambda word: (-word.isalpha(), word))
        return next((word for word in words if self.knows(word)), words[0])

    def require_known(self, query: str) -> None:
        """Raise InputError for a sentence of which the vocabulary knows no word: any answer to it would be made up."""
        if not self.knows(query):
            unknown = ", ".join(map(repr, self.unknown_words(query))) or f"only marks, {_short(query)!r}"
            raise InputError(
                f"query has no word that the model knows, got {_short(unknown, 200)}; use words of the language and "
                "the vocabulary that its text model was trained with"
            )

    def _words(self, query: str) -> list[tuple[str, bool]]:
        """Words as the tokenizer cuts them, and whether it knows them. What is neither letter nor number is a word only
        where nothing else is there."""
        text = normalise(query)
        encoding = self._tokenizer.encode(text)
        spans: dict[int, tuple[int, int, bool]] = {}  # by word
        for token, word, (start, end) in zip(encoding.ids, encoding.word_ids, encoding.offsets):
            if word is not None and end > start:
                first, last, is_known = spans.get(word, (start, end, True))
                spans[word] = min(first, start), max(last, end), is_known and token != self._unknown_id
        found = [(text[start:end], is_known) for start, end, is_known in spans.values()]
        return [word for word in found if any(map(str.isalnum, word[0]))] or found

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


@dataclass(frozen=True)
class UnknownWords:
    """What a vocabulary lacks of many sentences."""

    words: Counter[str]  # how many of the sentences have it
    sentences: int  # with a word that is unknown
    wholly: int  # of these, without one that is known

    def lines(self) -> list[str]:
        """For a person; empty where every word is known."""
        if not self.words:
            return []
        some = ", ".join(f"{word} ({count})" for word, count in self.words.most_common(_NAMED))
        more = f" and {len(self.words) - _NAMED} more" if len(self.words) > _NAMED else ""
        return [
            f"words that the text model does not know: {len(self.words)}, in {self.sentences} sentences, "
            f"{self.wholly} of which have no other: {some}{more}"
        ]


def count_unknown(tokenizer: Tokenizer, sentences: Iterable[str]) -> UnknownWords:
    """The unknown words of all distinct sentences."""
    words, some, wholly = Counter[str](), 0, 0
    for sentence in dict.fromkeys(sentences):
        unknown = tokenizer.unknown_words(sentence)
        words.update(unknown)
        some += bool(unknown)
        wholly += bool(unknown) and not tokenizer.knows(sentence)
    return UnknownWords(words, some, wholly)


def _short(query: str, most: int = 40) -> str:
    return query if len(query) <= most else query[: most - 3] + "..."
