"""The tokenizer: what it returns, and what it says to sentences that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from sdst_runtime.errors import DependencyError, InputError
from sdst_runtime.grounding.tokenizer import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ball", "moves", "left", "café"]


def rust_tokenizer() -> RustTokenizer:
    tokenizer = RustTokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_text(rust_tokenizer().to_str())


def test_encode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("  A red BALL flies\tleft ", max_tokens=40)
    assert ids.dtype == np.int64
    assert ids.tolist() == [2, 4, 5, 6, 1, 8, 3]
    assert tokenizer.encode("café", 40).tolist() == [2, 9, 3]
    assert tokenizer.encode("日本", 40).tolist() == [2, 1, 1, 3]
    assert tokenizer.vocab_size == len(WORDS)


def test_encode_batch(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer.encode_batch(["a red ball", "left"], max_tokens=40)
    assert (ids.dtype, mask.dtype) == (np.int64, np.bool_)
    assert ids.tolist() == [[2, 4, 5, 6, 3], [2, 8, 3, 0, 0]]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


@pytest.mark.parametrize("query", ["", " ", "\t\n", "\u3000"])
def test_empty(tokenizer: Tokenizer, query: str) -> None:
    with pytest.raises(InputError, match="query is empty"):
        tokenizer.encode(query, 40)


@pytest.mark.parametrize("query", ["\u200b", "\x00\x01"])
def test_nothing_readable(tokenizer: Tokenizer, query: str) -> None:
    with pytest.raises(InputError, match="no readable words"):
        tokenizer.encode(query, 40)


@pytest.mark.parametrize(("query", "kind"), [(None, "NoneType"), (b"a ball", "bytes"), (["a"], "list"), (3, "int")])
def test_not_text(tokenizer: Tokenizer, query: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"query: expected text, got {kind}"):
        tokenizer.encode(query, 40)  # pyright: ignore[reportArgumentType]


def test_not_utf8(tokenizer: Tokenizer) -> None:
    query = b"a caf\xe9".decode("utf-8", "surrogateescape")  # what sys.argv holds for Latin-1 bytes
    with pytest.raises(InputError, match=r"not valid UTF-8 \(character 6 of 'a caf\\udce9'\)") as caught:
        tokenizer.encode(query, 40)
    str(caught.value).encode()  # the message itself can be printed


def test_too_long(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"it has 602 tokens, at most 40 fit \(2 of them special") as caught:
        tokenizer.encode(" ".join(["ball"] * 600), 40)
    assert len(str(caught.value)) < 200
    assert len(tokenizer.encode(" ".join(["ball"] * 38), 40)) == 40
    with pytest.raises(InputError, match="41 tokens, at most 40"):
        tokenizer.encode(" ".join(["ball"] * 39), 40)


@pytest.mark.parametrize("queries", [[], "a ball"])
def test_batch_must_be_a_list(tokenizer: Tokenizer, queries: list[str] | str) -> None:
    with pytest.raises(InputError, match="queries: expected a list"):
        tokenizer.encode_batch(queries, 40)


def test_truncation_and_padding_of_the_file_are_off() -> None:
    rust = rust_tokenizer()
    rust.enable_truncation(4)
    rust.enable_padding(length=20)
    tokenizer = Tokenizer.from_text(rust.to_str())
    assert tokenizer.encode("a red ball moves left", 40).tolist() == [2, 4, 5, 6, 7, 8, 3]


def test_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="cannot read"):
        Tokenizer.from_file(path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.from_file(path)
    path.write_text(rust_tokenizer().to_str(), encoding="utf-8")
    assert Tokenizer.from_file(path).encode("a ball", 40).tolist() == [2, 4, 6, 3]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DependencyError, match="tokenizers is needed here"):
        Tokenizer.from_text("{}")


def test_import_is_light() -> None:
    heavy = "('torch', 'tokenizers', 'transformers')"
    code = f"import sys, sdst_runtime.grounding.tokenizer; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
