"""Video in: python benchmarks/video_in.py [--videos FOLDER] [--ffmpeg FILE] [--out FOLDER].

Clips a second that `ClipStream` makes of H.264, HEVC and AV1 at 480 x 480 and 1920 x 1080, and beside it, in turn:

- every frame: the same pictures of a decoder that is given every packet;
- the floor: PyAV decodes every frame with as many threads and converts none;
- packets read: what is left of the time where nothing is decoded, hence the most that a seek could save;
- `ffmpeg -f null`, where a binary is found: a process with FFmpeg's own threads, its start included.

The floor is that of decoding everything: leaving out frames that nothing needs goes below it. Pictures of both ways of
ours are held against each other, byte by byte, before anything is timed. The videos are made here, with the encoders
of PyAV's wheel, and kept in `--videos`.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tyro
from timing import report

from sdst_runtime import FeatureSpec
from sdst_runtime.files import atomic_path
from sdst_runtime.media.clips import ClipStream

RATE = Fraction(30000, 1001)  # frames a second
SPEC = FeatureSpec(
    backbone="", backbone_sha256="", layers=1, pool="adaptive", frames_per_clip=4, clip_s=2.0, image_size=224,
    resize="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), video_width=768, text_model="",
    max_tokens=40, text_width=1024,
)  # fmt: skip


@dataclass(frozen=True)
class Codec:
    encoder: str
    options: dict[str, str]  # everything else as the encoder has it by itself: group of pictures, B-frames

    def __str__(self) -> str:
        return " ".join([self.encoder, *(f"{name} {value}" for name, value in self.options.items())])


CODECS = {
    "H.264": Codec("libx264", {"preset": "veryfast", "crf": "23"}),
    "HEVC": Codec("libx265", {"preset": "veryfast", "crf": "26", "x265-params": "log-level=error"}),
    "AV1": Codec("libsvtav1", {"preset": "10", "crf": "35"}),
}
SIZES = {"480 x 480": (480, 480, 12.0), "1920 x 1080": (1920, 1080, 5.0)}  # width, height, seconds


def main(
    *,
    codecs: tuple[str, ...] = tuple(CODECS),
    sizes: tuple[str, ...] = tuple(SIZES),
    threads: tuple[int, ...] = (1, 0),
    videos: Path | None = None,
    ffmpeg: Path | None = None,
    rounds: int = 10,
    out: Path | None = None,
) -> None:
    """Measure and print, a table a codec, size and number of threads.

    Args:
        codecs: H.264, HEVC, AV1.
        sizes: 480 x 480, 1920 x 1080.
        threads: Of the decoder; 0 is FFmpeg's choice for all cores.
        videos: Folder where the rendered videos are kept; default: rendered anew.
        ffmpeg: The binary; default: the one on PATH, if there is one.
        rounds: Of timing, a table, after one that is not counted.
        out: Folder of the JSON files.
    """
    found = ffmpeg or shutil.which("ffmpeg")
    with tempfile.TemporaryDirectory() as scratch:
        for codec in codecs:
            for size in sizes:
                path = rendered(Path(videos or scratch), codec, size)
                for count in threads:
                    measure(path, f"{codec}, {size}", CODECS[codec], count, found, rounds, out)


def measure(
    path: Path, name: str, codec: Codec, threads: int, ffmpeg: Path | str | None, rounds: int, out: Path | None
) -> None:
    """Two tables: time until all clips are there, and time of the processor."""
    clips = require_same(path)
    variants: dict[str, Callable[[], object]] = {
        "floor: PyAV, every frame, none converted": lambda: decode_all(path, threads),
        "clips, every frame decoded": lambda: list(ClipStream(path, SPEC, threads=threads, every_frame=True)),
        "clips": lambda: list(ClipStream(path, SPEC, threads=threads)),
        "packets read, none decoded": lambda: read_all(path),
    }
    if ffmpeg is not None:
        variants["ffmpeg -f null"] = lambda: ffmpeg_null(ffmpeg, path, threads)
    of = f"{decode_all(path, 0)} frames, {clips} clips"
    title = f"{name}, {codec}, {of}; threads {threads or 'of all cores'}"
    versions = {} if ffmpeg is None else {"ffmpeg": ffmpeg_version(ffmpeg)}
    elapsed, computed = timed(variants, rounds)
    for what, samples in (("elapsed", elapsed), ("processor", computed)):
        output = None if out is None else out / f"{name}, threads {threads}, {what}.json"
        report(f"{title}; {what}", samples, items=clips, versions=versions, output=output)


def timed(
    variants: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds until each call ended, and seconds of the processor that it and its processes took; in turn, all kept.

    On a busy machine only the second means much. One round before them is not counted.
    """
    elapsed, computed = ({name: [] for name in variants} for _ in range(2))
    for number in range(rounds + 1):
        for name, run in variants.items():
            start_s, before_s = time.perf_counter(), processor_s()
            run()
            end_s, after_s = time.perf_counter(), processor_s()
            if number > 0:
                elapsed[name].append(end_s - start_s)
                computed[name].append(after_s - before_s)
    return elapsed, computed


