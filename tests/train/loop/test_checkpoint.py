"""Checkpoint files and what comes out of a head: written, read, refused, decoded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_world import CLIP_S, SPEC, TINY, make_samples
from torch import nn

from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import ContractError, InputError, SessionError
from sdst_runtime.files import pack_header
from sdst_runtime.grounding.decode import decode, predict
from sdst_train.loop.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path) -> tuple[Path, Checkpoint]:
    torch.manual_seed(3)
    model = SDST(TINY.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    made = Checkpoint(model, TINY, SPEC, 4, {"MR-full-mAP": 12.5}, usual_clips=40, longest_clips=60)
    save_checkpoint(tmp_path / "model.safetensors", made)
    return tmp_path / "model.safetensors", made


def test_checkpoint_round_trip(checkpoint):
    path, made = checkpoint
    loaded = load_checkpoint(path)
    assert not loaded.model.training
    assert (loaded.config, loaded.spec, loaded.epoch, loaded.metrics) == (TINY, SPEC, 4, {"MR-full-mAP": 12.5})
    assert (loaded.usual_clips, loaded.longest_clips) == (40, 60)
    samples = make_samples(5)
    assert predict(TorchSession(loaded.model), samples, CLIP_S) == predict(TorchSession(made.model), samples, CLIP_S)


def rewrite(path: Path, weights=None, **metadata) -> None:
    """Store a checkpoint again with other weights or metadata; None removes an entry."""
    with safe_open(path, "pt") as stored:
        old = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
        header = json.loads(stored.metadata()["sdst"]) | metadata
    kept = pack_header(**{name: text for name, text in header.items() if text is not None})
    save_file(weights(old) if weights else old, path, kept)


def test_an_older_checkpoint_does_not_tell_the_lengths(checkpoint):
    path, _ = checkpoint
    rewrite(path, usual_clips=None, longest_clips=None)
    loaded = load_checkpoint(path)
    assert (loaded.usual_clips, loaded.longest_clips) == (0, 0)


def test_checkpoint_missing(tmp_path):
    with pytest.raises(InputError, match=r"none\.safetensors: no such checkpoint; .*sdst train"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_checkpoint_truncated(checkpoint, keep):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable checkpoint"):
        load_checkpoint(path)


def test_checkpoint_not_ours(checkpoint):
    path, _ = checkpoint
    path.write_bytes(b"PK\x03\x04 a zip file of somebody else's, long enough to look like something")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="its metadata lacks config, spec, epoch, metrics; make the file again"):
        load_checkpoint(path)


def test_checkpoint_of_another_shape(checkpoint):
    path, _ = checkpoint
    wider = dataclasses.asdict(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, queries=6)))
    rewrite(path, config=json.dumps(wider))
    with pytest.raises(ContractError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "sparse.reference_logit is [5, 2], expected [6, 2]" in message
    assert "sparse.position is [5, 16], expected [6, 16]" in message
    assert str(path) in message
    assert "\n" not in message


def test_checkpoint_with_other_names(checkpoint):
    path, _ = checkpoint
    rewrite(path, lambda old: {("klass" + k[8:] if k.startswith("classify") else k): v for k, v in old.items()})
    with pytest.raises(ContractError, match=r"classify.weight is missing; .*klass.weight is unknown"):
        load_checkpoint(path)
    rewrite(path, lambda old: {"x": torch.zeros(1)})
    with pytest.raises(ContractError, match=r" and \d+ more; check the model's config"):
        load_checkpoint(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_with_the_prefix_of_a_wrapper(checkpoint, prefix):
    path, made = checkpoint
    rewrite(path, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    loaded = load_checkpoint(path).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.model.state_dict().items())


def test_a_file_of_torch_save_is_told_what_to_give(checkpoint, tmp_path):
    _, made = checkpoint
    torch.save({"state_dict": made.model.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"got a file of torch.save .* give RUN/best.safetensors"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_weights_with_nan_give_no_predictions(checkpoint):
    path, _ = checkpoint
    rewrite(path, lambda weights: {name: tensor * float("nan") for name, tensor in weights.items()})
    with pytest.raises(SessionError, match="of its output spans are NaN or infinite"):
        predict(TorchSession(load_checkpoint(path).model), make_samples(2), CLIP_S)


def test_checkpoint_that_cannot_be_written(checkpoint, tmp_path):
    _, made = checkpoint
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="cannot write"):
        save_checkpoint(tmp_path / "file" / "model.safetensors", made)
    assert (tmp_path / "file").read_text() == "kept"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "model.safetensors"}


# --- decoding --------------------------------------------------------------------------------------------------------


def test_decode_by_hand():
    """Fractions of 5 valid clips of 2 s in a video of 9 s: sorted by score, cut at 9 s, saliency without padding."""
    outputs = {
        "spans": np.array([[[0.0, 0.5], [0.4, 1.0], [0.2, 0.3]]], np.float32),
        "scores": np.array([[0.2, 0.9, 0.5]], np.float32),
        "saliency": np.array([[0.1, 0.2, 0.3, 0.4, 0.5, -1, -1]], np.float32),
    }
    (answer,) = decode(outputs, ["q"], [5], [9.0], CLIP_S)
    found = [(m.start_s, m.end_s, m.score) for m in answer.moments]
    np.testing.assert_allclose(found, [(4, 9, 0.9), (2, 3, 0.5), (0, 5, 0.2)], rtol=1e-6)
    np.testing.assert_allclose(answer.saliency, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_predictions_do_not_depend_on_the_batch(checkpoint):
    _, made = checkpoint
    samples = make_samples(9)
    together, alone = (predict(TorchSession(made.model), samples, CLIP_S, batch_size=n) for n in (9, 1))
    assert [row["qid"] for row in together] == list(range(9))
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a["pred_relevant_windows"], b["pred_relevant_windows"], atol=1e-4)
        np.testing.assert_allclose(a["pred_saliency_scores"], b["pred_saliency_scores"], atol=1e-5)


def test_session_switches_dropout_off():
    model = SDST(TINY.model).train()
    session = TorchSession(model)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    batch = pad_inputs([s.video for s in make_samples(3)], [s.text for s in make_samples(3)])
    first, second = session.run(batch), session.run(batch)
    assert set(first) == {"spans", "scores", "saliency"}
    assert all(np.array_equal(first[name], second[name]) for name in first)
