"""Attention of SAM's image encoder without the largest tensors of the whole model."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.sam.modeling_sam import SamVisionSdpaAttention


# Elements of the attention bias that exist at a time: 4 heads over SAM's 64 x 64 patches.
LARGEST_BIAS = 1 << 26


class SamVisionHeadwiseAttention(SamVisionSdpaAttention):
    """[`~transformers.models.sam.modeling_sam.SamVisionSdpaAttention`], some heads at a time; its weights and results.

    The bias of relative positions has heads * (h * w)^2 elements, 201 million in ViT-B's layers over the whole
    picture, and upstream writes it twice. Here it is written once and in parts, which takes less time and a fraction
    of the memory, and its index is made on the device.
    """

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """Mix `hidden_states` (B, h, w, C), pictures or windows of them. Attention weights are never returned."""
        batch, height, width, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, height * width, 3, self.num_attention_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        step = max(1, LARGEST_BIAS // (batch * (height * width) ** 2)) if self.use_rel_pos else len(key[0])
        parts = []
        for q, k, v in zip(query.split(step, dim=1), key.split(step, dim=1), value.split(step, dim=1)):
            bias = self._bias(q, height, width) if self.use_rel_pos else None
            parts.append(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))
        mixed = torch.cat(parts, dim=1).transpose(1, 2)
        return self.proj(mixed.reshape(batch, height, width, -1)), None

    def _bias(self, query: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """What relative positions add to the logits, (B, n, h * w, h * w), of n heads' query (B, n, h * w, d)."""
        query = query.unflatten(2, (height, width))
        rows = query @ self._table(self.rel_pos_h, height)
        columns = (query.transpose(2, 3) @ self._table(self.rel_pos_w, width)).transpose(2, 3).contiguous()
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(4).flatten(2, 3)

    def _table(self, rel_pos: torch.Tensor, size: int) -> torch.Tensor:
        """(size, d, size): the vector of each distance between two of `size` places, for (2 * size - 1, d) vectors."""
        if len(rel_pos) != 2 * size - 1:  # another size than the weights were trained for
            return self.get_rel_pos(size, size, rel_pos).transpose(1, 2)
        places = torch.arange(size, device=rel_pos.device)
        return rel_pos[places.unsqueeze(1) - places + size - 1].transpose(1, 2)


def use_headwise_attention(vision_encoder: nn.Module) -> None:
    """Puts [`SamVisionHeadwiseAttention`] into the layers of a SAM image encoder that use SDPA, before weights are
    loaded."""
    for layer in vision_encoder.layers:
        if type(layer.attn) is SamVisionSdpaAttention:
            layer.attn = SamVisionHeadwiseAttention(vision_encoder.config, layer.window_size)
