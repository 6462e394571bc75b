"""Text from outside: files of it, and the one form in which every tokenizer gets a sentence.

Windows' programs put a byte order mark before UTF-8 text, and again where two such files are joined; it is no part of
the text. Sentences arrive with characters that nobody sees and in several encodings of the same letters.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path

from .errors import InputError

MARK = "\ufeff"  # the byte order mark, decoded

# What a keyboard has for the marks that word processors and other keyboards set.
_KEYS = {
    "'": "\u2018\u2019\u201a\u201b\u2032\u2035\u02bc\u02b9\u00b4",
    '"': "\u201c\u201d\u201e\u201f\u2033\u2036\u00ab\u00bb",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    "/": "\u2044",  # of a fraction
}
_INVISIBLE = ("Cf", "Cc", "Zl", "Zp")  # format and control characters; line and paragraph separators become spaces
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # marks and letters without a picture


def read_text(path: Path, mend: str = "") -> str:
    """A file of UTF-8 with or without a byte order mark, line ends as \\n. Raises InputError, which `mend` ends."""
    end = f"; {mend}" if mend else ""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: {error}; save it as UTF-8{end}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}{end}") from error


def read_lines(path: Path, mend: str = "") -> list[str]:
    """The lines of a file, also of one joined from several with marks. Only \\n, \\r\\n and \\r end a line."""
    return [line.removeprefix(MARK) for line in read_text(path, mend).split("\n")]


def normalise(sentence: str) -> str:
    """The form of a sentence that tokenizers get and feature files are keyed by; a second time changes nothing.

    Invisible characters go (zero-width and bidirectional marks, soft hyphens, byte order marks, controls, variation
    selectors), compatibility forms become plain letters (NFKC: full width, ligatures, separate accents), typographic
    quotes and dashes those of a keyboard. Case, accents and spaces stay. ASCII text without controls is unchanged.
    """
    if sentence.isascii() and sentence.isprintable():
        return sentence
    table = _table()
    while (changed := unicodedata.normalize("NFKC", sentence.translate(table))) != sentence:
        sentence = changed
    return sentence


@cache
def _table() -> dict[int, str]:
    table = dict.fromkeys(map(ord, _FILLERS), "")
    for code in (*range(0x20000), *range(0xE0000, 0xE1000)):
        if unicodedata.category(chr(code)) in _INVISIBLE:
            table[code] = ""
    table |= dict.fromkeys((*range(0x180B, 0x180E), 0x180F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)), "")
    table |= dict.fromkeys(map(ord, _SPACES), " ")
    return table | {ord(character): key for key, characters in _KEYS.items() for character in characters}
