"""Small real things that several test files need: a backbone, a checkpoint, bundles, a video. Tests only read them.

Bundles take half a minute: one worker makes them, the others wait.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import TESTS

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports ONNX Runtime by itself
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two xdist workers share two cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take over 10 s of a core or wait as long, the longest first: so that no worker is left with one at the end
# (make test, which hands out whole files in the order in which they are collected).
LONGEST = (
    "real_tensorrt/test_builder.py",
    "train/loop/test_distributed.py",
    "runtime/serving/repository/test_triton_operation.py",
    "runtime/serving/test_overload.py",
    "runtime/corpus/test_corpus_command.py",
    "runtime/corpus/test_ray_engine.py",
    "runtime/serving/repository/test_triton_server.py",
    "train/backbone/test_extraction.py",
    "export/engine/test_rtx_build.py",
    "train/loop/test_resume.py",
    "verbs/demo/test_demo.py",
    "plugins/test_kernel_codegen.py",
    "runtime/serving/test_http.py",
    "runtime/serving/test_page.py",
    "runtime/pages/test_report_in_browser.py",
    "calib/int8/test_int8.py",
    "calib/int8/test_int8_vision.py",
    "train/loop/test_training_loop.py",
    "train/study/test_ablation.py",
    "verbs/test_plugins_command.py",
    "runtime/media/test_pipeline.py",
    "test_architecture.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@dataclass(frozen=True)
class Exported:
    """A random model, exported: `directory` is its bundle."""

    directory: Path
    backbone_path: Path
    checkpoint_path: Path


def shared(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this run of pytest, which `make` filled once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at torch's 400,000 objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A session takes one thread where a test asks for no number: models so small keep the others spinning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdst_runtime.sessions.onnxruntime.usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    """A bundle of random weights: K = 2, 28-pixel frames, the demo's tokenizer. .ci/matrix.py has one made before."""
    world = os.environ.get("SDST_TEST_WORLD")
    root = Path(world) if world else shared(tmp_path_factory, "exported", make_exported)
    return Exported(root / "bundle", root / "backbone.safetensors", root / "best.safetensors")


@pytest.fixture(scope="session")
def exported_fp16(exported, tmp_path_factory) -> Path:
    """The directory of the same model's fp16 bundle."""
    from sdst_export.bundle import export_bundle
    from sdst_train.backbone.towers import load_backbone
    from sdst_train.loop.checkpoint import load_checkpoint

    def make(folder: Path) -> None:
        checkpoint, backbone = load_checkpoint(exported.checkpoint_path), load_backbone(exported.backbone_path)
        export_bundle(checkpoint, backbone, folder / "fp16", precision="fp16")

    return shared(tmp_path_factory, "exported_fp16", make) / "fp16"


@pytest.fixture(scope="session")
def present(exported, tmp_path_factory) -> Exported:
    """The same model with a head that also gives the presence. .ci/matrix.py has one made before."""

    def make(folder: Path) -> None:
        from present_world import make_present

        make_present(exported.directory, exported.checkpoint_path, folder)

    world = os.environ.get("SDST_TEST_WORLD")
    root = Path(world) / "present" if world else shared(tmp_path_factory, "present", make)
    return Exported(root / "bundle", exported.backbone_path, root / "best.safetensors")


def make_exported(root: Path) -> None:
    """A backbone, a checkpoint and their fp32 bundle."""
    import torch

    from sdst.demo.align import demo_tokenizer
    from sdst_export.bundle import export_bundle
    from sdst_runtime.contracts import FeatureSpec
    from sdst_train.backbone.text import TextConfig, TextEncoder
    from sdst_train.backbone.towers import load_backbone, save_backbone
    from sdst_train.backbone.vision import VisionConfig, VisionEncoder
    from sdst_train.config import ModelConfig, TrainConfig
    from sdst_train.loop.checkpoint import Checkpoint, save_checkpoint
    from sdst_train.model.sdst import SDST

    torch.manual_seed(0)
    tokenizer = demo_tokenizer()
    vision = VisionEncoder(
        VisionConfig(
            image_size=28,
            patch_size=14,
            frames=2,
            width=32,
            depth=3,
            heads=2,
            mlp_width=48,
            pool_heads=2,
            output_width=12,
        )
    )
    text = TextEncoder(
        TextConfig(vocab_size=tokenizer.get_vocab_size(), width=16, depth=3, heads=2, mlp_width=32, max_positions=24)
    )
    spec = FeatureSpec(
        backbone="test",
        backbone_sha256="",
        layers=2,
        pool="adaptive",
        frames_per_clip=2,
        clip_s=1.0,
        image_size=28,
        resize="bicubic",
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        video_width=12,
        text_model="test",
        max_tokens=24,
        text_width=16,
    )
    spec = save_backbone(root / "backbone.safetensors", vision, text, spec, tokenizer.to_str(), torch.float32)
    model = SDST(ModelConfig(video_width=12, text_width=16, layers=2, width=32, heads=4, points=2, queries=5)).eval()
    for name, parameter in model.named_parameters():  # nothing stays at its initial zero
        if parameter.dim() > 1:
            scale = 0.1 if "offset" in name else 1.0  # steep offsets amplify float32's rounding on long videos
            torch.nn.init.normal_(parameter, std=1.0 if "reference" in name else scale * parameter[0].numel() ** -0.5)
    checkpoint = Checkpoint(model, TrainConfig(model=model.config), spec, 3, {"MR-full-mAP": 1.0})
    save_checkpoint(root / "best.safetensors", checkpoint)
    export_bundle(checkpoint, load_backbone(root / "backbone.safetensors"), root / "bundle")


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    """7.4 s of moving noise, 40x32 pixels, 10 frames a second."""
    return write_noise(tmp_path_factory.mktemp("video") / "noise.mp4")


def write_noise(path: Path, seed: int = 0, frames: int = 74) -> Path:
    import av

    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        stream.time_base = Fraction(1, 10)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 2 * i, axis=1), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for the tests of one file: while Playwright is open nothing else may run asyncio in this thread."""
    from browser import chromium

    with chromium() as started:
        yield started


@pytest.fixture(scope="session")
def host_library_path(tmp_path_factory) -> Path:
    """libsdst_plugins_host.so, built from this checkout once for all workers."""
    from host_library import build_host_library

    base = tmp_path_factory.getbasetemp()
    return build_host_library(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
