"""Feature files and ids that were made to do harm: numbers without a bound, names that leave their folder."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from feature_files import SPEC
from safetensors.numpy import save_file

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.data.features import file_name, read_video_features, video_feature_path
from sdst_runtime.data.lazy_arrays import read_npz, read_npz_shape
from sdst_runtime.data.packing import pack_features
from sdst_runtime.data.stores import open_features
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import pack_header

WHOLE = (slice(None),) * 3


def npz(path: Path, header_shape: tuple[int, ...], content: bytes) -> Path:
    """An archive with one float32 array, whose header says what it likes."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": header_shape}
    )  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", buffer.getvalue() + content)
    return path


@pytest.mark.parametrize("duration", ["NaN", "0", "-1", "Infinity", "1e9", "long", "9" * 400])
def test_a_duration_that_no_video_has(tmp_path: Path, duration: str) -> None:
    path = video_feature_path(tmp_path, "v")
    path.parent.mkdir()
    array = np.zeros((10, SPEC.layers, SPEC.video_width), np.float16)
    save_file({"features": array}, path, pack_header(spec=SPEC.to_json(), duration_s=duration))
    (tmp_path / "text").mkdir()
    save_file({"features": array}, tmp_path / "text" / "t.safetensors", pack_header(spec=SPEC.to_json(), query="q"))

    with pytest.raises(InputError, match="duration"):
        read_video_features(path)
    with pytest.raises(InputError, match="duration"):
        open_features(tmp_path, SPEC.clip_s).video({"vid": "v"})
    with pytest.raises(InputError, match="duration"):
        pack_features(tmp_path, tmp_path / "packed")


@pytest.mark.parametrize("value", ["0", "NaN", "1e-9", "1e-308", "1" + "0" * 400, "Infinity"])
def test_clips_of_a_contract_have_a_length(value: str) -> None:
    text = SPEC.to_json().replace(f'"clip_s": {SPEC.clip_s}', f'"clip_s": {value}')
    assert text != SPEC.to_json()
    with pytest.raises(ContractError, match="clip_s"):
        FeatureSpec.from_json(text, "a.json")


def test_a_contract_of_impossible_width() -> None:
    with pytest.raises(InputError, match="video_width: expected at most 65,536, got 1000000000"):
        dataclasses.replace(SPEC, video_width=10**9)


@pytest.mark.parametrize("vid", ["../../x", "/etc/x", "a/b", "..\\x", "a\0b", "", "x" * 300])
def test_an_id_that_is_a_path(vid: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^id .*mend the annotations"):
        video_feature_path(tmp_path, vid)
    with pytest.raises(InputError, match=r"^id "):
        file_name(vid, "npz")
    assert video_feature_path(tmp_path, "..a v_1.0") == tmp_path / "video" / "..a v_1.0.safetensors"


def test_an_array_that_inflates(tmp_path: Path) -> None:
    path = npz(tmp_path / "bomb.npz", (1 << 28, 1, 2), bytes(1000))
    for read in (lambda: read_npz_shape(path, "a"), lambda: read_npz(path, "a", WHOLE)):
        with pytest.raises(InputError, match="expected a of at most 1,073,741,824 bytes, got 2,147,483,648 bytes"):
            read()


def test_a_header_and_an_archive_that_disagree(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", (1, 2, 3), bytes(1 << 20))
    with pytest.raises(InputError, match="1048704 bytes, its header tells of 152"):
        read_npz(path, "a", WHOLE)
    whole = npz(tmp_path / "b.npz", (1, 2, 3), np.arange(6, dtype="<f4").tobytes())
    assert read_npz(whole, "a", WHOLE).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    np.savez(tmp_path / "c.npz", a=np.asfortranarray(np.arange(6, dtype="<f4").reshape(1, 2, 3)))
    assert read_npz(tmp_path / "c.npz", "a", (slice(None), slice(1, 2), slice(None))).tolist() == [[[3, 4, 5]]]


def test_damage_is_one_line(tmp_path: Path) -> None:
    good = npz(tmp_path / "a.npz", (2, 2, 3), np.ones(12, "<f4").tobytes()).read_bytes()
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(300):
        content = bytearray(good)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        (tmp_path / "b.npz").write_bytes(content)
        try:
            read_npz(tmp_path / "b.npz", "a", WHOLE)
        except InputError:
            failures += 1
    assert failures > 200
