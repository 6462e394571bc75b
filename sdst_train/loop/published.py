"""Numbers that others published, to stand beside a run's own. None of them was reproduced by this project.

Metrics are percent; parameters are the trained ones in millions, as their authors count them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One method's numbers by metric; a metric that it does not report is absent."""

    method: str
    values: dict[str, float]
    parameters_m: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """The numbers of one data set."""

    name: str
    split: str  # that they were measured on
    results: tuple[Published, ...]


def _qvhighlights(r1_05: float, r1_07: float, mean_ap: float, highlight_ap: float, hit1: float) -> dict[str, float]:
    return {"R1@0.5": r1_05, "R1@0.7": r1_07, "mAP": mean_ap, "HD mAP": highlight_ap, "HIT@1": hit1}


BENCHMARKS = {  # by preset
    "qvhighlights": Benchmark(
        "QVHighlights",
        "val",
        (
            Published("SDST (paper)", _qvhighlights(73.68, 60.90, 55.60, 44.00, 72.00), 4.1),
            Published("SG-DETR (as the SDST paper lists it)", {"mAP": 55.64, "HD mAP": 43.91, "HIT@1": 71.47}, 15.0),
            Published("R2-Tuning (as the SDST paper lists it)", _qvhighlights(68.71, 52.06, 47.59, 40.59, 64.32), 2.7),
            Published(
                "Sim-DETR on the same features (third party)", _qvhighlights(74.71, 60.77, 53.87, 43.80, 71.87), 12.2
            ),
        ),
    ),
    "charades": Benchmark("Charades-STA", "test", (Published("SDST (paper)", {"R1@0.7": 52.6, "mIoU": 61.2}),)),
    "tacos": Benchmark("TACoS", "test", (Published("SDST (paper)", {"R1@0.7": 32.3, "mIoU": 42.2}),)),
}
