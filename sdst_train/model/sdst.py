"""SDST: a dense stream over clips and a sparse stream over moments, both refined once a tapped backbone layer.

Shapes: B batch, T clips, K layers, L tokens, M moments, F width, V video width, X text width. Masks are true where
valid and every video and sentence is valid from its start: padding is at the end. Positions are fractions of the valid
length, so padding never changes a result. Source: arXiv 2507.07744 and its lineage; see docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .heads import Actionness, Presence, TextPool, mlp, saliency
from .layers import FeedForward, MultiHeadAttention, Residual, at_least_float32, projection, sine_position
from .rdsa import RDSA, DeformableCrossAttention, LoweredRDSA, RdsaOp, clip_index, sample_linear

KeysValues = tuple[Tensor, Tensor]  # B H L D each


@dataclass(frozen=True)
class Outputs:
    """What training reads. Moments are (centre, width) as fractions of the valid length."""

    logit_KBM: Tensor  # class logit of each moment after each step
    span_KBM2: Tensor
    actionness_BM: Tensor  # 0..1, of the last step's moments
    saliency_BT: Tensor  # cosine
    video_KBTF: Tensor  # projected video features of each step
    text_KBF: Tensor  # pooled projected text of each step
    presence_B: Tensor | None = None  # logit of the event being in the video, of a model that predicts it


class DenseStream(nn.Module):
    """D <- gate D + (1 - gate) V_l; D <- FFN(SA(CA(D, text))). The weights serve all steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.raw_gate = config.gate == "raw"
        self.gate = nn.Parameter(torch.zeros(config.layers))
        self.cross = MultiHeadAttention(width, config.heads)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.ffn = FeedForward(width, config.ffn_ratio)
        self.after_cross, self.after_self, self.after_ffn = (Residual(width, config.drop_path) for _ in range(3))

    def forward(
        self, step: int, before: Tensor | None, video: Tensor, position: Tensor, text: KeysValues, masks: Masks
    ) -> Tensor:
        """One step: new dense embeddings B T F from the old ones, which are zero (None) before the first step."""
        gate = self.gate[step] if self.raw_gate else self.gate[step].sigmoid()
        fresh = (1 - gate) * video
        dense = fresh if before is None else gate * before + fresh
        dense = self.after_cross(dense, self.cross.attend(dense + position, text, masks.text_BL))
        place = dense + position
        dense = self.after_self(dense, self.self_attention(place, place, dense, masks.video_BT))
        return self.after_ffn(dense, self.ffn(dense))


