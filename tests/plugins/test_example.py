"""plugins/examples/ground.cpp over the mock of libnvinfer, compiled with the headers of every version at hand.

Its engines are texts whose outputs are copies of their inputs: spans and scores are numbers of the sentence's features,
so that the lines must be those that `decode` makes of the same numbers. An sdst::RDSA node in the head, of which
nothing is asked but to run, needs the plugin library. A double of the CUDA runtime gives host memory.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_files import SPEC
from mocked_tensorrt import EngineNode, EngineTensor, engine_bytes
from tensorrt_headers import HEADERS, MISSING, built, header_name, require_build_tools

from sdst_runtime.contracts import FeatureSpec, TextFeatures, VideoFeatures
from sdst_runtime.data.features import write_text_features, write_video_features
from sdst_runtime.grounding.decode import decode

Shape = tuple[int | str, ...]  # T and L are free
K, V, X, M = SPEC.layers, SPEC.video_width, SPEC.text_width, 2
F = 32  # of the RDSA node; what is projected stays as wide as the video
T, L = 20, 4 * M  # of the video and the sentence: so a mask of the sentence is as long as M floats
MOST_CLIPS = (12, 40)  # of the profiles
SPANS = np.array([[0.5, 0.75], [-0.1, 1.5]], np.float32)  # the second leaves the video at both ends
SCORES = np.array([0.25, 0.875], np.float32)
AFTER_SPANS = ("text", SPANS.nbytes)  # an input, and the byte from which on the scores lie there


@pytest.fixture(scope="module", params=HEADERS or [None], ids=lambda folder: header_name(folder) if folder else "")
def programs(request) -> tuple[Path, Path]:
    """The example and the plugin library."""
    if request.param is None:
        pytest.skip(MISSING)
    require_build_tools()
    example, plugin = (built(request.param, target) for target in ("ground_example", "sdst_plugins_host"))
    return example / "ground_example", plugin / "libsdst_plugins_host.so"


def copied(source: str, start: int, name: str) -> EngineNode:
    """A node that makes `name` of the source's bytes from `start` on."""
    return EngineNode(f"copy_{name}", (source,), (name,), {"start": start}, plugin="copy")


def plan(
    inputs: Mapping[str, Shape], others: Sequence[EngineTensor], nodes: Sequence[EngineNode], projected: str
) -> bytes:
    """An engine with a profile for each of MOST_CLIPS, all from 2 clips on; `projected` is the type of that tensor."""

    def sized(shape: Shape, clips: int, tokens: int) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else clips if n == "T" else tokens for n in shape)

    types = {"projected": projected, "video_mask": "bool", "text_mask": "bool"}
    tensors = [EngineTensor(n, "input", types.get(n, "float"), sized(s, -1, -1)) for n, s in inputs.items()]
    profiles = [
        {name: (sized(shape, 2, 1), sized(shape, most, 8), sized(shape, most, 16)) for name, shape in inputs.items()}
        for most in MOST_CLIPS
    ]
    return engine_bytes([*tensors, *others], nodes, profiles)


def write_engines(
    folder: Path, scores: tuple[str, int] | None = AFTER_SPANS, projected: str = "float",
    presence: tuple[str, int] | None = None, outputs: Mapping[str, Shape] = {},
) -> None:  # fmt: skip
    """projection.plan and head.plan; without `scores` nobody writes those. `outputs`: more of the head."""
    video: dict[str, Shape] = {"video": (1, "T", K, V), "video_mask": (1, "T")}
    made = EngineTensor("projected", "output", projected, (1, "video:1", K, V))
    (folder / "projection.plan").write_bytes(plan(video, [made], [copied("video", 0, "projected")], projected))

    asked: dict[str, Shape] = {"projected": (1, "T", K, V), "video_mask": (1, "T"), "text": (1, K, "L", X)}
    asked["text_mask"] = (1, "L")
    reads = {"value": (1, "projected:1", F), "endpoints": (1, "projected:1", 6 * 2 * 4), "reference": (1, M, 2)}
    others = [EngineTensor(name, "internal", "float", shape) for name, shape in reads.items()]
    others += [
        EngineTensor("length", "internal", "int32", (1,)),
        EngineTensor("hidden", "internal", "float", (1, M, F)),
    ]
    outputs = {"spans": (1, M, 2), "scores": (1, M), "saliency": (1, "projected:1"), **outputs}
    others += [EngineTensor(name, "output", "float", shape) for name, shape in outputs.items()]
    nodes = [EngineNode("sdst::RDSA.step1", (*reads, "length"), ("hidden",), {"num_heads": 2, "num_points": 4})]
    nodes += [copied("text", 0, "spans"), copied("projected", 0, "saliency")]
    nodes += [] if scores is None else [copied(*scores, "scores")]
    nodes += [] if presence is None else [copied(*presence, "presence")]
    (folder / "head.plan").write_bytes(plan(asked, others, nodes, projected))


