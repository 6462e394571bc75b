"""An int8 bundle from a bundle of ONNX files: calibrate, choose layers, write.

Scales come from one set of queries, the metrics from another. Models without a layer in int8 are copied. int8.json,
listed in bundle.json, holds the scales, the layers that stayed with their reasons, and what was measured. While a
search runs, and after one that failed, sensitivity.json holds what each layer costs. A layer is named "model:module".
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from sdst_export.keep import NOTHING_KEPT, Keep
from sdst_runtime.contracts import INT8, PRECISION_KEY
from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample
from sdst_runtime.distribution import own_version
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import copy_file, make_directory, remove, write_json
from sdst_runtime.grounding.bundle import (
    DATA_SUFFIX,
    EXPORT_REPORT,
    MANIFEST,
    TOKENIZER,
    Bundle,
    copy_scores,
    write_manifest,
)
from sdst_runtime.sessions.base import GROUNDING_MODELS
from sdst_runtime.strict_json import nulls_for_nan

from ..feeds import QueryFeeds, files_sha256
from .collect import require_real, tensor_scales
from .quantise import Product, Quantised, WeightScales, default_kept, find_products, within
from .scales import Method
from .sensitivity import Measure, Measured, Sensitivity, rank_layers, search_within
from .trial import Trial, modules, save_quantised

REPORT = "int8.json"
SENSITIVITY = "sensitivity.json"
FORMAT = 1
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # title -> what hears (done, of all)


@dataclass(frozen=True)
class Queries:
    """Labelled queries: those that scales come from, and those that metrics are measured on."""

    calibration: Sequence[Sample]
    measured: Sequence[Sample]
    data: DataConfig
    videos: Mapping[str, Path] = field(default_factory=dict)  # by id, of the calibration queries; for vision


@dataclass(frozen=True)
class Int8Options:
    """What to quantise, and how."""

    method: Method = "mse"
    models: tuple[str, ...] = GROUNDING_MODELS  # of vision, text, projection, head
    budget: float | None = None  # points that a metric may lose; None: all layers, nothing is searched
    exclude: Keep = field(default_factory=lambda: NOTHING_KEPT)  # modules that stay, beside the default ones


@dataclass(frozen=True)
class ModelScales:
    """One model of an int8 bundle."""

    source_sha256: str  # of the file; of its digest and that of its weights where these lie beside it
    layers: list[str]  # in int8
    kept: dict[str, str]  # layer -> why not
    activations: dict[str, float]  # tensor -> scale
    weights: dict[str, WeightScales]


@dataclass(frozen=True)
class Int8Report:
    """int8.json."""

    format: int
    method: Method
    calibration_queries: int
    calibration_sha256: str  # of their features and sentences
    measured_queries: int
    models: dict[str, ModelScales]
    reference: dict[str, float]  # metrics of the bundle that it was made from, percent
    int8: dict[str, float]
    measured: Measured
    vision_snr_db: float | None  # of the features on the calibration clips; None: vision is as it was
    budget: float | None
    sensitivity: list[Sensitivity]  # empty without a budget


def calibrate_int8(
    bundle: Bundle, out: Path, queries: Queries, options: Int8Options, progress: Progress, threads: int | None = None
) -> Int8Report:
    """Write an int8 bundle into `out`; while files change the directory has no bundle.json and is no bundle.

    Raises InputError for data that cannot calibrate (none, constant, NaN), for names that match no module, when no
    layer fits the budget, and for what `open_source` refuses; ContractError when a model is int8 already.
    """
    _require_budget(options.budget)
    _require_source(bundle, out)
    feeds = QueryFeeds(bundle, queries.calibration, queries.videos)
    graphs = {name: _load(bundle, name) for name in _chosen(options.models, feeds.models)}
    products = {name: find_products(graph) for name, graph in graphs.items()}
    kept = _kept(products, _excluded(bundle, graphs, options.exclude))
    layers = _left([f"{name}:{one.layer}" for name, found in products.items() for one in found], kept)
    scales = _scales(feeds, products, layers, options.method, progress)
    kept |= dict.fromkeys(_reading_zeros(products, layers, scales), "reads only zeros in the calibration data")
    layers = _left(layers, kept)
    trial = Trial(bundle, graphs, scales, queries.measured, queries.data, threads, out)
    sensitivity: list[Sensitivity] = []
    measurable = [layer for layer in layers if not layer.startswith("vision:")]
    if options.budget is not None and measurable:
        sensitivity, left_out = _search(measurable, trial.measure, options.budget, out / SENSITIVITY, progress)
        kept |= dict.fromkeys(left_out, f"left out to stay within {options.budget:g} points")
        layers = _left(layers, kept)
    quantised, answers = trial.quantise(layers), trial.answers(layers)
    report = Int8Report(
        format=FORMAT,
        method=options.method,
        calibration_queries=len(queries.calibration),
        calibration_sha256=feeds.data_sha256("head"),
        measured_queries=len(queries.measured),
        models={name: _model_scales(bundle, name, quantised.get(name), layers, kept) for name in graphs},
        reference=trial.reference.metrics,
        int8=answers.metrics,
        measured=trial.compare(answers),
        vision_snr_db=trial.vision_snr_db(layers, feeds.of("vision")),
        budget=options.budget,
        sensitivity=sensitivity,
    )
    _write(bundle, out, {name: one.model for name, one in quantised.items()}, report)
    return report


def open_source(directory: Path, out: Path) -> Bundle:
    """The bundle to quantise; `out` is made. So what cannot work is refused before any data is read.

    Raises InputError or ContractError as Bundle.open does, InputError for a bundle of engines and when `out` is the
    bundle or cannot be written.
    """
    bundle = Bundle.open(directory)
    _require_source(bundle, out)
    return bundle


def _require_source(bundle: Bundle, out: Path) -> None:
    other = [file for file in bundle.manifest.models.values() if Path(file).suffix != ".onnx"]
    if other:
        raise InputError(
            f"{bundle.directory}: expected a bundle of ONNX files, it has {other[0]}; give the one it was built of"
        )
    if out.resolve() == bundle.directory.resolve():
        raise InputError(f"--out: expected another directory than the bundle, got {out}")
    make_directory(out)
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write {out}: Permission denied; choose another directory")


def _require_budget(budget: float | None) -> None:
    if budget is not None and not (math.isfinite(budget) and budget >= 0):
        raise InputError(f"--budget: expected points, at least 0, got {budget}")


def _chosen(models: Sequence[str], fed: Sequence[str]) -> list[str]:
    unknown = [name for name in models if name not in fed]
    if unknown or not models:
        hint = "; vision takes frames: name the --videos" if "vision" in unknown else ""
        raise InputError(f"--models: expected some of {', '.join(fed)}, got {', '.join(unknown) or 'none'}{hint}")
    return [name for name in fed if name in models]


def _load(bundle: Bundle, name: str) -> onnx.ModelProto:
    path = bundle.path(name)
    model = onnx.load(str(path), load_external_data=False)
    if _metadata(model).get(PRECISION_KEY) == INT8:
        raise ContractError(f"{path}: is int8 already; give the bundle that it was made from")
    return model


def _excluded(bundle: Bundle, graphs: Mapping[str, onnx.ModelProto], exclude: Keep) -> dict[str, set[str]]:
    """Model -> the modules that the user excludes. Projection and head are one model, so either names both's modules.

    Modules of a text or vision model that stays as it is are not looked up: a list of the audit may hold some.
    """
    whole_head = [graphs[name] if name in graphs else _load(bundle, name) for name in GROUNDING_MODELS]
    in_head = within(whole_head, [name for model in GROUNDING_MODELS for name in exclude.get(model, ())])
    towers = {name: within([graphs[name]], exclude.get(name, ())) for name in ("vision", "text") if name in graphs}
    return {**towers, "projection": in_head, "head": in_head}


def _kept(products: Mapping[str, Sequence[Product]], excluded: Mapping[str, set[str]]) -> dict[str, str]:
    """The layers that stay, and why."""
    kept = {}
    for name, found in products.items():
        layers = {product.layer: None for product in found}
        reasons = default_kept(layers) | {layer: "excluded by the user" for layer in layers if layer in excluded[name]}
        kept |= {f"{name}:{layer}": reason for layer, reason in reasons.items()}
    return kept


def _left(layers: Iterable[str], kept: Mapping[str, str]) -> list[str]:
    left = [layer for layer in dict.fromkeys(layers) if layer not in kept]
    if not left:
        raise InputError(
            "no layer is left for int8: expected one that nothing excludes and that reads more than zeros;"
            " take lines out of --exclude"
        )
    return left


def _reading_zeros(
    products: Mapping[str, Sequence[Product]], layers: Sequence[str], scales: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Those of `layers` that a tensor without a scale enters, in any step."""
    named = (
        (f"{name}:{one.layer}", one.activation in scales[name]) for name, found in products.items() for one in found
    )
    return [layer for layer, scaled in named if layer in layers and not scaled]


