"""The Stage-2 text encoder: BERT, of which only the text layers run, at any size.

`transformers.BertModel` does the arithmetic; parameter names are those of the released checkpoint without
`text_encoder.` (`bert.embeddings...`, `bert.encoder.layer.N...`).

Shape letters: B sentences, L tokens (special tokens included), X width, K layers returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdst_runtime.errors import InputError, require_package


@dataclass(frozen=True)
class TextConfig:
    """Size of a text encoder."""

    vocab_size: int
    width: int  # X
    depth: int  # layers that run; the checkpoint's fusion layers above them are never built
    heads: int
    mlp_width: int
    max_positions: int  # rows of the position table: the longest sentence

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.width, self.depth, self.heads, self.mlp_width, self.max_positions)
        if min(sizes) < 1:
            raise InputError(f"TextConfig: every size must be positive, got {self}")
        if self.width % self.heads:
            raise InputError(f"TextConfig: width and heads: expected a multiple, got {self.width} and {self.heads}")


BERT_LARGE_STAGE2 = TextConfig(vocab_size=30522, width=1024, depth=19, heads=16, mlp_width=4096, max_positions=512)


class TextEncoder(nn.Module):
    """Tokens to the last K layers' hidden states."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        transformers = require_package("transformers", "train")
        self.config = config
        self.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=config.mlp_width,
                max_position_embeddings=config.max_positions,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )

    def forward(self, token_ids_BL: Tensor, token_mask_BL: Tensor, layers: int) -> Tensor:
        """Hidden states of the last `layers` layers: B K L X, shallow to deep.

        `token_mask` (bool, or integers with 0 = padding) keeps padding out of every valid token's result; the rows of
        the padding itself hold no meaning.
        """
        if not 1 <= layers <= self.config.depth:
            raise InputError(f"layers: expected 1 to {self.config.depth} (the text encoder's depth), got {layers}")
        # The mask is prepared here, in the form that transformers hands on as it is: its own code for masks looks into
        # the values (a batch without padding takes another path), and the exported graph masks every batch alike.
        batch, length = token_ids_BL.shape
        mask_B1LL = token_mask_BL.bool()[:, None, None, :].expand(batch, 1, length, length)
        token_ids_BL = token_ids_BL.int()  # TensorRT's type of an index
        outputs = self.bert(
            input_ids=token_ids_BL,
            attention_mask=mask_B1LL,
            token_type_ids=torch.zeros_like(token_ids_BL),
            position_ids=torch.arange(length, device=token_ids_BL.device, dtype=torch.int32)[None],
            output_hidden_states=True,
        )
        return torch.stack(outputs.hidden_states[-layers:], dim=1)

    def materialise_buffers(self) -> None:
        """Give the counting tables of BertModel, which no checkpoint holds, real memory after building on `meta`."""
        embeddings = self.bert.embeddings
        embeddings.position_ids = torch.arange(self.config.max_positions)[None]
        embeddings.token_type_ids = torch.zeros(1, self.config.max_positions, dtype=torch.long)
