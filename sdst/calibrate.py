"""`sdst calibrate ranges` and `sdst calibrate audit`: what a bundle's tensors hold, and what float16 does to them."""

from __future__ import annotations

from pathlib import Path

import tyro

from sdst_calib.audit.compare import audit_graphs
from sdst_calib.audit.page import KEEP_FILE, write_audit
from sdst_calib.audit.ranges import GraphRanges, calibrate, read_ranges, write_ranges
from sdst_calib.audit.rules import find_faults, write_keep
from sdst_calib.feeds import QueryFeeds, spread
from sdst_calib.taps import open_graph
from sdst_runtime.data.config import SplitName
from sdst_runtime.errors import ContractError
from sdst_runtime.files import make_directory
from sdst_runtime.grounding.bundle import Bundle

from .models import data_of, load_samples, open_model, say
from .next_step import advise
from .progress import counted
from .videos import find_videos


def ranges(
    bundle: tyro.conf.Positional[Path],
    *,
    data: str,
    out: Path,
    split: SplitName = "val",
    root: Path | None = None,
    videos: Path | None = None,
    queries: int = 128,
) -> None:
    """Write the range of every tensor of a float32 bundle's models, MODEL.ranges.json; of vision with --videos.

    A file that is there already, of the same model and data, is kept.

    Args:
        bundle: An fp32 bundle.
        data: A preset or a config.json.
        out: Folder of the files.
        split: Which split of the data.
        root: Folder of the data set, instead of the config's.
        videos: Folder of its videos, or a .txt file with the path of one on each line: the vision model too.
        queries: How many, evenly spread over the split.
    """
    make_directory(out)
    feeds = _feeds(bundle, data, split, root, videos, queries)
    for model in feeds.models:
        path = out / f"{model}.ranges.json"
        identity = (model, feeds.model_sha256(model), feeds.data_sha256(model))
        if path.is_file() and _identity(read_ranges(path)) == identity:
            say(f"{path}: of the same model and data, kept")
            continue
        with counted(f"ranges of {model}") as on_done:
            measured = calibrate(open_graph(feeds.bundle.path(model)), feeds.of(model), identity, on_done)
        write_ranges(path, measured)
        counts = f"{len(measured.tensors)} tensors, {measured.feeds} inputs"
        say(f"{path}: {counts}, {_largest(measured)}{_warning(measured)}")
    advise("sdst", "calibrate", "audit", bundle, "FP16", "--data", data, "--out", "AUDIT")


def audit(
    single: tyro.conf.Positional[Path],
    half: tyro.conf.Positional[Path],
    *,
    data: str,
    out: Path,
    split: SplitName = "val",
    root: Path | None = None,
    videos: Path | None = None,
    queries: int = 32,
) -> None:
    """Compare an fp16 bundle with its fp32 twin, tensor by tensor: audit.html, audit.json and keep-fp32.txt.

    Args:
        single: The fp32 bundle.
        half: The fp16 bundle of the same checkpoint.
        data: A preset or a config.json.
        out: Folder of the three files.
        split: Which split of the data.
        root: Folder of the data set, instead of the config's.
        videos: Folder of its videos, or a .txt file with the path of one on each line: the vision model too.
        queries: How many, evenly spread over the split.
    """
    make_directory(out)
    feeds, twin = _feeds(single, data, split, root, videos, queries), Bundle.open(half)
    graphs = {model: (open_graph(feeds.bundle.path(model)), open_graph(twin.path(model))) for model in feeds.models}
    audits = []
    for model, pair in graphs.items():
        with counted(f"audit of {model}") as on_done:
            audits.append(audit_graphs(model, *pair, feeds.of(model), on_done))
    findings = [finding for one in audits for finding in find_faults(one)]
    facts = [("fp32", str(single)), ("fp16", str(half)), ("data", f"{data}, {split}, {len(feeds.samples)} queries")]
    write_audit(out, audits, findings, facts)
    write_keep(out / KEEP_FILE, findings)
    for finding in findings:
        say(f"{finding.model}: {finding.fault} at {finding.key}: {finding.reason}")
    if not findings:
        say("nothing needs to stay float32 beyond what an fp16 bundle keeps")
    print(out / "audit.html")  # noqa: T201
    if findings:
        advise("sdst", "export", "CHECKPOINT", "--backbone", "BACKBONE", "--out", "BUNDLE", "--precision", "fp16",
               "--keep-fp32", out / KEEP_FILE)  # fmt: skip
    else:
        advise("sdst", "parity", single, half, "--data", data)


def _feeds(
    directory: Path, data: str, split: SplitName, root: Path | None, videos: Path | None, queries: int
) -> QueryFeeds:
    bundle = Bundle.open(directory)
    precision = open_graph(bundle.path("head")).metadata.get("sdst.precision")
    if precision != "fp32":
        raise ContractError(f"{directory}: expected an fp32 bundle, got {precision}; export the checkpoint in fp32")
    opened = open_model(directory)
    samples = spread(load_samples(opened, data_of(opened, data, root), split), queries)
    return QueryFeeds(bundle, samples, {} if videos is None else find_videos(videos))


def _identity(ranges: GraphRanges) -> tuple[str, str, str]:
    return ranges.model, ranges.model_sha256, ranges.data_sha256


def _largest(ranges: GraphRanges) -> str:
    computed = {name: tensor for name, tensor in ranges.tensors.items() if tensor.place != "input"}
    name, tensor = max(computed.items(), key=lambda item: item[1].amax)
    return f"largest |x| {tensor.amax:.4g} in {name}" + (f" ({tensor.place})" if tensor.place else "")


def _warning(ranges: GraphRanges) -> str:
    broken = [name for name, tensor in ranges.tensors.items() if tensor.nan or tensor.inf]
    return f"; {len(broken)} of them hold NaN or infinity, the first is {broken[0]}" if broken else ""
