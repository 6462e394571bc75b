"""One reader of text with a byte order mark, one normal form of sentences."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdst_runtime.data.annotations import read_queries, read_rows
from sdst_runtime.data.features import text_feature_path
from sdst_runtime.errors import InputError
from sdst_runtime.files import read_jsonl
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_runtime.metrics.evaluator import evaluate
from sdst_runtime.strict_json import dump_json, nulls_for_nan, read_json
from sdst_runtime.text import MARK, normalise, read_lines

CASES = Path(__file__).parents[1] / "data" / "bom"


def test_predictions_with_a_mark_are_scored_as_without(tmp_path: Path) -> None:
    plain = tmp_path / "pred.jsonl"
    plain.write_bytes((CASES / "pred_bom.jsonl").read_bytes().removeprefix(MARK.encode()))
    truth = read_jsonl(CASES / "gt.jsonl")

    assert read_jsonl(CASES / "pred_bom.jsonl") == read_jsonl(plain)
    assert evaluate(read_jsonl(CASES / "pred_bom.jsonl"), truth) == evaluate(read_jsonl(plain), truth)


def test_the_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    durations = tmp_path / "durations.csv"
    durations.write_bytes(MARK.encode() + (CASES / "plain.csv").read_bytes())

    (row,) = read_rows(CASES / "charades_sta_test.txt", [durations])
    assert (row["vid"], row["duration"], row["query"]) == ("AO8RW", 33.67, "a person sits.")
    assert read_queries(CASES / "charades_sta_test.txt")[0].vid == "AO8RW"


def test_marks_in_json_and_within_joined_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(MARK.encode() + b'{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(MARK.encode() + b'{"a": 1}\r\n' + MARK.encode() + b'{"a": 2}\r\n')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes("a".encode("utf-16"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_lines(path)


def test_a_tokenizer_with_a_mark(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models

    path = tmp_path / "tokenizer.json"
    path.write_text(MARK + Rust(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).to_str(), encoding="utf-8")
    assert Tokenizer.from_file(path).encode("a", 4).tolist() == [0]


@pytest.mark.parametrize(
    ("sentence", "right"),
    [
        ("A  red ball, moves. ", "A  red ball, moves. "),
        ("caf\u00e9", "caf\u00e9"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeffa\u200b r\u00aded\u202e ball\ufe0f\x00", "a red ball"),
        ("\u201cdon\u2019t\u201d \u2013 it\u00b4s", "\"don't\" - it's"),
        ("\uff52\uff45\uff44\u3000\ufb01sh\u00a0a\u2028b", "red fish a b"),
    ],
)
def test_normal_form(sentence: str, right: str) -> None:
    assert normalise(sentence) == right


@given(st.text())
def test_a_second_time_changes_nothing(sentence: str) -> None:
    assert normalise(normalise(sentence)) == normalise(sentence)


def test_names_of_text_features_stay() -> None:
    for sentence in ("a red ball", "caf\u00e9  \u7ea2"):
        digest = hashlib.sha256(sentence.encode()).hexdigest()[:24]
        assert text_feature_path(Path("D"), sentence) == Path("D/text") / f"{digest}.safetensors"
    assert text_feature_path(Path("D"), "a\u200b don\u2019t") == text_feature_path(Path("D"), "a don't")


def test_json_holds_no_nan() -> None:
    with pytest.raises(InputError, match=r"JSON has no number for moments\[1\].score = nan"):
        dump_json({"moments": [{"score": 1.0}, {"score": float("nan")}]})
    assert json.loads(dump_json(nulls_for_nan({"a": [float("inf"), (1.5, float("nan"))]}))) == {
        "a": [None, [1.5, None]]
    }
