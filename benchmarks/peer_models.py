"""Heads of others for video temporal grounding, built by their own code with their published options for QVHighlights.

Weights are random: time depends on shapes only. What is in each: `Peer.covers`; a backbone is in none.
Shapes: B 1 query, T clips, L tokens.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from clones import CLONES, importing, require_clone
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdst_runtime.errors import SdstError
from sdst_train.loop.published import BENCHMARKS

VIDEO_WIDTH, TEXT_WIDTH = 2304 + 512 + 2, 512  # SlowFast, CLIP and the clip's two ends; CLIP
SLOWFAST_CLIP = "one vector a clip (SlowFast and CLIP) and a token: projections, encoder, decoder, moments, saliency"
CLIP_LAYERS = "50 tokens a clip of 4 CLIP layers: pooling by the query, 4 steps, pyramid, moments sorted, saliency"
R2_CONFIG = "configs/qvhighlights/r2_tuning_qvhighlights.py"
R2_LAYERS, R2_TOKENS, R2_WIDTH = 4, 50, 768  # of a clip, as its CLIP ViT-B/32 features are stored


@dataclass(frozen=True)
class Accuracy:
    """R1@0.7 on QVHighlights, percent, of models trained on it alone; None: no source was read."""

    val: float | None
    test: float | None
    source: str


VIDEOLIGHTS = "table II of arXiv 2412.01558"
LIGHTHOUSE = "lighthouse's own training, markdown/reproduced_results.md at its commit 4d43193"
SDST, _, R2_TUNING, *_ = BENCHMARKS["qvhighlights"].results
PUBLISHED = {
    "SDST": Accuracy(SDST.values["R1@0.7"], None, "val: SDST's paper, with InternVideo2-1B"),
    "Moment-DETR": Accuracy(34.84, 33.02, f"val: its repository, standalone_eval/; test: {VIDEOLIGHTS}"),
    "QD-DETR": Accuracy(46.66, 44.98, f"val: table VII of arXiv 2412.01558; test: {VIDEOLIGHTS}"),
    "EaTR": Accuracy(40.3, 45.79, f"val: {LIGHTHOUSE}; test: {VIDEOLIGHTS}"),
    "CG-DETR": Accuracy(52.1, 48.38, f"val: {LIGHTHOUSE}; test: R2-Tuning's paper, arXiv 2404.00801"),
    "UVCOM": Accuracy(49.4, 47.47, f"val: {LIGHTHOUSE}; test: {VIDEOLIGHTS}"),
    "TR-DETR": Accuracy(51.48, 48.96, f"val: table VII of arXiv 2412.01558; test: {VIDEOLIGHTS}"),
    "TaskWeave": Accuracy(49.2, None, f"val: {LIGHTHOUSE}"),
    "R2-Tuning": Accuracy(R2_TUNING.values["R1@0.7"], 49.35, "val: as SDST's paper lists it; test: its paper"),
}  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """A model in eval mode that takes `inputs` by place and returns a tuple of tensors."""

    name: str
    method: str  # key of PUBLISHED
    module: nn.Module
    inputs: dict[str, Tensor]
    covers: str

    def run(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return self.module(*self.inputs.values())


class Detr(nn.Module):
    """A model of Moment-DETR's family: what an answer needs of what it returns."""

    def __init__(self, model: nn.Module, **always: object) -> None:
        super().__init__()
        self.model, self.always = model, always

    def forward(self, src_txt: Tensor, src_txt_mask: Tensor, src_vid: Tensor, src_vid_mask: Tensor):
        found = self.model(
            src_txt=src_txt, src_txt_mask=src_txt_mask, src_vid=src_vid, src_vid_mask=src_vid_mask, **self.always
        )
        if isinstance(found, tuple):  # TaskWeave's second value are weights of its loss
            found = found[0]
        return found["pred_logits"], found["pred_spans"], found["saliency_scores"]