class SparseStream(nn.Module):
    """H <- FFN(RDSA(R, SA(CA(H, text)), D)); R <- sigmoid(logit(R) + MLP(H)). The weights serve all steps."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.attention, self.rdsa_position = config.attention, config.rdsa_position
        self.pure = config.query_init == "pure"
        self.query = None if self.pure else nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.position = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.reference_logit = nn.Parameter(initial_references(config))
        self.cross = MultiHeadAttention(width, config.heads)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.sample: RDSA | LoweredRDSA | DeformableCrossAttention | MultiHeadAttention
        if config.attention == "rdsa":
            self.sample = RDSA(width, config.heads, config.points, config.rdsa_context == "full")
        elif config.attention == "deformable_ca":
            self.sample = DeformableCrossAttention(width, config.heads, config.points)
        else:
            self.sample = MultiHeadAttention(width, config.heads)
        self.ffn = FeedForward(width, config.ffn_ratio)
        self.after_cross, self.after_self, self.after_sample, self.after_ffn = (
            Residual(width, config.drop_path) for _ in range(4)
        )
        self.span = mlp(width, width, width, 2)
        last = self.span[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def start(self, dense: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """Moment embeddings B M F and reference logits B M 2 before the first step."""
        B = dense.shape[0]
        reference = at_least_float32(self.reference_logit).expand(B, -1, -1)
        if self.query is None:
            index = clip_index(reference[..., 0].detach().sigmoid(), masks.length_B)
            return sample_linear(dense, index, masks.length_B, "border"), reference
        return self.query.expand(B, -1, -1), reference

    def forward(
        self, hidden: Tensor, reference_logit: Tensor, dense: Tensor, position: Tensor, text: KeysValues, masks: Masks
    ) -> tuple[Tensor, Tensor]:
        """One step: new moment embeddings B M F and reference logits B M 2, these in float32 at least."""
        hidden = self.after_cross(hidden, self.cross.attend(hidden + self.position, text, masks.text_BL))
        place = hidden + self.position
        hidden = self.after_self(hidden, self.self_attention(place, place, hidden))
        reference = reference_logit.sigmoid()
        hidden = self.after_sample(hidden, self._look(hidden, reference, dense, position, masks))
        hidden = self.after_ffn(hidden, self.ffn(hidden))
        return hidden, reference_logit + at_least_float32(self.span(hidden))

    def _look(self, hidden: Tensor, reference: Tensor, dense: Tensor, position: Tensor, masks: Masks) -> Tensor:
        query = hidden + self.position
        if isinstance(self.sample, RDSA | LoweredRDSA):
            seen = dense + position if self.rdsa_position else dense
            return self.sample(dense, masks.video_BT, reference, masks.length_B, seen)
        if isinstance(self.sample, DeformableCrossAttention):
            return self.sample(query, dense, reference, masks.length_B)
        half = query.shape[-1] // 2
        place = torch.cat((sine_position(reference[..., 0], half), sine_position(reference[..., 1], half)), dim=-1)
        return self.sample(query + place.to(query.dtype), dense + position, dense, masks.video_BT)


@dataclass(frozen=True)
class Masks:
    """Which clips and tokens are valid, and how many clips."""

    video_BT: Tensor
    text_BL: Tensor
    length_B: Tensor  # int32


class SDST(nn.Module):
    """The side-tuner. `forward` is for training, `ground` for everything after it; `project` and `ground_projected` are
    its two halves, for many sentences about one video.

    video B T K' V and text B K' L X with K' >= K layers, shallow to deep: the last K are used. video_mask B T and
    text_mask B L are boolean.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.project_video = projection(config.video_width + 2, width, config.input_dropout)
        self.project_text = projection(config.text_width, width, config.input_dropout)
        self.dense = DenseStream(config)
        self.sparse = SparseStream(config)
        self.classify = nn.Linear(width, 1)
        nn.init.constant_(self.classify.bias, -4.59511985)  # -log 99: one moment in a hundred at the start
        self.actionness = Actionness(width)
        self.text_pool = TextPool(width)
        self.presence = Presence(width) if config.presence else None

    def forward(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> Outputs:
        masks = Masks(video_mask, text_mask, _length(video_mask))
        video_KBTF = self.project(video, video_mask).permute(2, 0, 1, 3)
        text_KBLF = self._project_text(text, text_mask)
        dense, hidden_KBMF, span_KBM2 = self._refine(video_KBTF, text_KBLF, masks)
        text_KBF = self.text_pool(text_KBLF, text_mask)
        return Outputs(
            logit_KBM=self.classify(hidden_KBMF).squeeze(-1),
            span_KBM2=span_KBM2,
            actionness_BM=self.actionness(dense, span_KBM2[-1].detach(), masks.length_B),
            saliency_BT=saliency(dense, text_KBF[-1]),
            video_KBTF=video_KBTF,
            text_KBF=text_KBF,
            presence_B=None if self.presence is None else self.presence(hidden_KBMF[-1]),
        )

    def ground(self, video: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor) -> tuple[Tensor, ...]:
        """Moments B M 2 (start, end, fractions of the valid length), scores B M in 0..1, saliency B T in -1..1 and, of
        a model that predicts it, the presence B in 0..1.
        """
        return self.ground_projected(self.project(video, video_mask), video_mask, text, text_mask)

    def project(self, video: Tensor, video_mask: Tensor) -> Tensor:
        """What no sentence changes, so that it is computed once a video: B T K F, the steps in order."""
        config, length_B = self.config, _length(video_mask)
        video = video[:, :, -1:] if config.feature_mode == "last_repeat" else video[:, :, -config.layers :]
        video_KBTV = video.masked_fill(~video_mask[..., None, None], 0).permute(2, 0, 1, 3)
        extent = self._clip_extents(video_mask, length_B).to(video.dtype).expand(video_KBTV.shape[0], -1, -1, -1)
        projected_KBTF = self.project_video(torch.cat((video_KBTV, extent), dim=-1))
        return self._in_order(projected_KBTF).permute(1, 2, 0, 3)

    def ground_projected(
        self, projected: Tensor, video_mask: Tensor, text: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """What `ground` returns, from the `project` of the video, B T K F."""
        masks = Masks(video_mask, text_mask, _length(video_mask))
        text_KBLF = self._project_text(text, text_mask)
        dense, hidden_KBMF, span_KBM2 = self._refine(projected.permute(2, 0, 1, 3), text_KBLF, masks)
        actionness = self.actionness(dense, span_KBM2[-1], masks.length_B)
        curve = saliency(dense, self.text_pool(text_KBLF[-1], text_mask))
        centre, width = span_KBM2[-1].unbind(-1)
        moments = torch.stack((centre - width / 2, centre + width / 2), dim=-1).clamp(0, 1)
        score = at_least_float32(self.classify(hidden_KBMF[-1]).squeeze(-1)).sigmoid() * actionness
        found = moments, score, curve.masked_fill(~video_mask, -1)
        return found if self.presence is None else (*found, self.presence(hidden_KBMF[-1]).sigmoid())

    def lower(self, op: RdsaOp | None = None) -> SDST:
        """Replace RDSA by its lowered form, in place; `op` computes sdst::RDSA (default: the gather form)."""
        if isinstance(self.sparse.sample, RDSA):
            self.sparse.sample = LoweredRDSA(self.sparse.sample, *([op] if op else []))
        return self

    def _refine(self, video_KBTF: Tensor, text_KBLF: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
        """All steps: the dense embeddings B T F of the last, moment embeddings K B M F and spans K B M 2 of each."""
        position = self._clip_positions(masks.video_BT, masks.length_B).to(video_KBTF.dtype)
        dense_text, sparse_text = (self._of_each_step(stream.cross, text_KBLF) for stream in (self.dense, self.sparse))
        dense = hidden = reference_logit = None
        hiddens, references = [], []
        for step in range(self.config.layers):
            dense = self.dense(step, dense, video_KBTF[step], position, dense_text[step], masks)
            if hidden is None or reference_logit is None:
                hidden, reference_logit = self.sparse.start(dense, masks)
            elif self.config.detach_references:
                reference_logit = reference_logit.detach()
            hidden, reference_logit = self.sparse(hidden, reference_logit, dense, position, sparse_text[step], masks)
            hiddens.append(hidden)
            references.append(reference_logit)
        assert dense is not None  # there is a step at least
        return dense, torch.stack(hiddens), torch.stack(references).sigmoid()

    @staticmethod
    def _of_each_step(attention: MultiHeadAttention, text_KBLF: Tensor) -> list[KeysValues]:
        """What the steps attend to, from one product for keys and one for values."""
        keys, values = attention.keys_values(text_KBLF, text_KBLF)
        return list(zip(keys.unbind(), values.unbind(), strict=True))

    def _project_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """K B L F in the order of the steps."""
        text = text[:, -1:] if self.config.feature_mode == "last_repeat" else text[:, -self.config.layers :]
        return self._in_order(self.project_text(text.masked_fill(~text_mask[:, None, :, None], 0).transpose(0, 1)))

    def _in_order(self, projected: Tensor) -> Tensor:
        """One row a step, first to last, from projected layers, shallow to deep (axis 0)."""
        if self.config.feature_mode == "last_repeat":
            return projected.expand(self.config.layers, *[-1] * (projected.dim() - 1))
        return projected.flip(0) if self.config.layer_order == "reversed" else projected

    @staticmethod
    def _clip_extents(mask_BT: Tensor, length_B: Tensor) -> Tensor:
        """Start and end of each clip as fractions of the valid length: B T 2, float32."""
        clip = torch.arange(mask_BT.shape[1], device=mask_BT.device, dtype=torch.float32)
        return torch.stack((clip, clip + 1), dim=-1) / length_B.float()[:, None, None]

    def _clip_positions(self, mask_BT: Tensor, length_B: Tensor) -> Tensor:
        return sine_position(self._clip_extents(mask_BT, length_B).mean(-1), self.config.width)


def _length(mask_BT: Tensor) -> Tensor:
    return mask_BT.sum(1, dtype=torch.int32)


def initial_references(config: ModelConfig) -> Tensor:
    """Logits of the learned references, M 2: centres on a grid with width 0.17, or both drawn at random."""
    if config.reference_init == "grid":
        centre = (torch.arange(config.queries) + 0.5) / config.queries
        return torch.stack((centre.logit(), torch.full_like(centre, -1.6)), dim=-1)
    return torch.rand(config.queries, 2).clamp(0.01, 0.99).logit()


def parameter_count(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def in_both_units(count: int) -> str:
    """A parameter count exact, in millions and in units of 2^20, which papers mix up: 4.31 M is 4.11 Mi."""
    return f"{count:,} ({count / 1e6:.2f} M, {count / 2**20:.2f} Mi)"
