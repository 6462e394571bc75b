"""Make the demo's tiny backbone: both towers trained together on the demo's own clips, as CLIP is.

Every one of the last K pooled layers is aligned with the same layer of the text tower, so that each can be read by the
side-tuner; the projections used here are thrown away. Besides the contrast, a linear map of each layer names colour,
shape and action of what is shown, without which motion is learned many times later. Held-out combinations are never
shown. The result, `sdst/demo/assets/tiny_backbone.safetensors`, ships with the package; `python -m sdst.demo.align`
makes it again.

Shapes: N clips in a batch, K layers, V and X widths, E width of the shared space.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
import tyro
from torch import Tensor, nn

from sdst_runtime.children import end_with_parent
from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import require_package
from sdst_runtime.files import make_directory
from sdst_runtime.machine import usable_cores
from sdst_train.backbone.text import TextEncoder
from sdst_train.backbone.towers import Backbone, save_backbone, tiny_config
from sdst_train.backbone.vision import VisionEncoder, sincos_positions

from . import BACKBONE
from .clips import FRAMES_PER_CLIP, ClipBatch, sample_clips
from .dataset import CLIP_S
from .grammar import ACTIONS, COLOURS, SHAPES, Event, empty_sentence, labels, sentence, vocabulary

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SHARED_WIDTH = 64
ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "action": ACTIONS}
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class AlignConfig:
    """How the tiny backbone is trained."""

    out: Path = BACKBONE
    clips: int = 16000  # rendered once, described anew each time they are drawn
    steps: int = 2600
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    layers: int = 4  # K
    seed: int = 0


def align(config: AlignConfig, say: Callable[[str], None]) -> FeatureSpec:
    """Train, write the backbone file and return its contract; `say` gets a line now and then."""
    make_directory(config.out.parent)
    torch.manual_seed(config.seed)
    say(f"painting {config.clips} clips")
    pool = ClipPool.render(config.clips, config.seed)
    say("painting clips to probe with")
    probe = ClipPool.render(3000, config.seed + 1)
    backbone = new_backbone(config.layers)
    vision, text = backbone.vision.requires_grad_(True).train(), backbone.text.requires_grad_(True).train()
    project_video = nn.Linear(backbone.spec.video_width, SHARED_WIDTH, bias=False)
    project_text = nn.Linear(backbone.spec.text_width, SHARED_WIDTH, bias=False)
    name_attributes = nn.Linear(backbone.spec.video_width, sum(map(len, ATTRIBUTES.values())))
    log_scale = nn.Parameter(torch.tensor(2.3))
    modules = (vision, text, project_video, project_text, name_attributes)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1] + [log_scale], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.steps, pct_start=min(0.5, config.warmup_steps / config.steps)
    )
    tokenizer, rng = backbone.tokenizer(), np.random.default_rng(config.seed)
    started, running = time.perf_counter(), []
    for step in range(1, config.steps + 1):
        index = pool.draw(config.batch_size, rng)
        ids, mask = tokenizer.encode_batch(pool.describe(index, rng), backbone.spec.max_tokens)
        mask = torch.from_numpy(mask)
        video_NKV = vision(torch.from_numpy(pool.frames[index]))
        text_NKLX = text(torch.from_numpy(ids), mask)
        text_NKX = (text_NKLX * mask[:, None, :, None]).sum(2) / mask.sum(1)[:, None, None]
        loss = contrast(project_video(video_NKV), project_text(text_NKX), pool.fits(index), log_scale.exp())
        loss = loss + naming_loss(name_attributes(video_NKV), [pool.attribute_fits(index, i) for i in range(3)])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            log_scale.clamp_(max=4.6)
        running.append(loss.item())
        if step % 100 == 0 or step == config.steps:
            rate = (time.perf_counter() - started) / step
            say(f"step {step}/{config.steps}  loss {np.mean(running):.3f}  {rate:.2f} s a step, "
                f"{rate * (config.steps - step) / 60:.1f} min left")  # fmt: skip
            running = []
        if step % 500 == 0 or step == config.steps:
            for line in probe_lines(vision, probe):
                say(line)
    return save_backbone(
        config.out, vision.encoder.eval(), text.encoder.eval(), backbone.spec, backbone.tokenizer_json
    )  # fmt: skip


def contrast(video_NKE: Tensor, text_SKE: Tensor, fits_NS: np.ndarray, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of each layer, with all true (clip, sentence) pairs as positives; each needs one at least."""
    video, text = functional.normalize(video_NKE, dim=-1), functional.normalize(text_SKE, dim=-1)
    logits_KNS = torch.einsum("nke,ske->kns", video, text) * scale
    truth = torch.from_numpy(fits_NS)
    losses = []
    for logits, fits in ((logits_KNS, truth), (logits_KNS.mT, truth.T)):
        target = fits.float() / fits.sum(1, keepdim=True)
        losses.append(-(target * logits.log_softmax(-1)).sum(-1).mean())
    return (losses[0] + losses[1]) / 2


