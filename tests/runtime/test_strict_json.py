"""JSON that others wrote: every fault is one line with the file, the field and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import read_jsonl
from sdst_runtime.strict_json import load_json, parse_strict, read_json, read_strict

DEEP = "[" * 100_000
LONG = "9" * 5_000
UNREADABLE = {
    "cut": (b'{"a": ', "Expecting value"),
    "nested too deep": (DEEP.encode(), "recursion"),
    "a number of 5,000 digits": (LONG.encode(), "4300 digits"),
    "no UTF-8": (b'{"a": "\xff"}', "codec can't decode byte 0xff"),
}


@dataclass(frozen=True)
class Part:
    width: int = 1

    def __post_init__(self) -> None:
        """Raise InputError, as configs do."""
        if self.width < 1:
            raise InputError(f"width: expected at least 1, got {self.width}")


@dataclass(frozen=True)
class Whole:
    name: str
    part: Part = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)


@pytest.mark.parametrize(("content", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_json_is_one_line(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=rf"^a\.json: its header is not JSON \(.*{words}.*\); make it again$"):
        load_json(content, "a.json: its header is", "make it again")
    start = f"cannot read {path}: .*" if "codec" in words else rf"{path}.*: not JSON \(.*"
    with pytest.raises(InputError, match=rf"^{start}{words}.*; make it again$"):
        read_json(path, "make it again")
    with pytest.raises(ContractError, match=rf"^{path}: does not parse: the whole: .*; make it again$"):
        read_strict(Whole, path, "make it again")


@pytest.mark.parametrize("content", [DEEP, LONG])
def test_lines_and_contracts_too(tmp_path: Path, content: str):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"qid": 1}\n' + content)

    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: not JSON"):
        read_jsonl(path)
    with pytest.raises(ContractError, match=r"^a\.onnx: feature contract does not parse: the whole: Invalid JSON"):
        FeatureSpec.from_json(content, "a.onnx")


def test_the_line_of_a_fault_is_named(tmp_path: Path):
    (tmp_path / "a.json").write_text('{\n"a": }')

    with pytest.raises(InputError, match=r"a\.json, line 2: not JSON \(Expecting value\)$"):
        read_json(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path: Path):
    for read in (read_json, lambda path, mend: read_strict(Whole, path, mend)):
        with pytest.raises(InputError, match=r"^cannot read .*none\.json: No such file or directory; make it$"):
            read(tmp_path / "none.json", "make it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "a.json: does not parse: name: Field required; export it"),
        ('{"name": 1}', "a.json: does not parse: name: Input should be a valid string; export it"),
        ('{"name": "x", "prat": {}}', "a.json: does not parse: prat: no such field; did you mean part?; export it"),
        (
            '{"name": "x", "part": {"with": 1}}',
            "a.json: does not parse: part.with: no such field; did you mean width?; export it",
        ),
        ('{"name": "x", "parts": {"a": {"w": 1}}}', "a.json: does not parse: parts.a.w: no such field; export it"),
        ('{"name": "x", "part": {"width": 0}}', "a.json: does not fit: width: expected at least 1, got 0; export it"),
    ],
)
def test_the_field_is_named(text: str, message: str):
    with pytest.raises(ContractError) as caught:
        parse_strict(Whole, text, "a.json:", "export it")

    assert str(caught.value) == message


def test_what_fits_comes_back():
    assert parse_strict(Whole, b'{"name": "x", "part": {"width": 2}}', "a.json:") == Whole("x", Part(2))


def test_a_very_long_message_keeps_both_ends():
    error = InputError(f"a.txt: got {'x' * 9000}; give another")
    assert str(error) == f"a.txt: got {'x' * 989} ... {'x' * 486}; give another"
    assert str(InputError("short")) == "short"
