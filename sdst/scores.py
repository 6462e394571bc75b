"""`sdst calibrate scores`: the scores of a run or a bundle as probabilities."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import tyro
from rich.table import Table

from sdst_calib.scores.draw import draw_scores
from sdst_calib.scores.measure import Quality, ScoreReport, ask, calibrate_scores, judge, with_other_sentences
from sdst_runtime.data.absent import with_absent
from sdst_runtime.data.config import SplitName
from sdst_runtime.errors import InputError
from sdst_runtime.files import make_directory, sha256_file, write_bytes, write_json
from sdst_runtime.grounding.bundle import MANIFEST, Bundle, add_scores
from sdst_runtime.grounding.scores import SCORES

from .consoles import make_console
from .models import BEST, data_of, load_samples, open_model
from .next_step import advise
from .progress import counted

REPORT = "scores-report.json"
PICTURE = "scores.png"


def scores(
    model: tyro.conf.Positional[Path],
    *,
    out: Path,
    data: str | None = None,
    split: SplitName = "val",
    root: Path | None = None,
    negatives: float = 0.33,
    threads: int | None = None,
) -> None:
    """Fit what turns presence and moment scores into probabilities, and write it into the bundle, or beside the run.

    Every number of the report is of videos that the fit of it did not see (five parts, each judged by a fit on the
    other four); what is written is fitted on all.

    Args:
        model: A bundle, or the folder of a run: `sdst export` of its best.safetensors then takes it along.
        out: Folder of the report: scores-report.json and scores.png.
        data: A preset or a config.json; default: the data that the run was trained on.
        split: Which split of it; not the one that was trained on.
        root: Folder of the data set, instead of the config's.
        negatives: Share of queries about what is not in the video, where the annotations hold none: they are drawn.
        threads: Threads for the model; default: all cores.
    """
    if not 0 < negatives < 1:
        raise InputError(f"--negatives: expected a share between 0 and 1, got {negatives}")
    is_bundle = (model / MANIFEST).is_file()
    if not is_bundle and not (model / BEST).is_file():
        raise InputError(f"{model}: expected a bundle ({MANIFEST}) or the folder of a run ({BEST}), found neither")
    opened = open_model(model, threads)
    samples = with_absent(load_samples(opened, data_of(opened, data, root), split), negatives)
    layers = opened.spec.layers
    with counted("asking") as on_done:
        answers = ask(opened.session, samples, layers, on_done)
    with counted("asking with shuffled sentences") as on_done:
        control = ask(opened.session, with_other_sentences(samples), layers, on_done)
    report, found = judge(answers, control), calibrate_scores(answers)
    make_directory(out)
    write_json(out / REPORT, {"model": str(model), "split": split, **asdict(report), "scores": asdict(found)})
    write_bytes(out / PICTURE, draw_scores(report))
    console = make_console()
    console.print(quality_table(report))
    console.print(threshold_table(report))
    place = model / SCORES
    if is_bundle:
        add_scores(Bundle.open(model), found)
    else:
        write_json(place, {**asdict(found), "checkpoint_sha256": sha256_file(model / BEST)})
    console.print(f"{place}; picture: {out / PICTURE}, numbers: {out / REPORT}", soft_wrap=True)
    if is_bundle:
        advise("sdst", "ground", "VIDEO", "a sentence", "--bundle", model, "--threshold", "0.5")
    else:
        advise("sdst", "export", model / BEST, "--backbone", "BACKBONE", "--out", "BUNDLE")


def quality_table(report: ScoreReport) -> Table:
    """ECE, Brier score and negative log-likelihood of each way."""
    table = Table(
        title=f"{report.queries} queries, {report.absent} absent; AUROC of presence {report.auroc:.4f}, "
        f"of the best moment's score {report.best_score_auroc:.4f}, "
        f"with shuffled sentences {report.control_auroc:.4f}"
    )
    for name in ("score", "as", "ECE", "Brier", "NLL"):
        table.add_column(name, justify="left" if name in ("score", "as") else "right")
    for score, qualities in (("presence", report.presence), ("moments", report.moments)):
        for way, quality in qualities.items():
            table.add_row(score, way, *_cells(quality), end_section=way == list(qualities)[-1])
    return table


def threshold_table(report: ScoreReport) -> Table:
    """What answering above a threshold of the calibrated presence gives, percent."""
    names = [name for name in report.thresholds[0] if name != "threshold"]
    table = Table("threshold", *names)
    for column in table.columns:
        column.justify = "right"
    for row in report.thresholds:
        if round(100 * row["threshold"]) % 10 == 0:
            table.add_row(f"{row['threshold']:.1f}", *(f"{row[name]:.1f}" for name in names))
    return table


def _cells(quality: Quality) -> tuple[str, ...]:
    return tuple(f"{value:.4f}" for value in (quality.ece, quality.brier, quality.nll))