def naming_loss(logits_NKA: Tensor, fits: Sequence[np.ndarray]) -> Tensor:
    """Cross entropy of each attribute's values, averaged over layers and over the clips that show an object."""
    shown = torch.from_numpy(fits[0].any(1))
    losses = []
    for logits, truth in zip(logits_NKA.split([f.shape[1] for f in fits], dim=-1), fits, strict=True):
        target = torch.from_numpy(truth)[shown].float()
        target = target / target.sum(1, keepdim=True)
        losses.append(-(target[:, None] * logits[shown].log_softmax(-1)).sum(-1).mean())
    return torch.stack(losses).sum()


def new_backbone(layers: int) -> Backbone:
    """Both towers at random, with the demo's tokenizer and contract."""
    tokenizer = demo_tokenizer()
    vision_config, text_config = tiny_config(tokenizer.get_vocab_size())
    vision, text = VisionEncoder(vision_config), TextEncoder(text_config)
    with torch.no_grad():
        for name, parameter in vision.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
        vision.pos_embed.copy_(sincos_positions(vision_config))
    spec = FeatureSpec(
        backbone="internvideo2-tiny-demo",
        backbone_sha256="",
        layers=layers,
        pool="adaptive",
        frames_per_clip=FRAMES_PER_CLIP,
        clip_s=CLIP_S,
        image_size=vision_config.image_size,
        resize="bicubic",
        mean=IMAGE_MEAN,
        std=IMAGE_STD,
        video_width=vision_config.output_width,
        text_model="bert-tiny-demo",
        max_tokens=text_config.max_positions,
        text_width=text_config.width,
    )
    return Backbone.assemble(vision, text, spec, tokenizer.to_str())


def demo_tokenizer() -> Any:
    """One token a word of the demo's grammar, lower case, between [CLS] and [SEP] as BERT has them."""
    tokenizers = require_package("tokenizers", "")
    words = [*SPECIAL, *vocabulary()]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    return tokenizer


