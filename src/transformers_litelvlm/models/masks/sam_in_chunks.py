"""SAM's image encoder without the largest tensors of the whole model."""

from __future__ import annotations

import torch
from torch import nn

from transformers_litelvlm.models.upstream import SamMLPBlock, SamPatchEmbeddings, SamVisionSdpaAttention


# Attention logits that exist at a time: on CPUs as many as stay in the cache, elsewhere 4 heads over 64 x 64 patches.
LARGEST_CHUNK_CPU = 1 << 21
LARGEST_CHUNK = 1 << 26
# Patches that go through an MLP at a time on CPUs.
MLP_CHUNK_CPU = 1024


class SamVisionChunkedAttention(SamVisionSdpaAttention):
    """[`~transformers.models.sam.modeling_sam.SamVisionSdpaAttention`] in chunks; its weights and results.

    The bias of relative positions has heads * (h * w)^2 elements, 201 million in ViT-B's layers over the whole
    picture, and upstream writes it twice. Here it is written once, for some heads and queries at a time, which takes
    less time and a fraction of the memory. On CPUs, whose attention kernel reads a bias slowly, plain matrix products
    on chunks that stay in the cache take its place; docs/performance.md has the times.
    """

    def forward(self, hidden_states: torch.Tensor, output_attentions: bool = False) -> tuple[torch.Tensor, None]:
        """Mix `hidden_states` (B, h, w, C), pictures or windows of them. Attention weights are never returned."""
        batch, height, width, _ = hidden_states.shape
        num_patches = height * width
        qkv = self.qkv(hidden_states).view(batch, num_patches, 3, self.num_attention_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # (B * heads, h * w, d) each
        if not self.use_rel_pos:
            mixed = nn.functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
            return self._project(mixed, hidden_states), None

        rows, columns = self._relative_positions(query, height, width)
        mix, largest, key = _mix_by_kernel, LARGEST_CHUNK, key.mT
        if query.is_cpu:
            mix, largest, key = _mix_in_cache, LARGEST_CHUNK_CPU, key.contiguous()  # or products copy every chunk
        some_heads, some_queries = max(1, largest // num_patches**2), max(1, largest // num_patches)
        heads = []
        for q, k, v, r, c in zip(*(part.split(some_heads) for part in (query, key, value, rows, columns))):
            chunks = zip(*(part.split(some_queries, dim=1) for part in (q, r, c)))
            heads.append(torch.cat([mix(q, k, v, (r + c).flatten(2)) for q, r, c in chunks], dim=1))
        return self._project(torch.cat(heads), hidden_states), None

    def _project(self, mixed: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        by_picture = mixed.unflatten(0, (len(hidden_states), -1)).transpose(1, 2)
        return self.proj(by_picture.reshape(hidden_states.shape))

    def _relative_positions(self, query: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What rows (n, h * w, h, 1) and columns (n, h * w, 1, w) of the keys add to the logits of a query."""
        query = query.unflatten(1, (height, width))
        rows = query @ self._table(self.rel_pos_h, height)
        columns = (query.transpose(1, 2) @ self._table(self.rel_pos_w, width)).transpose(1, 2)
        return rows.flatten(1, 2).unsqueeze(-1), columns.flatten(1, 2).unsqueeze(-2)

    def _table(self, rel_pos: torch.Tensor, size: int) -> torch.Tensor:
        """(size, d, size): the vector of each distance between two of `size` places, for (2 * size - 1, d) vectors."""
        if len(rel_pos) != 2 * size - 1:  # another size than the weights were trained for
            return self.get_rel_pos(size, size, rel_pos).transpose(1, 2)
        places = torch.arange(size, device=rel_pos.device)
        return rel_pos[places.unsqueeze(1) - places + size - 1].transpose(1, 2)


def _mix_in_cache(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Values (n, k, d) mixed for queries (n, q, d) by keys (n, d, k), with a bias (n, q, k), which is overwritten."""
    return bias.baddbmm_(query, key, alpha=query.shape[-1] ** -0.5).softmax(dim=-1) @ value


def _mix_by_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The same by the fused kernels, which want a batch."""
    query, key, value, bias = (part.unsqueeze(0) for part in (query, key.mT, value, bias))
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)[0]


class SamContiguousPatchEmbeddings(SamPatchEmbeddings):
    """[`~transformers.models.sam.modeling_sam.SamPatchEmbeddings`] with channels side by side in memory.

    Upstream's have patches side by side, and each layer hands that on: every norm and MLP copies first.
    """

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) to patches (B, h, w, C)."""
        return super().forward(pixel_values).contiguous()


class SamChunkedMLP(SamMLPBlock):
    """[`~transformers.models.sam.modeling_sam.SamMLPBlock`], on CPUs in chunks that stay in the cache."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States (..., C) to states."""
        if not hidden_states.is_cpu:
            return super().forward(hidden_states)
        whole, chunks = super().forward, hidden_states.flatten(0, -2).split(MLP_CHUNK_CPU)
        return torch.cat([whole(chunk) for chunk in chunks]).view_as(hidden_states)


def run_in_chunks(vision_encoder: nn.Module) -> None:
    """Makes the layers of a SAM image encoder that use SDPA work in chunks. Before weights are loaded."""
    vision_encoder.patch_embed = SamContiguousPatchEmbeddings(vision_encoder.config)
    for layer in vision_encoder.layers:
        if type(layer.attn) is SamVisionSdpaAttention:
            layer.attn = SamVisionChunkedAttention(vision_encoder.config, layer.window_size)
            layer.mlp = SamChunkedMLP(vision_encoder.config)
