"""`sdst demo`: the whole line on rendered videos, told from top to bottom.

Renders, extracts, trains, evaluates, exports, compares torch with ONNX Runtime, grounds held-out videos from their
files, finds each sentence's video among all, and writes report.html and summary.json. docs/demo.md says what the
numbers mean.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sdst_calib.parity.measure import max_abs_error
from sdst_calib.scores.measure import with_other_sentences
from sdst_export.bundle import export_bundle
from sdst_runtime import Grounder, bounds
from sdst_runtime.data.annotations import is_absent
from sdst_runtime.data.dataset import Sample, batches_by_length, load_split, pad_inputs
from sdst_runtime.errors import InputError
from sdst_runtime.files import read_jsonl, write_json, write_jsonl
from sdst_runtime.grounding.decode import predict
from sdst_runtime.machine import load_warning, machine_facts
from sdst_runtime.pages.panels import QueryPanel, VideoPanel
from sdst_runtime.pages.report import Curve, MetricRow, Report, write_report
from sdst_train.backbone.towers import Backbone
from sdst_train.config import TrainConfig
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import in_both_units, parameter_count
from sdst_train.model.torch_session import TorchSession
from sdst_train.presets import DEMO_WORLDS, PRESETS

from ..consoles import make_console
from ..panels import latency_rows, video_panel
from ..progress import counted
from ..training import train_with_progress
from .dataset import CLIP_S, World, render_dataset
from .numbers import METRICS, in_parts, measured, presence, tables
from .place import clear_run, demo_folder
from .prepare import SEED, TRAIN_VIDEOS, VAL_VIDEOS, extract
from .search import facts as search_facts
from .search import find_videos
from .web import is_finished, require_server, show_page

PRESET_OF = {world: preset for preset, world in DEMO_WORLDS.items()}
SHOWN_VIDEOS = 4  # in the report


def demo(
    *,
    out: Path | None = None,
    world: World = "plain",
    seed: int = SEED,
    train_videos: int = TRAIN_VIDEOS,
    val_videos: int = VAL_VIDEOS,
    epochs: int | None = None,
    web: bool = False,
) -> None:
    """Run the whole line on rendered videos: about 4.5 minutes on 2 cores, of the plain world.

    Args:
        out: Folder for videos, features, the run, the bundle, report.html and summary.json; default: demo-out, or
            demo-hard-out for the hard world.
        world: plain, or hard: events from 2 s to half the video that begin slowly, sequences, absent queries.
        seed: Of the videos and of training.
        train_videos: Videos to train on.
        val_videos: Held-out videos to evaluate on; a share of their combinations is never trained on.
        epochs: Passes over the training queries; default: the preset's.
        web: Then open a page to ask these videos in the browser; a demo that is finished in `out` is not run again.
    """
    preset = PRESETS[PRESET_OF[world]]
    out, epochs = out or Path(preset.data.root), preset.epochs if epochs is None else epochs
    if web:
        require_server()
        if is_finished(out):
            show_page(out)
            return
    if min(train_videos, epochs) < 1 or val_videos < 2:
        raise InputError(
            "expected a training video, two held-out videos and an epoch at least, got "
            f"{train_videos}, {val_videos} and {epochs}"
        )
    bounds.require("seed", seed, bounds.SEED)
    with demo_folder(out):
        _run(demo_config(out, epochs, seed, world), train_videos, val_videos)
    if web:
        show_page(out)


def _run(config: TrainConfig, train_videos: int, val_videos: int) -> None:
    out, seed, world = Path(config.data.root), config.seed, DEMO_WORLDS[config.preset]
    load = load_warning()
    stages = Stages(make_console(stderr=True))
    with stages.timed("render", "videos") as on_done:
        render_dataset(out, seed=seed, train_videos=train_videos, val_videos=val_videos, world=world, progress=on_done)

    with stages.timed("extract", "videos") as on_done:
        backbone = extract(out, "features", "adaptive", on_done)

    with stages.timed("train"):
        checkpoint = train_with_progress(config, clear_run(out))  # a demo is run anew
        train_samples, val_samples = (load_split(config.data, split).samples for split in ("train", "val"))
        truth = [sample.row for sample in val_samples]

    with stages.timed("evaluate"):
        torch_head = TorchSession(checkpoint.model)
        rows = predict(torch_head, val_samples, CLIP_S)
        write_jsonl(out / "run" / "val_predictions.jsonl", rows)
        control = predict(torch_head, with_other_sentences(val_samples), CLIP_S)

    with stages.timed("export"):
        bundle, _ = export_bundle(checkpoint, backbone, out / "bundle", stages.say)

    with stages.timed("compare"):
        onnx_head = bundle.grounding_model()
        errors = max_abs_error(torch_head, onnx_head, head_batches(val_samples))
        onnx_metrics = measured(predict(onnx_head, val_samples, CLIP_S), truth)

    with stages.timed("ground"):
        grounder = Grounder.load(bundle.directory)
        panels = ground_videos(grounder, out, val_samples)

    with stages.timed("find"):
        found = find_videos(bundle, out, val_samples)

    summary = {
        **measured(rows, truth),
        "shuffled_queries": measured(control, truth),
        "onnx": onnx_metrics,
        "onnx_max_abs_error": float(np.max(list(errors.values()))),  # NaN stays NaN
        "parameters": parameters(checkpoint, backbone),
        "queries": {
            "train": len(train_samples),
            "val": len(truth),
            "val_held_out_combination": sum(row["held_out_combination"] for row in truth),
            "val_absent": sum(map(is_absent, truth)),
        },
        **in_parts(rows, truth),
        **presence(rows, control, truth),
        "find_video": found,
        "best_epoch": checkpoint.epoch,
        "world": world,
        "seed": seed,
        "machine": dict(machine_facts()) | {"torch": torch.__version__},
        "seconds": stages.seconds,
    }
    write_report(out / "report.html", demo_report(summary, panels, grounder, out / "run", load))
    write_json(out / "summary.json", summary)
    show(stages.console, summary, out)


def demo_config(out: Path, epochs: int, seed: int, world: World = "plain") -> TrainConfig:
    """The preset of a world on the data in `out`."""
    preset = PRESETS[PRESET_OF[world]]
    return dataclasses.replace(preset, epochs=epochs, seed=seed, data=dataclasses.replace(preset.data, root=str(out)))


def head_batches(samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """The head's inputs for all samples, in batches."""
    for batch in batches_by_length(samples, 32):
        yield pad_inputs([s.video for s in batch], [s.text for s in batch])