@dataclass(frozen=True)
class ClipPool:
    """Rendered clips with what they show; events are numbers, -1 for nothing."""

    frames: np.ndarray  # N 4 S S 3, uint8
    events: tuple[Event | None, ...]  # N, what a sentence about the clip describes
    event_ids: np.ndarray  # N
    other_ids: np.ndarray  # N, the second object in view, -2 for none
    pairs: np.ndarray  # G 2, clips that differ in one attribute only
    singles: np.ndarray  # clips without a partner

    @classmethod
    def render(cls, count: int, seed: int) -> ClipPool:
        """Paint `count` clips on all cores; the same for the same seed, whatever the number of cores."""
        share = 500
        sizes = [share] * (count // share) + ([count % share] if count % share else [])
        with ProcessPoolExecutor(usable_cores(), get_context("spawn"), end_with_parent, (os.getpid(),)) as workers:
            batches = list(workers.map(_render, [(seed, i, size) for i, size in enumerate(sizes)]))
        events = tuple(event for batch in batches for event in batch.events)
        others = [event for batch in batches for event in batch.others]
        groups = np.concatenate([np.where(b.groups < 0, -1, b.groups + i * share) for i, b in enumerate(batches)])
        paired = np.flatnonzero(groups >= 0)
        return cls(
            np.concatenate([batch.frames for batch in batches]),
            events,
            np.array([_number(event, -1) for event in events]),
            np.array([_number(event, -2) for event in others]),
            paired.reshape(-1, 2),
            np.flatnonzero(groups < 0),
        )

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Indices of a batch: mostly whole pairs, a few clips without a partner."""
        alone = min(size // 16, len(self.singles))
        pairs = self.pairs[rng.choice(len(self.pairs), (size - alone) // 2, replace=False)]
        return np.concatenate((pairs.ravel(), rng.choice(self.singles, alone, replace=False)))

    def describe(self, index: np.ndarray, rng: np.random.Generator) -> list[str]:
        """A sentence for each clip, drawn anew."""
        events = [self.events[i] for i in index]
        return [empty_sentence(rng) if event is None else sentence(event, rng) for event in events]

    def fits(self, index: np.ndarray) -> np.ndarray:
        """N N bool: whether sentence j is true of clip i."""
        said = self.event_ids[index]
        return (self.event_ids[index][:, None] == said) | (self.other_ids[index][:, None] == said)

    def attribute_fits(self, index: np.ndarray, attribute: int) -> np.ndarray:
        """N A bool: whether an object of clip i has value j of an attribute; all false where nothing happens."""
        values = [len(known) for known in ATTRIBUTES.values()]
        fits = np.zeros((len(index), values[attribute]), bool)
        for ids in (self.event_ids[index], self.other_ids[index]):
            there = ids >= 0
            value = np.unravel_index(ids[there], values)[attribute]
            fits[np.flatnonzero(there), value] = True
        return fits


def probe_lines(vision: nn.Module, pool: ClipPool) -> list[str]:
    """How well a linear probe reads each attribute from each pooled layer, on clips that it was not fitted to."""
    vision.eval()
    with torch.inference_mode():
        features = torch.cat([vision(torch.from_numpy(f)) for f in np.array_split(pool.frames, 24)]).numpy()
    vision.train()
    shown = np.flatnonzero(pool.event_ids >= 0)
    wanted = np.array([labels(event) for event in pool.events if event is not None])
    alone = pool.other_ids[shown] == -2
    shown, wanted = shown[alone], wanted[alone]
    half = len(shown) // 2
    lines = []
    for layer in range(features.shape[1]):
        x = features[shown, layer]
        x = np.concatenate(((x - x.mean(0)) / (x.std(0) + 1e-6), np.ones((len(x), 1))), axis=1)
        scores = []
        for attribute, known in enumerate(ATTRIBUTES.values()):
            target = np.eye(len(known))[wanted[:, attribute]]
            weight = np.linalg.solve(x[:half].T @ x[:half] + np.eye(x.shape[1]), x[:half].T @ target[:half])
            scores.append(100 * np.mean((x[half:] @ weight).argmax(1) == wanted[half:, attribute]))
        lines.append(f"  layer {layer}: linear probe reads colour {scores[0]:.0f} %, shape {scores[1]:.0f} %, "
                     f"action {scores[2]:.0f} %")  # fmt: skip
    return lines


def _render(job: tuple[int, int, int]) -> ClipBatch:
    seed, index, size = job
    return sample_clips(np.random.default_rng((seed, index)), size, image_size=tiny_config(1)[0].image_size)


def _number(event: Event | None, nothing: int) -> int:
    if event is None:
        return nothing
    colour, shape, action = labels(event)
    return (colour * len(SHAPES) + shape) * len(ACTIONS) + action


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the tiny backbone again."""
    config = tyro.cli(AlignConfig, args=arguments, description=__doc__)
    spec = align(config, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    print(spec.to_json())  # noqa: T201


if __name__ == "__main__":
    main()