def write_features(
    folder: Path, clips: int = T, tokens: int = L, duration_s: float = T - 0.5, spec: FeatureSpec = SPEC,
    scores: np.ndarray = SCORES, dtype: type[np.generic] = np.float32,
) -> None:  # fmt: skip
    """video.safetensors and text.safetensors; the sentence's last K layers begin with SPANS and `scores`."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((spec.layers, tokens, X)).astype(dtype)
    text[-K:].reshape(-1)[: SPANS.size + scores.size] = np.concatenate([SPANS.ravel(), scores]).astype(dtype)
    video = rng.standard_normal((clips, spec.layers, V)).astype(dtype)
    write_video_features(folder / "video.safetensors", VideoFeatures(video, duration_s, spec, decoder="libavcodec 62"))
    write_text_features(folder / "text.safetensors", TextFeatures(text, 'a "quoted" {sentence}', spec))


def run(programs: tuple[Path, Path], folder: Path, plugin: Path | None = None) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the example on the files of a folder."""
    files = ["projection.plan", "head.plan", plugin or programs[1], "video.safetensors", "text.safetensors"]
    done = subprocess.run([programs[0], *(folder / file for file in files)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def decoded(scores: np.ndarray = SCORES, clips: int = T, duration_s: float = T - 0.5) -> str:
    """The lines of Python's moments."""
    outputs = {"spans": SPANS[None], "scores": scores[None], "saliency": np.zeros((1, clips), np.float32)}
    (answer,) = decode(outputs, ["q"], [clips], [duration_s], SPEC.clip_s)
    return "".join(f"{m.start_s:.2f} {m.end_s:.2f} {m.score:.6g}\n" for m in answer.moments)


@pytest.mark.parametrize("clips", [2, 12, 13, 40])
def test_moments_are_those_of_decode(programs, tmp_path, clips):
    """In the smallest of two profiles that holds the video."""
    write_engines(tmp_path)
    write_features(tmp_path, clips, duration_s=clips - 0.5)
    assert run(programs, tmp_path) == (0, decoded(clips=clips, duration_s=clips - 0.5), "")


def test_a_head_with_presence(programs, tmp_path):
    """It is said first; an output that the program does not know is bound all the same."""
    last = ("text", SPANS.nbytes + SCORES.nbytes - 4)  # the second score
    write_engines(tmp_path, presence=last, outputs={"presence": (1,), "more": (1, M, "projected:1")})
    write_features(tmp_path)
    assert run(programs, tmp_path) == (0, "presence 0.875\n" + decoded(), "")


def test_a_presence_that_nobody_wrote(programs, tmp_path):
    write_engines(tmp_path, outputs={"presence": (1,)})
    write_features(tmp_path)
    assert "the head's output holds NaN or infinity" in refusal(programs, tmp_path)


def test_equal_scores_keep_their_order(programs, tmp_path):
    equal = np.array([0.5, 0.5], np.float32)
    write_engines(tmp_path)
    write_features(tmp_path, scores=equal)
    assert run(programs, tmp_path) == (0, decoded(equal), "")


def test_half_precision(programs, tmp_path):
    """Features in half, read as float; and what is projected in half goes to the head as it is."""
    write_engines(tmp_path, projected="half")
    write_features(tmp_path, dtype=np.float16)
    spans = SPANS.astype(np.float16).astype(np.float32)
    expected = "".join(f"{max(a, 0) * T:.2f} {min(b * T, T - 0.5):.2f} {s:.6g}\n" for (a, b), s in zip(spans, SCORES))
    assert run(programs, tmp_path) == (0, "".join(reversed(expected.splitlines(True))), "")


@pytest.mark.parametrize("mask", ["video_mask", "text_mask"])
def test_masks_are_true_throughout(programs, tmp_path, mask):
    """The scores are four bytes of the mask each."""
    write_engines(tmp_path, scores=(mask, 0))
    write_features(tmp_path)
    ones = np.ones(4 * M, np.uint8).view(np.float32)
    assert run(programs, tmp_path) == (0, decoded(ones), "")


def test_more_layers_than_the_models_take(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path, spec=dataclasses.replace(SPEC, layers=K + 2))
    assert run(programs, tmp_path) == (0, decoded(), "")


# ---------------------------------------------------------------- bad input


def refusal(programs: tuple[Path, Path], folder: Path, plugin: Path | None = None) -> str:
    """The last line of what a run that must fail writes, without the folder."""
    code, out, err = run(programs, folder, plugin)
    assert (code, out) == (1, "")
    return err.splitlines()[-1].removeprefix("error: ").replace(f"{folder}/", "")


def test_a_video_longer_than_every_profile(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path, clips=41)
    words = f"projection.plan: no profile of the engine holds video [1 41 {K} {V}] video_mask [1 41]"
    assert refusal(programs, tmp_path) == f"{words}; build it with other --profiles"


def test_features_of_too_few_layers(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path)
    fewer = VideoFeatures(np.zeros((T, 1, V), np.float32), T, dataclasses.replace(SPEC, layers=1))
    write_video_features(tmp_path / "video.safetensors", fewer)
    assert "made under two contracts" in refusal(programs, tmp_path)
    text = TextFeatures(np.zeros((1, L, X), np.float32), "q", dataclasses.replace(SPEC, layers=1))
    write_text_features(tmp_path / "text.safetensors", text)
    assert refusal(programs, tmp_path) == "video.safetensors: expected 2 layers or more, got 1; extract it again"


def test_plans_in_the_wrong_order(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path)
    projection, head = (tmp_path / name for name in ("projection.plan", "head.plan"))
    first = projection.read_bytes()
    head.rename(projection)
    head.write_bytes(first)
    words = "projection.plan: has no input video; give PROJECTION.plan first, then HEAD.plan"
    assert refusal(programs, tmp_path) == words


@pytest.mark.parametrize("value", [b"0.00", b"none", b"-3.5", b"inf "])
def test_a_video_without_a_length(programs, tmp_path, value):
    write_engines(tmp_path)
    write_features(tmp_path, duration_s=19.5)
    file = tmp_path / "video.safetensors"
    whole = file.read_bytes()
    assert whole.count(b"19.5") == 1
    file.write_bytes(whole.replace(b"19.5", value))
    words = "video.safetensors: expected its duration and the length of a clip in seconds; extract it again"
    assert refusal(programs, tmp_path) == words


def test_scores_that_nobody_wrote(programs, tmp_path):
    """The double of CUDA fills new memory with NaN."""
    write_engines(tmp_path, scores=None)
    write_features(tmp_path)
    words = "the head's output holds NaN or infinity; the precision is too small for the model: export it in fp32"
    assert refusal(programs, tmp_path) == words


def test_plans_cut_short(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path)
    head = tmp_path / "head.plan"
    head.write_bytes(head.read_bytes()[:-20])
    assert refusal(programs, tmp_path) == "head.plan: TensorRT cannot load it; build it here with  sdst build"
    head.unlink()
    assert refusal(programs, tmp_path) == "head.plan: cannot be read, or is empty"


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_feature_files_cut_short(programs, tmp_path, keep):
    write_engines(tmp_path)
    write_features(tmp_path)
    file = tmp_path / "video.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert refusal(programs, tmp_path).startswith("video.safetensors: ")


def test_a_plugin_library_that_is_none(programs, tmp_path):
    write_engines(tmp_path)
    write_features(tmp_path)
    assert refusal(programs, tmp_path, tmp_path / "none.so").startswith("none.so: TensorRT cannot use it")
