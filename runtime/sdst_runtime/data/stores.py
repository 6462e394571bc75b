"""Where features lie: three layouts of a folder, one way to ask them for a video or a sentence.

    loose     video/{vid}.safetensors, text/{digest}.safetensors           one tensor "features" a file (features.py)
    packed    video-00000.safetensors, ..., text-00000.safetensors, ...    many tensors a file (packing.py)
    released  vid_feats/{vid}.npz, txt_feats/{qid}.npz                     as the authors of SDST publish them

Shapes: T clips, K layers, L tokens, V and X widths. Nothing but headers is read here: arrays are StoredArrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..contracts import FeatureSpec
from ..errors import InputError
from ..files import unpack_header
from ..strict_json import load_json
from ..text import normalise
from .annotations import Row
from .features import SPEC, STATED, file_name, stated_duration, text_feature_path, video_feature_path
from .lazy_arrays import Header, Shape, StoredArray, TensorFile, read_header, read_npz, read_npz_shape, read_tensor

RELEASED_VIDEO, RELEASED_TEXT = "visual_feats_interm_pooled", "text_feats"  # arrays in the released npz files


class FeatureStore(Protocol):
    """Features of a data set. Rows are annotations: `vid`, `query` and `qid` are looked at."""

    @property
    def spec(self) -> FeatureSpec:
        """The contract of all features in it."""
        ...

    def video(self, row: Row) -> StoredArray:
        """T K V of a row's video. Raises InputError or ContractError naming the file that is missing or different."""
        ...

    def text(self, row: Row) -> StoredArray:
        """K L X of a row's sentence. Raises InputError or ContractError naming the file, missing or different."""
        ...


def open_features(directory: Path, clip_s: float) -> FeatureStore:
    """The store in a folder, its layout told by what is there; `clip_s` is the released layout's, which states none.

    Raises InputError when no layout or more than one is there.
    """
    directory = Path(directory)
    layouts: dict[str, tuple[bool, Callable[[], FeatureStore]]] = {
        "loose (video/*.safetensors)": (any((directory / "video").glob("*.safetensors")), lambda: _Loose(directory)),
        "packed (video-*.safetensors)": (any(directory.glob("video-*.safetensors")), lambda: _Packed(directory)),
        "released (vid_feats/*.npz)": (
            any((directory / "vid_feats").glob("*.npz")),
            lambda: _Released(directory, clip_s),
        ),
    }
    found = [name for name, (there, _) in layouts.items() if there]
    if not found:
        raise InputError(f"{directory}: no features there; expected one of the layouts {', '.join(layouts)}")
    if len(found) > 1:
        raise InputError(f"{directory}: features of more than one layout, {' and '.join(found)}; keep one of them")
    return layouts[found[0]][1]()


def released_spec(layers: int, clip_s: float, video_width: int, text_width: int) -> FeatureSpec:
    """The contract of the features that the authors of SDST (arXiv 2507.07744) publish, which hold none themselves."""
    return FeatureSpec(
        backbone="internvideo2-1b-stage2",
        backbone_sha256="not stated by the released files",
        layers=layers,
        pool="adaptive",
        frames_per_clip=4,
        clip_s=clip_s,
        image_size=224,
        resize="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        video_width=video_width,
        text_model="bert-large-uncased",
        max_tokens=40,
        text_width=text_width,
    )


