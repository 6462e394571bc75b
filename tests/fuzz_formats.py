"""Small real files of every format, how each is damaged, and the reader that a user's command would call on it.

A format's folder holds sound files; `target` names the one that is damaged. `read(folder)` must return or raise an
SdstError. Everything is imported where it is used: a worker that reads JSON needs no torch.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_mutations as damage

Damage = Callable[[bytes, random.Random], bytes]
QUERY = "a red circle moves to the left"
ROW = {
    "qid": 7, "query": QUERY, "duration": 20.0, "vid": "v1", "relevant_windows": [[2.0, 6.0]],
    "relevant_clip_ids": [1, 2], "saliency_scores": [[4, 3, 4], [3, 3, 2]],
}  # fmt: skip
PREDICTION = {"qid": 7, "pred_relevant_windows": [[2.0, 6.0, 0.9], [0.0, 2.0, 0.1]], "pred_saliency_scores": [0.5] * 10}


@dataclass(frozen=True)
class Format:
    """How one kind of file is made, damaged and read."""

    target: str  # the file in its folder
    make: Callable[[Path, Path], Any]  # gets the folder, and that of the exported model
    read: Callable[[Path], Any]
    damages: tuple[Damage, ...]
    refused: bool = False  # the sound file, too, ends in an error: a whole one is too large for a test


JSON, LINES = (damage.damage_json, damage.damage_bytes), (damage.damage_lines, damage.damage_bytes)
TENSORS, BYTES = (damage.damage_header, damage.damage_header, damage.damage_bytes), (damage.damage_bytes,)


# ---------------------------------------------------------------- sound files


def _text(name: str, content: str) -> Callable[[Path, Path], Any]:
    return lambda folder, exported: (folder / name).write_text(content)


def _bundle(folder: Path, exported: Path) -> None:
    shutil.copytree(exported / "bundle", folder, dirs_exist_ok=True)


def _charades(folder: Path, exported: Path) -> None:
    (folder / "a.txt").write_text("v1 2.0 6.0##a person opens the door.\nv1 7.0 9.5##a person sits.\n")
    (folder / "d.csv").write_text("id,length\nv1,20.0\n")


def _features(folder: Path, exported: Path) -> None:
    from feature_files import SPEC, text_of, video_of

    from sdst_runtime.contracts import TextFeatures, VideoFeatures
    from sdst_runtime.data.features import write_text_features, write_video_features

    write_video_features(folder / "video" / "v1.safetensors", VideoFeatures(video_of("v1"), 20.0, SPEC))
    write_text_features(folder / "text" / "q.safetensors", TextFeatures(text_of(QUERY), QUERY, SPEC))


def _loose(folder: Path, exported: Path) -> None:
    from feature_files import write_text, write_video

    write_video(folder, "v1")
    write_text(folder, QUERY)


def _packed(folder: Path, exported: Path) -> None:
    from sdst_runtime.data.packing import pack_features

    _loose(folder / "loose", exported)
    pack_features(folder / "loose", folder)
    shutil.rmtree(folder / "loose")


def _released(folder: Path, exported: Path) -> None:
    import numpy as np

    for name, key, shape in (("vid_feats/v1", "visual_feats_interm_pooled", (10, 4, 6)),
                             ("txt_feats/7", "text_feats", (4, 5, 3))):  # fmt: skip
        path = folder / f"{name}.npz"
        path.parent.mkdir()
        np.savez(path, **{key: np.zeros(shape, np.float16)})


def _copied(source: str, name: str) -> Callable[[Path, Path], Any]:
    return lambda folder, exported: shutil.copyfile(exported / source, folder / name)


def _released_checkpoint(folder: Path, exported: Path) -> None:
    import torch

    torch.save({"module": {"vision_encoder.cls_token": torch.zeros(1, 1, 8)}}, folder / "release.pt")


def _state(folder: Path, exported: Path) -> None:
    import torch

    from sdst_train.loop.state import RunState, save_state

    weights = {"w": torch.zeros(3)}
    save_state(folder, RunState(4, weights, {}, {"state": {}, "param_groups": []}, {}, 0.5, 1, 2.0, "{}", "s", "m"))
    (path,) = (folder / "state").iterdir()
    path.rename(folder / "state.pt")


def _run(folder: Path, exported: Path) -> None:
    import dataclasses

    from sdst_runtime.files import write_json, write_jsonl
    from sdst_train.presets import PRESETS

    facts = {
        "started": "2026-11-28T04:50:40+00:00", "versions": {"torch": "2.13.0"}, "machine": {"processor": "x"},
        "parameters": 1000, "train_queries": 5, "val_queries": 2, "world_size": 1, "repairs": [],
        "finished": {"reason": "all epochs", "best_epoch": 1, "seconds": 3.5},
    }  # fmt: skip
    lengths = {name: {"MR-mAP": {"average": 1.0}, "MR-R1": {"0.5": 2.0, "0.7": None}} for name in ("short", "long")}
    write_json(folder / "val_metrics.json", {"brief": {"MR-full-mAP": 10.0}, **lengths})
    write_json(folder / "config.json", dataclasses.asdict(PRESETS["demo"]))
    write_json(folder / "run.json", facts)
    row = {"epoch": 1, "step": 3, "loss": 0.5, "rate": 1e-3, "MR-full-mAP": 10.0, "MR-full-R1@0.5": 20.0}
    write_jsonl(folder / "metrics.jsonl", [row])
    write_jsonl(folder / "steps.jsonl", [row, row | {"step": 4}])


def _plan(folder: Path, exported: Path) -> None:
    from engine_files import plan_bytes, sidecar

    from sdst_runtime.sessions.tensorrt.sidecar import write_sidecar

    (folder / "head.plan").write_bytes(plan_bytes())
    write_sidecar(folder / "head.plan", sidecar(plan_bytes()))


def _video(folder: Path, exported: Path) -> None:
    from sdst_runtime.doctor.installation import ASSETS

    shutil.copyfile(ASSETS / "colours.mp4", folder / "v.mp4")


def _check_model(folder: Path, exported: Path) -> None:
    from sdst_runtime.doctor.installation import ASSETS

    shutil.copyfile(ASSETS / "check.onnx", folder / "m.onnx")


# ---------------------------------------------------------------- readers


def _read_bundle(folder: Path) -> None:
    from sdst_runtime.grounding.bundle import Bundle

    Bundle.open(folder)


def _read_annotations(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> None:
        from sdst_runtime.data.annotations import read_annotations, read_queries

        first = _tried(lambda: read_queries(folder / name))
        read_annotations(folder / name, [folder / "d.csv"])
        if first is not None:
            raise first

    return read


def _tried(call: Callable[[], Any]) -> Exception | None:
    """The SdstError of a call, kept for later."""
    from sdst_runtime.errors import SdstError

    try:
        call()
    except SdstError as error:
        return error
    return None


def _read_video_features(folder: Path) -> None:
    from sdst_runtime.data.features import read_video_features

    read_video_features(folder / "video" / "v1.safetensors")


def _read_text_features(folder: Path) -> None:
    from sdst_runtime.data.features import read_text_features

    read_text_features(folder / "text" / "q.safetensors")


def _read_store(folder: Path) -> None:
    import numpy as np

    from sdst_runtime.data.annotations import Query
    from sdst_runtime.data.stores import open_features
    from sdst_runtime.data.verification import verify_features

    if not (folder / "vid_feats").is_dir():
        verify_features(folder, [Query(7, QUERY, "v1")])
    store = open_features(folder, 2.0)
    np.asarray(store.video(ROW))
    np.asarray(store.text(ROW))


def _read_packing(folder: Path) -> None:
    from sdst_runtime.data.packing import pack_features

    pack_features(folder, folder / "packed")


def _read_checkpoint(folder: Path) -> None:
    from sdst_train.loop.checkpoint import load_checkpoint

    load_checkpoint(folder / "c.safetensors")


def _read_backbone(folder: Path) -> None:
    from sdst_train.backbone.towers import load_backbone

    load_backbone(folder / "b.safetensors").tokenizer()


def _read_release(folder: Path) -> None:
    from sdst_train.backbone.release import load_internvideo2

    load_internvideo2(folder / "release.pt")


def _read_state(folder: Path) -> None:
    import hashlib

    from sdst_train.loop.state import load_state

    data = (folder / "state.pt").read_bytes()
    (folder / "state").mkdir(exist_ok=True)
    (folder / "state" / f"step-00000004-{hashlib.sha256(data).hexdigest()[:16]}.pt").write_bytes(data)
    load_state(folder, lambda line: None)


def _read_run(folder: Path) -> None:
    from sdst_train.loop.log import RunLog
    from sdst_train.loop.run_report import write_run_report
    from sdst_train.loop.train import finished

    first = _tried(lambda: finished(folder))
    write_run_report(folder)
    log = RunLog(folder, 4)
    try:
        if log.steps:
            log.mean_losses(log.steps[0]["epoch"])
    finally:
        log.close()
    if first is not None:
        raise first


def _read_plan(folder: Path) -> None:
    from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, read_plan, read_sidecar, require_machine

    sidecar = read_sidecar(folder / "head.plan")
    require_machine(folder / "head.plan", sidecar, MachineRecord("10.3.0", "8.7", "Mock GPU", "570.10", "12.6"))
    [record.info() for record in (*sidecar.inputs.values(), *sidecar.outputs.values())]
    sidecar.metadata()
    read_plan(folder / "head.plan", sidecar)


def _read_tokenizer(folder: Path) -> None:
    from sdst_runtime.grounding.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    tokenizer.encode_batch([QUERY, "a ring"], 40)
    int(tokenizer.vocab_size)


def _read_model(folder: Path) -> None:
    from sdst_runtime.doctor.examine import random_inputs
    from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession

    with OnnxRuntimeSession(folder / "m.onnx", threads=1, device="cpu") as session:
        session.run(random_inputs(session))


def _read_video(folder: Path) -> None:
    from sdst_runtime.contracts import FeatureSpec
    from sdst_runtime.media.clips import read_clips

    half = (0.5, 0.5, 0.5)
    read_clips(
        folder / "v.mp4", FeatureSpec("check", "", 1, "mean", 2, 1.0, 32, "bicubic", half, half, 1, "check", 1, 1)
    )


def _read_keep(folder: Path) -> None:
    from sdst_export.keep import read_keep

    read_keep(folder / "keep-fp32.txt")


def _read_config(folder: Path) -> None:
    from sdst_train.config import parse_config

    parse_config((folder / "config.json").read_bytes(), folder / "config.json")


def _read_predictions(folder: Path) -> None:
    from sdst_runtime.files import read_jsonl
    from sdst_runtime.metrics.evaluator import evaluate, moment_metrics

    rows = read_jsonl(folder / "p.jsonl")
    evaluate(rows, [ROW])
    moment_metrics(rows, [ROW])


def _config_text() -> str:
    return json.dumps({"epochs": 3, "seed": 1, "data": {"root": "x", "durations": ["a.csv"]}, "loss": {}, "model": {}})


_TACOS = {"s1.avi": {"timestamps": [[50, 200]], "sentences": ["He cuts the bread."], "fps": 25.0, "num_frames": 1000}}
FORMATS: dict[str, Format] = {
    "bundle": Format("bundle.json", _bundle, _read_bundle, JSON),
    "annotations.jsonl": Format(
        "a.jsonl", _text("a.jsonl", json.dumps(ROW) + "\n"), _read_annotations("a.jsonl"), LINES
    ),
    "annotations.json": Format("a.json", _text("a.json", json.dumps([ROW])), _read_annotations("a.json"), JSON),
    "annotations.tacos": Format("a.json", _text("a.json", json.dumps(_TACOS)), _read_annotations("a.json"), JSON),
    "annotations.charades": Format("a.txt", _charades, _read_annotations("a.txt"), BYTES),
    "durations.csv": Format("d.csv", _charades, _read_annotations("a.txt"), BYTES),
    "video features": Format("video/v1.safetensors", _features, _read_video_features, TENSORS),
    "text features": Format("text/q.safetensors", _features, _read_text_features, TENSORS),
    "loose": Format("video/v1.safetensors", _loose, _read_store, TENSORS),
    "packing": Format("video/v1.safetensors", _loose, _read_packing, TENSORS),
    "packed": Format("video-00000.safetensors", _packed, _read_store, TENSORS),
    "packed text": Format("text-00000.safetensors", _packed, _read_store, TENSORS),
    "released": Format("vid_feats/v1.npz", _released, _read_store, (damage.damage_archive,)),
    "checkpoint": Format("c.safetensors", _copied("best.safetensors", "c.safetensors"), _read_checkpoint, TENSORS),
    "backbone": Format("b.safetensors", _copied("backbone.safetensors", "b.safetensors"), _read_backbone, TENSORS),
    "release": Format("release.pt", _released_checkpoint, _read_release, BYTES, refused=True),
    "state": Format("state.pt", _state, _read_state, BYTES),
    "run.json": Format("run.json", _run, _read_run, JSON),
    "run config": Format("config.json", _run, _read_run, JSON),
    "steps.jsonl": Format("steps.jsonl", _run, _read_run, LINES),
    "metrics.jsonl": Format("metrics.jsonl", _run, _read_run, LINES),
    "val_metrics.json": Format("val_metrics.json", _run, _read_run, JSON),
    "sidecar": Format("head.plan.json", _plan, _read_plan, JSON),
    "plan": Format("head.plan", _plan, _read_plan, BYTES),
    "tokenizer": Format("tokenizer.json", _copied("bundle/tokenizer.json", "tokenizer.json"), _read_tokenizer, JSON),
    "onnx": Format("m.onnx", _check_model, _read_model, BYTES),
    "onnx projection": Format("m.onnx", _copied("bundle/projection.onnx", "m.onnx"), _read_model, BYTES),
    "video": Format("v.mp4", _video, _read_video, BYTES),
    "keep-fp32": Format("keep-fp32.txt", _text("keep-fp32.txt", "head: a.b  # c\nvision: d\n"), _read_keep, BYTES),
    "config": Format("config.json", _text("config.json", _config_text()), _read_config, JSON),
    "predictions": Format("p.jsonl", _text("p.jsonl", json.dumps(PREDICTION) + "\n"), _read_predictions, LINES),
}
