"""Video files opened: which containers are read, which of their streams is the film, and how it is to be shown.

The kind of a file is decided by its content. Playlists and scripts, which make FFmpeg read other files, are no kind of
video here, whatever they are called; and a file is read through one handle of ours, so that nothing else can be opened
and no failure to read it goes unseen.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SdstError, require_package
from .hardware import unusable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# FFmpeg's names of the containers that hold their pictures themselves. Sound alone is let in, to be named as such.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,live_flv,kux,ogg,gif,apng,rm,mxf,gxf,lxf,nut,nsv,wtv,dv,"
    "ivf,obu,av1,h264,hevc,vvc,m4v,mpegvideo,h263,h261,mjpeg,mjpeg_2000,vc1,vc1test,dirac,cavsvideo,avs2,avs3,evc,"
    "yuv4mpegpipe,swf,amv,bink,smk,flic,roq,nuv,pmp,ty,vivo,film_cpk,mtv,"
    "wav,w64,mp3,flac,aac,ac3,eac3,aiff,caf,amr,au,dts,wv,ape,tta"
)
_NO_FILMS = ("attached_pic", "timed_thumbnails", "still_image")  # dispositions of covers and previews
_DUMPING = threading.Lock()  # FFmpeg's level of logging is one for the process


class LocalFile(io.FileIO):
    """A file that remembers what its device said when a read failed: demuxers may take that for the end."""

    failure: OSError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes. Raises OSError, and keeps the first."""
        try:
            return super().read(-1 if size is None else size) or b""
        except OSError as error:
            self.failure = self.failure or error
            raise

    def require_sound(self) -> None:
        """Raises InputError when a read failed: what was decoded is then a part, and a whole file might come."""
        if self.failure is not None:
            raise InputError(
                f"{self.name}: could not be read to its end ({self.failure.strerror or self.failure}): its disk or "
                "network failed; copy it to a sound place, or run again"
            )


@dataclass(frozen=True)
class Display:
    """How a stream says that its pictures are to be shown, beside the display matrix of each frame."""

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels that its container cuts: left, right, top, bottom
    remarks: tuple[str, ...] = ()  # what is not followed, in words


@contextmanager
def opened(path: Path, hwaccel: Any = None) -> Iterator[tuple[InputContainer, LocalFile]]:
    """A local video file and nothing else, decoded by `hwaccel` (hardware.py).

    Raises InputError when it is none, or another kind than we read, and for a device that cannot be used.
    """
    av = require_package("av", "")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; give a video file in it")
    if not path.exists():
        raise InputError(f"{path}: no such video file; check the path")
    try:
        file = LocalFile(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    with file, _open(av, path, file, hwaccel) as container:
        yield container, file


def _open(av: Any, path: Path, file: LocalFile, hwaccel: Any = None) -> InputContainer:
    # PyAV 19 keeps tags that are not UTF-8 by itself, and knows the argument no more
    tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    try:
        return av.open(file, container_options=options, hwaccel=hwaccel, **tags)
    except SdstError:
        raise
    except Exception as error:  # a foreign library, on bytes from anywhere
        file.require_sound()
        if hwaccel is not None:
            file.seek(0)
            _open(av, path, file).close()  # raises where it is the file
            raise unusable(error) from error
        if getattr(error, "errno", None) == 22:  # what FFmpeg says of a container that is not on the list
            raise _unreadable(path, "a playlist, a script of other files or a rare container") from error
        raise _unreadable(path, str(getattr(error, "strerror", None) or error or type(error).__name__)) from error


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"{path}: not a video that can be read ({reason}); its header is broken or it is another kind of file: "
        "give or convert it to mp4, mkv, webm, mov or avi"
    )


def film(path: Path, container: InputContainer, warnings: list[str]) -> VideoStream:
    """The stream of moving pictures: of several the one flagged default, then the largest; a warning says which.

    Raises InputError when there is none.
    """
    films = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not _is_flagged(stream, *_NO_FILMS)
    ]
    if not films:
        kinds = sorted({stream.type for stream in container.streams})
        what = "only audio" if kinds == ["audio"] else f"only {' and '.join(kinds)}" if kinds else "nothing"
        raise InputError(f"{path}: has no video stream ({what} in it); give a file with pictures")
    chosen = max(
        films, key=lambda stream: (_is_flagged(stream, "default"), stream.width * stream.height, -stream.index)
    )
    if len(films) > 1:
        flagged = [stream for stream in films if _is_flagged(stream, "default")] == [chosen]
        why = "flagged default" if flagged else "the largest"
        others = ", ".join(f"{stream.index} ({stream.width}x{stream.height})" for stream in films if stream != chosen)
        warnings.append(
            f"{path}: has {len(films)} video streams: took stream {chosen.index} "
            f"({chosen.width}x{chosen.height}, {why}) and left {others}"
        )
    return chosen


def _is_flagged(stream: VideoStream, *dispositions: str) -> bool:
    """Whether the stream has one of them."""
    known = require_package("av.stream", "").Disposition.__members__
    return any(stream.disposition & known[name] for name in dispositions if name in known)


def display_of(container: InputContainer, stream: VideoStream) -> Display:
    """What the container says about showing the stream. PyAV hands it out in FFmpeg's own listing only."""
    if not any(name in container.format.name.split(",") for name in ("mov", "matroska")):
        return Display()  # no other container states any of it
    av = require_package("av", "")
    with _DUMPING:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)  # below it FFmpeg lists nothing
        try:
            with av.logging.Capture():
                listing = container.dumps_format()  # pyright: ignore[reportAttributeAccessIssue]  not in its stubs
        finally:
            av.logging.set_level(level)
    blocks = re.split(r"^  Stream #0:(\d+)", listing, flags=re.MULTILINE)
    block = dict(zip(blocks[1::2], blocks[2::2])).get(str(stream.index), "")
    _, _, facts = block.partition("\n    Side data:\n")
    cut = re.search(r"frame cropping: (\d+)/(\d+)/(\d+)/(\d+)", facts, re.IGNORECASE)
    crop = tuple(map(int, cut.groups())) if cut else (0, 0, 0, 0)
    odd = re.findall(r"^ +(stereo3d|spherical): ([^,\n(]+)", facts, re.MULTILINE | re.IGNORECASE)
    remarks = tuple(f"{kind.lower()}: {what.strip()}" for kind, what in odd if what.strip().lower() != "2d")
    if crop[0] + crop[1] >= stream.width or crop[2] + crop[3] >= stream.height:
        return Display(remarks=(*remarks, "a crop that leaves nothing"))
    return Display((crop[0], crop[1], crop[2], crop[3]), remarks)


def source_digest(path: Path) -> str:
    """What tells a video file from another one of its name: its size and a SHA-256 of its bytes; "" for no plain file.

    Of more than 1 MiB the digest takes 16 pieces of 64 KiB at equal distances, so that a folder of large videos is
    looked through in no time; times of files do not count, so that a copy of a data set is the same data set.
    """
    import hashlib

    piece, pieces = 1 << 16, 16
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256()
            if size <= piece * pieces:
                digest.update(file.read())
            else:
                for i in range(pieces):
                    file.seek(i * (size - piece) // (pieces - 1))
                    digest.update(file.read(piece))
    except OSError:  # whoever decodes it says so
        return ""
    return f"{size} bytes, sha256 {digest.hexdigest()[:32]}"