def ground_videos(grounder: Grounder, out: Path, samples: Sequence[Sample]) -> tuple[VideoPanel, ...]:
    """Held-out videos from their files, with their true windows, for the report."""
    panels = []
    for vid in list(dict.fromkeys(s.row["vid"] for s in samples))[:SHOWN_VIDEOS]:
        rows = [s.row for s in samples if s.row["vid"] == vid]
        path = out / "videos" / f"{vid}.mp4"
        features = grounder.encode(path)
        answers = [grounder.ground(features, row["query"]) for row in rows]  # one by one: the latency of one question
        queries = tuple(
            QueryPanel(answer, tuple((start, end) for start, end in row["relevant_windows"]))
            for answer, row in zip(answers, rows, strict=True)
        )
        unseen, absent = sum(row["held_out_combination"] for row in rows), sum(map(is_absent, rows))
        note = f"{unseen} of {len(rows)} queries name an unseen combination"
        note += f", {absent} are about what the video does not show" if absent else ""
        panels.append(video_panel(path, features, queries, note))
    return tuple(panels)


def parameters(checkpoint: Checkpoint, backbone: Backbone) -> dict[str, int]:
    """Trained parameters of the head, frozen ones of the towers."""
    return {
        "head": parameter_count(checkpoint.model),
        "vision": sum(p.numel() for p in backbone.vision.parameters()),
        "text": sum(p.numel() for p in backbone.text.parameters()),
    }


