"""The tokenizer of a released text encoder, from either of the files that BERT comes with."""

from __future__ import annotations

from pathlib import Path

from sdst_runtime.data.lazy_arrays import read_header
from sdst_runtime.errors import ContractError, InputError, require_package
from sdst_runtime.grounding.bundle import TOKENIZER
from sdst_runtime.strict_json import load_json
from sdst_runtime.text import read_text

METADATA_KEY = "sdst_backbone"  # of a backbone file (towers.py)


def read_bert_tokenizer(path: Path, entries: int) -> str:
    """The text of a tokenizer.json, read from one or made from a vocab.txt (lower case, one entry a line).

    Raises InputError for a file that cannot be read, ContractError unless it has `entries` entries, writes words in
    lower case and puts [CLS] and [SEP] around a sentence.
    """
    path = Path(path)
    text = _from_vocabulary(path) if path.suffix == ".txt" else read_text(path)
    tokenizers = require_package("tokenizers", "")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the Rust library raises no narrower type
        raise InputError(f"{path}: expected a tokenizer.json or a vocab.txt ({error}); download it again") from error
    if (got := tokenizer.get_vocab_size()) != entries:
        raise ContractError(f"{path}: expected a tokenizer of {entries} entries, got {got}; use the text encoder's own")
    upper, lower = tokenizer.encode("A"), tokenizer.encode("a")
    if upper.ids != lower.ids or (lower.tokens[:1], lower.tokens[-1:]) != (["[CLS]"], ["[SEP]"]):
        raise ContractError(
            f"{path}: expected lower case between [CLS] and [SEP], got {' '.join(upper.tokens)!r} for 'A';"
            " use the uncased tokenizer of the text encoder"
        )
    return text


def open_tokenizer(place: Path) -> str:
    """The text of the tokenizer.json in a bundle, in a backbone file, or of a vocab.txt or tokenizer.json itself.

    Raises InputError.
    """
    place = Path(place)
    if place.is_dir():
        return read_text(place / TOKENIZER, "give the folder of a bundle")
    if place.suffix == ".txt":
        return _from_vocabulary(place)
    if place.suffix != ".safetensors":
        return read_text(place)
    header = load_json(read_header(place).metadata.get(METADATA_KEY, "{}"), f"{place}: its metadata is")
    tokenizer = header.get("tokenizer") if isinstance(header, dict) else None
    if not isinstance(tokenizer, str):
        raise InputError(f"{place}: expected a backbone file with its tokenizer; make it with  sdst convert-backbone")
    return tokenizer


def _from_vocabulary(path: Path) -> str:
    tokenizers = require_package("tokenizers", "")
    words = read_text(path).removesuffix("\n").split("\n")  # splitlines() would break at characters that are entries
    missing = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word not in words]
    if missing:
        raise InputError(f"{path}: expected a vocab.txt of BERT, got one without {', '.join(missing)}")
    vocabulary = {word: index for index, word in enumerate(words)}
    return tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True).to_str()