class R2Tuning(nn.Module):
    """R2-Tuning on stored features of CLIP: moments B, 50, 3 (start s, end s, score), saliency T."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model({"video": video, "query": query, "fps": [0.5]})["_out"]
        return found["boundary"], found["saliency"]


LIGHTHOUSE_MODELS: dict[str, tuple[str, str, dict[str, object]]] = {  # shown -> module, config, further arguments
    "Moment-DETR": ("moment_detr", "moment_detr", {}),
    "QD-DETR": ("qd_detr", "qd_detr", {}),
    "EaTR": ("eatr", "eatr", {}),
    "CG-DETR": ("cg_detr", "cg_detr", {"vid": None, "qid": None}),
    "UVCOM": ("uvcom", "uvcom", {}),
    "TR-DETR": ("tr_detr", "tr_detr", {}),
    "TaskWeave hd2mr": ("taskweave", "taskweave_hd2mr", {"epoch_i": None}),
    "TaskWeave mr2hd": ("taskweave", "taskweave_mr2hd", {"epoch_i": None}),
}


def load_peers(clones: Mapping[str, Path], clips: int, tokens: int) -> tuple[list[Peer], dict[str, str]]:
    """The models of the clones, by option, and for each that could not be built the reason.

    Raises InputError for a folder that is no clone of its repository.
    """
    for option, folder in clones.items():
        require_clone(CLONES[option], folder)
    peers, missing = [], {}
    for option, folder in clones.items():
        for name, build in _BUILDERS[option].items():
            torch.manual_seed(0)
            try:
                with importing(CLONES[option], folder):
                    peers.append(build(name, folder, clips, tokens))
            except SdstError as error:
                missing[name] = str(error)
    return peers, missing


def build_r2_tuning(folder: Path) -> tuple[nn.Module, object]:
    """R2-Tuning's model with its losses, and its config. Inside `importing`."""
    nncore = importlib.import_module("nncore")
    importlib.import_module("models")
    config = nncore.Config.from_file(str(folder / R2_CONFIG))
    return importlib.import_module("nncore.nn").build_model(config.model), config


def count_flops(run: Callable[[], object]) -> int:
    """Multiplications and additions of the products and convolutions of one run, attention's with them.

    Attention in one kernel is not counted on a CPU, so it is taken apart here.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops()


def _standalone(package: str) -> Callable[[str, Path, int, int], Peer]:
    def build(name: str, folder: Path, clips: int, tokens: int) -> Peer:
        """Options by their own parser, as scripts/train.sh gives them."""
        reader = importlib.import_module(f"{package}.config").BaseOptions()
        reader.initialize()
        given = ["--dset_name", "hl", "--v_feat_dim", str(VIDEO_WIDTH), "--t_feat_dim", str(TEXT_WIDTH)]
        options = reader.parser.parse_args(given)
        options.device = "cpu"
        _stay_on_the_cpu()
        return _detr(name, importlib.import_module(f"{package}.model").build_model(options)[0], clips, tokens)

    return build


def _stay_on_the_cpu() -> None:
    """QD-DETR's forward calls `cuda()`: without a GPU that is the tensor itself, in this process."""
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # pyright: ignore[reportAttributeAccessIssue]


def _of_lighthouse(name: str, folder: Path, clips: int, tokens: int) -> Peer:
    yaml = importlib.import_module("yaml")
    module, config, always = LIGHTHOUSE_MODELS[name.removeprefix("lighthouse: ")]
    options: dict[str, object] = {}
    for part in ("base", "feature/clip_slowfast", f"model/{config}", "dataset/qvhighlight"):
        options |= yaml.safe_load((folder / "configs" / f"{part}.yml").read_text())
    build = importlib.import_module(f"lighthouse.common.{module}").build_model
    return _detr(name, build(argparse.Namespace(**options | {"device": "cpu"}))[0], clips, tokens, **always)


def _detr(name: str, model: nn.Module, clips: int, tokens: int, **always: object) -> Peer:
    inputs = {
        "src_txt": torch.randn(1, tokens, TEXT_WIDTH),
        "src_txt_mask": torch.ones(1, tokens),
        "src_vid": torch.randn(1, clips, VIDEO_WIDTH),
        "src_vid_mask": torch.ones(1, clips),
    }
    method = name.removeprefix("lighthouse: ").split()[0]
    return Peer(name, method, Detr(model, **always).eval(), inputs, SLOWFAST_CLIP)


def _r2_tuning(name: str, folder: Path, clips: int, tokens: int) -> Peer:
    inputs = {
        "video": torch.randn(1, clips, R2_LAYERS * R2_TOKENS * R2_WIDTH),
        "query": torch.randn(1, tokens, R2_LAYERS * TEXT_WIDTH),
    }
    return Peer(name, name, R2Tuning(build_r2_tuning(folder)[0]).eval(), inputs, CLIP_LAYERS)


_BUILDERS: dict[str, dict[str, Callable[[str, Path, int, int], Peer]]] = {
    "moment-detr": {"Moment-DETR": _standalone("moment_detr")},
    "qd-detr": {"QD-DETR": _standalone("qd_detr")},
    "lighthouse": {f"lighthouse: {name}": _of_lighthouse for name in LIGHTHOUSE_MODELS},
    "r2-tuning": {"R2-Tuning": _r2_tuning},
}
