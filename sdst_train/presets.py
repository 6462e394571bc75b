"""Configs of the data sets in this field, by name. Sizes and rates: docs/method.md, section 4."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sdst_runtime.data.config import DataConfig

from .config import LossConfig, ModelConfig, TrainConfig

PRESETS: dict[str, TrainConfig] = {
    "qvhighlights": TrainConfig(preset="qvhighlights", workers=4),
    "charades": TrainConfig(
        preset="charades",
        epochs=50,
        batch_size=32,
        select_by="mIoU",
        workers=4,
        loss=LossConfig(highlight=0.01),
        data=DataConfig(
            root="data/charades",
            train="charades_sta_train.txt",
            val="charades_sta_test.txt",  # there is no validation split
            test="charades_sta_test.txt",
            durations=("Charades_v1_train.csv", "Charades_v1_test.csv"),
            clip_s=1.0,
            metrics="moments",
        ),
    ),
    "tacos": TrainConfig(
        preset="tacos",
        epochs=100,
        batch_size=32,
        select_by="mIoU",
        workers=4,
        loss=LossConfig(highlight=0.05),
        data=DataConfig(root="data/tacos", train="train.json", val="val.json", test="test.json", metrics="moments"),
    ),
    "demo": TrainConfig(  # a small SDST that learns in minutes; the others are for tens of thousands of steps
        preset="demo",
        epochs=6,
        batch_size=32,
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=40,
        gradient_clip=0.5,
        ema_decay=0.99,
        save_every_steps=50,
        seed=7,
        model=ModelConfig(width=128, queries=10, input_dropout=0.1),
        loss=LossConfig(highlight=0.3, overlap="giou"),
        data=DataConfig(root="demo-out", train="annotations/train.jsonl", val="annotations/val.jsonl", test=""),
    ),
}

_PLAIN = PRESETS["demo"]
PRESETS["demo-hard"] = replace(
    _PLAIN,
    preset="demo-hard",
    loss=replace(_PLAIN.loss, actionness_form="bce"),  # l1 dies on these videos (docs/ablation.md)
    data=replace(_PLAIN.data, root="demo-hard-out", negatives=0.33),  # of its validation queries a third is absent
)
DEMO_WORLDS: dict[str, Literal["plain", "hard"]] = {"demo": "plain", "demo-hard": "hard"}  # that presets are for
