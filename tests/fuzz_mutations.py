"""Ways to damage a file: bytes, JSON values, the headers of safetensors files and the arrays of npz files."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

DEEP = "[" * 3000 + "]" * 3000
TOKENS = (
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"true", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\xff\xfe"),
    *(b"-1", b"0", b"9" * 30, b"9" * 5000, b"1e-320", DEEP.encode(), b"\xef\xbb\xbf", b"\0" * 9, b"\\ud800", b"[red]"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**18, 1e-320, 1e308, -0.0, 0.5, "", "x", "0", "-1"),
    *("../../x", "\0", "\ud800", "é" * 300, "[bold]", [], {}, [[]], [None], {"": 1}, [1, 2], ["a"], [0.5, "b", None]),
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, DEEP)  # what json.dumps does not write


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four of: a flipped bit, a random byte, a cut, a deletion, a token put in, a part twice, zeros."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.5 else min(len(out), int(rng.expovariate(1 / 200)))
        span = rng.choice((1, 1, 4, 16, 100, max(1, len(out) // 3)))
        kind = rng.randrange(7)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1 and out:
            out[place % len(out)] = rng.randrange(256)
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            del out[place : place + span]
        elif kind == 4:
            out[place:place] = rng.choice(TOKENS)
        elif kind == 5:
            out[place:place] = out[place : place + span]
        else:
            out[place : place + span] = bytes(len(out[place : place + span]))
    return bytes(out)


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """A value, or several, of a JSON text replaced, removed, renamed or repeated."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = _changed(content, rng)
    text = json.dumps(content)
    for token in RAW:
        text = text.replace(json.dumps("raw:" + token[:9]), token)
    return text.encode()


def damage_lines(data: bytes, rng: random.Random) -> bytes:
    """As `damage_json` in one line of JSON lines."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = damage_json(lines[place], rng)
    return b"\n".join(lines) + b"\n"


def damage_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON header of a safetensors file, also the JSON inside its metadata; its length is mostly made to fit."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.6:
        content = json.loads(header)
        for name, text in content.get("__metadata__", {}).items():
            content["__metadata__"][name] = _inner(text, rng)
        header = json.dumps(content).encode()
    else:
        header = damage_json(header, rng)
    if rng.random() < 0.9:
        header += b" " * (-len(header) % 8)
        length = len(header)
    return struct.pack("<Q", length) + header + rest


def damage_archive(data: bytes, rng: random.Random) -> bytes:
    """An npz file whose members are damaged and packed again, or whose packing is."""
    if rng.random() < 0.4:
        return damage_bytes(data, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if rng.random() < 0.8:
                content = damage_bytes(content[:128], rng) + content[128:]
            name = entry.filename if rng.random() < 0.9 else "other.npy"
            kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            target.writestr(name, content, kind)
    packed = bytearray(out.getvalue())
    if rng.random() < 0.3:  # flags and methods in the headers
        at = rng.choice([i for i in range(len(packed) - 4) if packed[i : i + 4] in (b"PK\3\4", b"PK\1\2")])
        packed[min(len(packed) - 1, at + rng.randrange(4, 30))] = rng.randrange(256)
    return bytes(packed)


def _inner(text: str, rng: random.Random) -> str:
    """A metadata text: its JSON damaged, at any depth of JSON within JSON."""
    try:
        content = json.loads(text)
    except ValueError:
        return damage_bytes(text.encode(), rng).decode("utf-8", "replace")
    texts = [name for name, value in content.items() if isinstance(value, str)] if isinstance(content, dict) else []
    if texts and rng.random() < 0.7:
        name = rng.choice(texts)
        content[name] = _inner(content[name], rng) if rng.random() < 0.8 else str(rng.choice(VALUES))
        return json.dumps(content)
    return damage_json(text.encode(), rng).decode()


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with one value somewhere inside changed."""
    inside = isinstance(value, (dict, list)) and len(value) > 0
    if not inside or rng.random() < 0.12:
        return rng.choice((*VALUES, *("raw:" + token[:9] for token in RAW)))
    if isinstance(value, dict):
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.12:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.18:
            return {(k + "x" if k == key else k): v for k, v in value.items()}
        return value | {key: _changed(value[key], rng)}
    place = rng.randrange(len(value))
    if rng.random() < 0.2:
        return value[:place] + value[place + 1 :] if rng.random() < 0.5 else [*value, value[place]]
    return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