def demo_report(
    summary: dict[str, Any], panels: tuple[VideoPanel, ...], grounder: Grounder, run: Path, load: str = ""
) -> Report:
    """The page: numbers beside their control, curves of training, and videos to look at.

    `load` is what `load_warning` said before the first time was taken.
    """
    log = read_jsonl(run / "metrics.jsonl")
    control = summary["shuffled_queries"]
    counts, queries = summary["parameters"], summary["queries"]
    return Report(
        title="SDST demo",
        subtitle="Rendered videos, a tiny backbone, a small SDST: trained here, exported, grounded with ONNX Runtime",
        videos=panels,
        latency=latency_rows(grounder, None),
        machine=tuple(summary["machine"].items()),
        metrics=tuple(MetricRow(name, summary[name], control[name]) for name in control),
        stages=tuple(summary["seconds"].items()),
        curves=(
            Curve("Loss", tuple((row["epoch"], {"training": row["loss"]}) for row in log)),
            Curve(
                "Validation, percent",
                tuple(
                    (row["epoch"], {name: row[METRICS[name]] for name in ("R1@0.5", "R1@0.7", "mAP")}) for row in log
                ),
            ),
        ),
        facts=(
            ("queries", f"{queries['train']} training, {queries['val']} held out"),
            ("unseen combinations", f"{queries['val_held_out_combination']} of the held-out queries"),
            *((("absent", f"{queries['val_absent']} of the held-out queries"),) if queries["val_absent"] else ()),
            ("trained parameters", in_both_units(counts["head"])),
            ("frozen parameters", f"vision {counts['vision']:,}, text {counts['text']:,}"),
            ("torch against ONNX Runtime", f"{summary['onnx_max_abs_error']:.1e} max abs error"),
            *search_facts(summary["find_video"]),
        ),
        tables=tables(summary),
        warnings=(load,) if load else (),
        notes=(
            "The control replaces each sentence by one of another video. A model that ignores the sentence scores the "
            "same under it, so the gap is what the answers owe to the sentence.",
            "The best epoch was chosen by mAP on these same held-out videos.",
        ),
    )


@dataclass
class Stages:
    """Runs the stages of the demo: a line and a bar while one works, its seconds afterwards."""

    console: Console
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def say(self, line: str) -> None:
        """Print a line under the stage's name."""
        self.console.print(f"  {line}")

    @contextmanager
    def timed(self, name: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """Time a block. It gets a function (done, total) that moves a bar."""
        self.console.print(name, style="bold")
        start = time.perf_counter()
        if unit:
            with counted(f"  {unit}", self.console) as on_done:
                yield on_done
        else:
            yield lambda done, total: None
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.say(f"{self.seconds[name]:.1f} s")


def show(console: Console, summary: dict[str, Any], out: Path) -> None:
    """The numbers and where to look next."""
    table = Table("metric", "held-out videos", "shuffled queries", "ONNX Runtime")
    for name, control in summary["shuffled_queries"].items():
        table.add_row(name, f"{summary[name]:.2f}", f"{control:.2f}", f"{summary['onnx'][name]:.2f}")
    console.print(table)
    for part in tables(summary):
        shown = Table(*part.columns, title=part.title, caption=part.note)
        for cells in part.rows:
            shown.add_row(*cells)
        console.print(shown)
    row = read_jsonl(out / "annotations" / "val.jsonl")[0]
    command = ("sdst", "ground", f"{out}/videos/{row['vid']}.mp4", row["query"], "--bundle", f"{out}/bundle")
    console.print(f"trained parameters: {in_both_units(summary['parameters']['head'])}")
    console.print(f"torch against ONNX Runtime: max abs error {summary['onnx_max_abs_error']:.1e}")
    line = f"{sum(summary['seconds'].values()):.0f} s in all. Look at {out}/report.html, or ask:"
    console.print(line, f"\n  {shlex.join(command)}", soft_wrap=True)