def processor_s() -> float:
    """Seconds that this process and those that it waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def require_same(path: Path) -> int:
    """T, of both ways of making clips. SystemExit when a byte differs."""
    some, every = (np.concatenate(list(ClipStream(path, SPEC))) for every in (False, True))
    if some.tobytes() != every.tobytes():
        raise SystemExit(f"{path}: pictures differ from those of a decoder that is given every packet")
    return len(some)


def decode_all(path: Path, threads: int) -> int:
    """Frames in the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", threads
        return sum(1 for _ in container.decode(stream))


def read_all(path: Path) -> int:
    """Packets in the file: what a seek could save at most."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.demux(container.streams.video[0]))


def ffmpeg_null(ffmpeg: Path | str, path: Path, threads: int) -> None:
    command = [ffmpeg, "-v", "error", "-threads", str(threads), "-i", path, "-map", "0:v:0", "-f", "null", "-"]
    subprocess.run(command, check=True)


def ffmpeg_version(ffmpeg: Path | str) -> str:
    said = subprocess.run([ffmpeg, "-version"], check=True, capture_output=True, text=True).stdout
    return said.split()[2]


# ---------------------------------------------------------------- the videos


def rendered(folder: Path, codec: str, size: str) -> Path:
    """The video, made when it is missing."""
    path = folder / f"{codec} {size}.mp4"
    if not path.exists():
        width, height, seconds = SIZES[size]
        with atomic_path(path) as partial:
            encode(partial, CODECS[codec], pictures(width, height, round(seconds * RATE)))
    return path


def encode(path: Path, codec: Codec, frames: Iterator[np.ndarray]) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec.encoder, rate=RATE, options=codec.options)
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def pictures(width: int, height: int, count: int) -> Iterator[np.ndarray]:
    """A textured ground over which the camera pans, squares that move before it, grain, and a cut every 7 s."""
    rng = np.random.default_rng(0)
    margin, side = height // 2, height // 6
    grain = rng.integers(0, 7, (height + 64, width + 64, 1), dtype=np.uint8)
    for number in range(count):
        time_s = number / float(RATE) % 7.0
        if time_s < 1 / float(RATE):
            ground = texture(rng, height + margin, width + margin)
            squares, colours = rng.uniform(-1, 1, (4, 4)), rng.integers(0, 240, (4, 3))
        across, down = (round(margin * (0.5 + 0.45 * np.sin(time_s / 3 + phase))) for phase in (0.0, 1.0))
        picture = ground[down : down + height, across : across + width].copy()
        for (x, y, u, v), colour in zip(squares, colours, strict=True):
            left, top = (int((0.5 + 0.4 * np.sin(9 * a + b * time_s)) * (c - side)) for a, b, c in
                         ((x, u, width), (y, v, height)))  # fmt: skip
            picture[top : top + side, left : left + side] = colour
        right, below = rng.integers(0, 64, 2)
        yield picture + grain[below : below + height, right : right + width]


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of several sizes, the coarse strongest: uint8 [height, width, 3], at most 248."""
    total = np.zeros((height, width, 3), np.float32)
    for size in (4, 16, 64, 256):
        coarse = rng.integers(0, 256, (-(-height // size) + 1, -(-width // size) + 1, 3), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(coarse, format="rgb24")
        total += size**0.5 * frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    low, high = total.min(), total.max()
    return (248 * (total - low) / (high - low)).astype(np.uint8)


if __name__ == "__main__":
    tyro.cli(main)