class Contract:
    """The contract that the first file of a folder states and all others must state too."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.spec = FeatureSpec.from_json(text, path)

    @classmethod
    def of(cls, path: Path) -> Contract:
        """The contract that a safetensors file states."""
        return cls(path, unpack_header(read_header(path).metadata, (SPEC,), path)[SPEC])

    def check(self, path: Path, text: str) -> None:
        if text != self.text:  # the same text needs no second look: 10,000 files hold it
            mend = "extract the features of this folder again, with one backbone"
            FeatureSpec.from_json(text, path).require(self.spec, have=path, need=self.path, exact=True, mend=mend)

    def check_video(self, shape: Shape, path: Path) -> Shape:
        return _fits(shape, (None, self.spec.layers, self.spec.video_width), "T K V", path)

    def check_text(self, shape: Shape, path: Path) -> Shape:
        return _fits(shape, (self.spec.layers, None, self.spec.text_width), "K L X", path)


class _Loose:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        first = min((directory / "video").glob("*.safetensors"))
        self._contract = Contract.of(first)

    @property
    def spec(self) -> FeatureSpec:
        return self._contract.spec

    def video(self, row: Row) -> StoredArray:
        path = video_feature_path(self._directory, row["vid"])
        shape, duration = self._look(path, "video")
        stated_duration(duration, path)
        return StoredArray(self._contract.check_video(shape, path), partial(read_tensor, path))

    def text(self, row: Row) -> StoredArray:
        path = text_feature_path(self._directory, row["query"])
        shape, query = self._look(path, "text")
        _check_query(query, row, path)
        return StoredArray(self._contract.check_text(shape, path), partial(read_tensor, path))

    def _look(self, path: Path, kind: str) -> tuple[Shape, str]:
        header, key = read_header(path), STATED[kind][0]
        values = unpack_header(header.metadata, (SPEC, key), path)
        self._contract.check(path, values[SPEC])
        if "features" not in header.shapes:
            raise InputError(f"{path}: expected a tensor features, got {', '.join(header.shapes)}; extract it again")
        return header.shapes["features"], values[key]


class _Packed:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        paths = (*directory.glob("video-*.safetensors"), *directory.glob("text-*.safetensors"))
        shards = {path: read_header(path) for path in sorted(paths)}
        first = next(path for path in shards if path.name.startswith("video-"))
        self._contract = Contract(first, unpack_header(shards[first].metadata, (SPEC,), first)[SPEC])
        self._videos, durations = self._index(shards, "video")
        for vid, (_, path) in self._videos.items():
            stated_duration(durations.get(vid), path)
        self._texts, self._queries = self._index(shards, "text")

    @property
    def spec(self) -> FeatureSpec:
        return self._contract.spec

    def video(self, row: Row) -> StoredArray:
        array, path = self._find(self._videos, row["vid"], f"video {row['vid']}")
        self._contract.check_video(array.shape, path)
        return array

    def text(self, row: Row) -> StoredArray:
        digest = text_feature_path(self._directory, row["query"]).stem
        array, path = self._find(self._texts, digest, f"the sentence {row['query']!r}")
        _check_query(self._queries.get(digest), row, path)
        self._contract.check_text(array.shape, path)
        return array

    def _index(
        self, shards: Mapping[Path, Header], kind: str
    ) -> tuple[dict[str, tuple[StoredArray, Path]], dict[str, Any]]:
        arrays: dict[str, tuple[StoredArray, Path]] = {}
        stated, key = dict[str, Any](), STATED[kind][1]
        for path, header in shards.items():
            if not path.name.startswith(f"{kind}-"):
                continue
            values = unpack_header(header.metadata, (SPEC, key), path)
            self._contract.check(path, values[SPEC])
            stated |= stated_in(values, key, path)
            file = TensorFile(path)
            for name, shape in header.shapes.items():
                if name in arrays:
                    both = f"{arrays[name][1]} and {path}"
                    raise InputError(f"{both}: both hold {name}; pack the features again into an empty folder")
                arrays[name] = StoredArray(shape, partial(file.read, name)), path
        return arrays, stated

    def _find(self, arrays: Mapping[str, tuple[StoredArray, Path]], name: str, what: str) -> tuple[StoredArray, Path]:
        if name not in arrays:
            raise InputError(f"{self._directory}: no features of {what} in its packed files; extract and pack it")
        return arrays[name]


class _Released:
    def __init__(self, directory: Path, clip_s: float) -> None:
        self._videos, self._texts = directory / "vid_feats", directory / "txt_feats"
        video, text = min(self._videos.glob("*.npz")), min(self._texts.glob("*.npz"), default=None)
        if text is None:
            raise InputError(f"{self._texts}: no released text features there; fetch them too")
        _, layers, video_width = _three(read_npz_shape(video, RELEASED_VIDEO), "T K V", video)
        _, _, text_width = _three(read_npz_shape(text, RELEASED_TEXT), "K L X", text)
        self._contract = Contract(video, released_spec(layers, clip_s, video_width, text_width).to_json())

    @property
    def spec(self) -> FeatureSpec:
        return self._contract.spec

    def video(self, row: Row) -> StoredArray:
        path = self._videos / file_name(row["vid"], "npz")
        shape = self._contract.check_video(read_npz_shape(path, RELEASED_VIDEO), path)
        return StoredArray(shape, partial(read_npz, path, RELEASED_VIDEO))

    def text(self, row: Row) -> StoredArray:
        path = self._texts / file_name(row["qid"], "npz")
        shape = self._contract.check_text(read_npz_shape(path, RELEASED_TEXT), path)
        return StoredArray(shape, partial(read_npz, path, RELEASED_TEXT))


def _three(shape: Shape, letters: str, path: Path) -> Shape:
    if len(shape) != 3:
        raise InputError(f"{path}: expected an array {letters}, got shape {shape}")
    return shape


def _fits(shape: Shape, expected: tuple[int | None, ...], letters: str, path: Path) -> Shape:
    fits = len(shape) == 3 and all(n > 0 if want is None else n == want for n, want in zip(shape, expected))
    if not fits:
        sizes = " x ".join(letter if n is None else str(n) for letter, n in zip(letters.split(), expected))
        raise InputError(f"{path}: expected features {letters} of {sizes}, got shape {shape}; extract it again")
    return shape


def _check_query(stored: Any, row: Row, path: Path) -> None:
    if not isinstance(stored, str) or normalise(stored) != normalise(row["query"]):
        raise InputError(f"{path}: holds the sentence {stored!r}, expected {row['query']!r}; extract it again")


def stated_in(values: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """The object that a packed file's header holds under `key`. Raises InputError."""
    content = load_json(values[key], f"{path}: its {key} are", "pack the features again")
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object in its {key}, got {type(content).__name__}; pack them again")
    return content
