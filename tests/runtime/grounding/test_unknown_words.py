"""Words that a vocabulary lacks: refused where nothing else is asked, named where something is, counted in data."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer

from sdst_runtime.errors import InputError, SessionError
from sdst_runtime.grounding.decode import decode
from sdst_runtime.grounding.tokenizer import Tokenizer, count_unknown

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "mov", "##es", "left", ",", "don", "'", "t"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    return Tokenizer.from_text(BertWordPieceTokenizer(vocabulary, lowercase=True).to_str())


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        ("a Red ball moves, left", ()),
        ("a zzz ball; zzz Movest", ("zzz", "Movest")),  # a semicolon is no word; one bad piece makes a word unknown
        ("zzz qqq", ("zzz", "qqq")),
        ("a \u5706 ball", ("\u5706",)),
        ("a r\u200bed b\u00adall \ufeffleft", ()),
        ("\uff41 \uff32\uff25\uff24 ball", ()),
        ("don\u2019t", ()),
    ],
)
def test_unknown_words(tokenizer: Tokenizer, query: str, unknown: tuple[str, ...]) -> None:
    assert tokenizer.unknown_words(query) == unknown


def test_a_sentence_of_nothing_known_is_refused(tokenizer: Tokenizer) -> None:
    for query, named in (("zzz, qqq", "'zzz', 'qqq'"), ("\u7ea2\u8272", "'\u7ea2', '\u8272'"), (", ,", "only marks")):
        with pytest.raises(InputError, match="query has no word that the model knows, got " + named):
            tokenizer.require_known(query)
    tokenizer.require_known("zzz ball")


def test_count(tokenizer: Tokenizer) -> None:
    found = count_unknown(tokenizer, ["zzz ball", "zzz ball", "a red ball", "zzz qqq"])

    assert (dict(found.words), found.sentences, found.wholly) == ({"zzz": 2, "qqq": 1}, 2, 1)
    assert found.lines() == [
        "words that the text model does not know: 2, in 2 sentences, 1 of which have no other: zzz (2), qqq (1)"
    ]
    assert count_unknown(tokenizer, ["a ball"]).lines() == []


@pytest.mark.parametrize("output", ["spans", "scores", "saliency"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_no_answer(output: str, value: float) -> None:
    outputs = {"spans": np.zeros((1, 3, 2)), "scores": np.zeros((1, 3)), "saliency": np.zeros((1, 4))}
    outputs[output].reshape(-1)[1] = value

    with pytest.raises(SessionError, match=f"head.onnx: 1 of [346] values of its output {output} are NaN or infinite"):
        decode(outputs, ["q"], [4], [8.0], 2.0, "head.onnx")


def test_padding_may_hold_anything() -> None:
    outputs = {"spans": np.zeros((1, 3, 2)), "scores": np.zeros((1, 3)), "saliency": np.array([[0.5, np.nan]])}

    assert decode(outputs, ["q"], [1], [2.0], 2.0)[0].saliency.tolist() == [0.5]