def _search(
    layers: Sequence[str], measure: Measure, budget: float, path: Path, progress: Progress
) -> tuple[list[Sensitivity], list[str]]:
    """What each layer costs, written to `path` too, and the layers to leave out."""
    with progress("layers one at a time") as on_done:
        ranked = rank_layers(layers, measure, on_done)
    write_json(path, nulls_for_nan([dataclasses.asdict(one) for one in ranked]))
    with progress("within the budget") as on_done:
        try:
            return ranked, search_within(ranked, measure, budget, on_done)
        except InputError as error:
            raise InputError(f"{error}; {path} says what each layer costs") from error


def _scales(
    feeds: QueryFeeds,
    products: Mapping[str, Sequence[Product]],
    layers: Sequence[str],
    method: Method,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Model -> tensor -> scale, for all tensors that `layers` read and that are not 0 throughout."""
    for name in dict.fromkeys(("projection", *products)):  # the head does not see a constant video: its norm shifts it
        require_real(feeds.bundle.path(name), feeds.of(name))
    scales: dict[str, dict[str, float]] = {name: {} for name in products}
    for name, found in products.items():
        chosen = modules(name, layers)
        if not chosen:
            continue
        tensors = list(dict.fromkeys(product.activation for product in found if product.layer in chosen))
        with progress(f"calibrating {name}") as on_done:
            scales[name] = tensor_scales(
                feeds.bundle.path(name), tensors, feeds.of(name), method, on_done
            )  # fmt: skip
    return scales


def _model_scales(
    bundle: Bundle, name: str, quantised: Quantised | None, layers: Sequence[str], kept: Mapping[str, str]
) -> ModelScales:
    prefix = f"{name}:"
    return ModelScales(
        source_sha256=files_sha256(bundle, [name]),
        layers=[layer.removeprefix(prefix) for layer in layers if layer.startswith(prefix)],
        kept={layer.removeprefix(prefix): reason for layer, reason in kept.items() if layer.startswith(prefix)},
        activations=quantised.activations if quantised else {},
        weights=quantised.weights if quantised else {},
    )


def _write(bundle: Bundle, out: Path, models: Mapping[str, onnx.ModelProto], report: Int8Report) -> None:
    remove(out / MANIFEST)
    for name, file in bundle.manifest.models.items():
        if name in models:
            model = models[name]
            onnx.helper.set_model_props(model, _metadata(model) | {PRECISION_KEY: INT8})
            save_quantised(model, out / file, bundle.directory)
        else:
            _copy_model(bundle.directory / file, out / file)
    copy_file(bundle.directory / TOKENIZER, out / TOKENIZER)
    copy_scores(bundle.scores_path, out)
    write_json(out / REPORT, nulls_for_nan(dataclasses.asdict(report)))
    remove(out / EXPORT_REPORT)  # it would account for other graphs
    remove(out / SENSITIVITY)  # int8.json has it
    write_manifest(out, bundle.manifest.spec, dict(bundle.manifest.models), own_version(), [REPORT])


def _copy_model(source: Path, target: Path) -> None:
    weights, there = (path.with_name(path.name + DATA_SUFFIX) for path in (source, target))
    if weights.is_file():
        copy_file(weights, there)
    else:
        remove(there)
    copy_file(source, target)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
