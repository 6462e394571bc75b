"""Configurations that no model and no training has."""

from __future__ import annotations

import dataclasses

import pytest

from sdst_runtime.errors import InputError
from sdst_train.config import LossConfig, ModelConfig, TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention", "rsda"), ("feature_mode", "last"), ("query_init", ""), ("reference_init", "zeros"),
        ("gate", "tanh"), ("layer_order", "backward"), ("layers", 0), ("queries", 0), ("points", -1), ("heads", 0),
        ("video_width", 0), ("text_width", 0), ("ffn_ratio", 0), ("width", 0), ("width", 36), ("width", 30),
        ("input_dropout", 1.0), ("input_dropout", -0.1), ("drop_path", 1.5), ("drop_path", float("nan")),
    ],
)  # fmt: skip
def test_bad_model_config_names_the_field(field, value):
    changes = {field: value, **({"heads": 8} if value == 36 else {})}
    with pytest.raises(InputError, match=rf"{field}: expected .*got {value!r}") as caught:
        dataclasses.replace(ModelConfig(width=32, heads=2), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (TrainConfig, "epochs", 0), (TrainConfig, "batch_size", 0), (TrainConfig, "schedule", "linear"),
        (LossConfig, "overlap", "diou"),
    ],
)  # fmt: skip
def test_bad_training_config_names_the_field(config, field, value):
    with pytest.raises(InputError, match=rf"{field}: expected .*got {value!r}"):
        config(**{field: value})
