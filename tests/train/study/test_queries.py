"""`sdst inspect queries`: slots that are known to win, the entropy of their use, and what is left out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_world import LAYERS, SPEC, TINY, make_samples, sample_of, write_dataset

from sdst.cli import main
from sdst.inspected import label
from sdst_runtime.data.dataset import Sample
from sdst_runtime.errors import InputError
from sdst_train.loop.batches import collate
from sdst_train.loop.checkpoint import Checkpoint, save_checkpoint
from sdst_train.loop.losses import match
from sdst_train.model.sdst import SDST
from sdst_train.study.queries import Matches, draw, groups, record_matches, tabulate, use

torch.set_num_threads(1)
WINDOWS_S = ([[4, 8]], [[4, 8]], [[0, 4], [16, 20]], [[0, 4], [8, 12], [16, 20]])  # of videos of 20 s
ABSENT = sample_of(qid=9, query="nothing", relevant_windows=[], absent=True)
SAMPLES = [sample_of(qid=i, vid=f"v{i}", relevant_windows=windows) for i, windows in enumerate(WINDOWS_S)]
COUNTS = {"all": (2, 2, 1, 0, 2), "1": (0, 2, 0, 0, 0), "2": (1, 0, 0, 0, 1), "3 or more": (1, 0, 1, 0, 1)}


def known_checkpoint() -> Checkpoint:
    """Five slots that stay where they begin, centres 0.1 to 0.9, all classed alike: the nearest wins; slot 3 scores."""
    torch.manual_seed(0)
    model = SDST(TINY.model).eval()
    torch.nn.init.zeros_(model.classify.weight)

    def actionness(dense: torch.Tensor, span: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.1, 0.2, 0.3, 0.9, 0.4]).expand(len(dense), -1)

    model.actionness.forward = actionness
    return Checkpoint(model, TINY, SPEC, 1, {"MR-full-mAP": 1.0})


def wild_checkpoint() -> Checkpoint:
    """Moments that differ between steps and samples."""
    torch.manual_seed(1)
    model = SDST(TINY.model).eval()
    for layer in (model.sparse.span[-1], model.classify):
        torch.nn.init.normal_(layer.weight)
    return Checkpoint(model, TINY, SPEC, 1, {"MR-full-mAP": 1.0})


def by_hand(samples: list[Sample], checkpoint: Checkpoint) -> tuple[np.ndarray, np.ndarray]:
    """Slots that win, S K M, and that score highest, S: each sample alone."""
    won, top = np.zeros((len(samples), LAYERS, TINY.model.queries), bool), []
    for s, sample in enumerate(samples):
        batch = collate([sample], [0.0])
        with torch.no_grad():
            out = checkpoint.model(**batch.inputs)
            moments = match(out.logit_KBM, out.span_KBM2, batch.targets, checkpoint.config.loss)
            spans, scores, *_ = checkpoint.model.ground(**batch.inputs)
        assert spans.shape[1] == TINY.model.queries
        top.append(int(scores[0].argmax()))
        for step, slots in enumerate(moments[:, 0].tolist()):
            won[s, step, slots] = True
    return won, np.array(top)


def test_the_nearest_slots_win():
    matches = record_matches(known_checkpoint(), [*SAMPLES, ABSENT], batch_size=3)
    assert matches.absent == 1
    assert matches.matched_SKM.shape == (4, 2, 5)
    np.testing.assert_allclose(matches.reference_M2[:, 0], [0.1, 0.3, 0.5, 0.7, 0.9], atol=1e-6)
    table = tabulate(matches)
    assert [(row.windows, row.step) for row in table] == [(n, step) for n in COUNTS for step in (1, 2, "score")]
    assert {row.windows: row.queries for row in table} == {"all": 4, "1": 2, "2": 1, "3 or more": 1}
    for row in table:
        expected = (0, 0, 0, row.queries, 0) if row.step == "score" else COUNTS[row.windows]
        assert row.counts == expected, row
    every = table[0]
    assert (every.used, every.most_used) == (4, 1)
    assert every.most_share == pytest.approx(100 * 2 / 7)
    bits = 3 * 2 / 7 * math.log2(7 / 2) + 1 / 7 * math.log2(7)
    assert every.entropy_bits == pytest.approx(bits)
    assert every.entropy_share == pytest.approx(bits / math.log2(5))
    one = table[3]
    assert (one.used, one.entropy_bits, one.entropy_share, one.most_used, one.most_share) == (1, 0, 0, 2, 100)


def test_matches_are_those_of_the_losses():
    """In batches as alone, and the scores as `ground` gives them."""
    samples = sorted(make_samples(7), key=lambda sample: len(sample.video))
    checkpoint = wild_checkpoint()
    matches = record_matches(checkpoint, samples, batch_size=3)
    won, top = by_hand(samples, checkpoint)
    np.testing.assert_array_equal(matches.matched_SKM, won)
    np.testing.assert_array_equal(matches.top_S, top)
    assert len(np.unique(won.reshape(-1, 5), axis=0)) > 2
    assert (won.sum(2) == [[len(sample.windows)] for sample in samples]).all()


def test_entropy():
    uniform, one = use("all", 8, 1, np.full(8, 3)), use("all", 8, 1, np.eye(8, dtype=int)[5] * 4)
    assert (uniform.used, uniform.entropy_bits, uniform.entropy_share, uniform.most_share) == (8, 3.0, 1.0, 12.5)
    assert (one.used, one.entropy_bits, one.entropy_share, one.most_used, one.most_share) == (1, 0.0, 0.0, 6, 100.0)
    half = use("all", 8, 1, np.array([2, 0, 0, 2, 0, 0, 0, 0]))
    assert (half.entropy_bits, half.entropy_share, half.most_used) == (1.0, pytest.approx(1 / 3), 1)
    assert use("all", 8, 1, np.array([4])).entropy_share == 0


def test_numbers_of_windows_that_no_query_has_are_left_out():
    matches = Matches(np.ones((3, 1, 2), bool), np.zeros(3, int), np.array([1, 3, 7]), np.zeros((2, 2)), 0)
    assert {name: chosen.tolist() for name, chosen in groups(matches).items()} == {
        "all": [True] * 3, "1": [True, False, False], "3 or more": [False, True, True],
    }  # fmt: skip


def test_the_picture_takes_runs_of_different_size():
    large = Matches(np.ones((3, 2, 40), bool), np.zeros(3, int), np.ones(3, int), np.full((40, 2), 0.5), 0)
    matches = record_matches(known_checkpoint(), SAMPLES)
    assert draw({"one": matches, "other": large}).startswith(b"\x89PNG")


def test_nothing_to_match_is_refused():
    with pytest.raises(InputError, match="1 queries, none with a window: nothing to match"):
        record_matches(known_checkpoint(), [ABSENT])


# --- the command -----------------------------------------------------------------------------------------------------


def write_run(directory: Path, root: Path, configured: Path) -> Path:
    data = write_dataset(root, SAMPLES, [*SAMPLES, ABSENT])
    checkpoint = known_checkpoint()
    config = dataclasses.replace(checkpoint.config, data=dataclasses.replace(data, root=str(configured)))
    save_checkpoint(directory / "best.safetensors", dataclasses.replace(checkpoint, config=config))
    return directory


def test_the_command_draws_and_tells_of_data_that_were_moved(tmp_path, capsys):
    run = write_run(tmp_path / "run", tmp_path / "data", tmp_path / "gone")
    assert main(["inspect", "queries", str(run)]) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
    assert main(["inspect", "queries", str(run), "--root", str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    assert "1 absent queries have no window: left out" in " ".join(printed.split())
    assert "used: of 5 slots" in printed
    found = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["all", "4", "1", "4", "1.95", "0.84", "1", "28.6"] in found
    assert ["1", "2", "score", "1", "0.00", "0.00", "4", "100.0"] in found
    assert (run / "queries.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((run / "queries.json").read_text())
    assert written["split"] == "val"
    (found,) = written["runs"]
    assert [found[name] for name in ("run", "queries", "absent", "steps", "slots")] == [str(run), 4, 1, 2, 5]
    assert [reference["centre"] for reference in found["references"]] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert found["use"][1]["counts"] == list(COUNTS["all"])
    assert found["use"][1]["entropy_bits"] == pytest.approx(1.95021, abs=1e-5)


def test_bad_input_is_one_line(tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path)], "no such checkpoint"),
        ([str(tmp_path), "--out", "x.svg"], "expected a name that ends in .png"),
        ([], "expected the folder of a run or more:  sdst inspect queries"),
    ):
        assert main(["inspect", "queries", *arguments]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert " ".join(message.split()) in error


def test_every_run_has_a_label_of_its_own():
    """The shortest end of its path that no other has: pictures are keyed by it."""
    runs = [Path("a/base/seed-7"), Path("b/base/seed-7"), Path("b/other/seed-7"), Path("b/other/seed-8")]
    assert [label(run, runs) for run in runs] == ["a/base/seed-7", "b/base/seed-7", "other/seed-7", "seed-8"]
    assert label(runs[0], runs[:1]) == "seed-7"
