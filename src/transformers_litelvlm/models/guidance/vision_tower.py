"""A CLIP vision tower run layer by layer, only as far as somebody asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from transformers_litelvlm.models.devices import index_on, to_device_of, weights_of
from transformers_litelvlm.models.upstream import ALL_ATTENTION_FUNCTIONS, clip_eager_attention
from transformers_litelvlm.pruning.base import Between


class TowerStates:
    """Hidden states (M, 1+N, C) of a CLIP vision tower, class token first, computed when asked for and remembered.

    Attributes:
        num_layers: how many layers make the features that LLaVA reads.
        grid: rows and columns of visual tokens.
    """

    def __init__(self, tower: nn.Module, num_layers: int, grid: tuple[int, int], embeddings: torch.Tensor) -> None:
        self.tower, self.num_layers, self.grid = tower, num_layers, grid
        self._known = {0: embeddings}
        self._whole: TowerStates | None = None
        self._places: torch.Tensor | None = None

    @classmethod
    def of(cls, tower: nn.Module, pixel_values: torch.Tensor, num_layers: int, **kwargs) -> TowerStates:
        """States of `pixel_values` (M, 3, H, W); `kwargs` go to the tower's embeddings."""
        weight = tower.get_parameter("embeddings.patch_embedding.weight")
        embeddings = tower.pre_layrnorm(tower.embeddings(to_device_of(tower.embeddings, pixel_values), **kwargs))
        rows, columns = (side // patch for side, patch in zip(pixel_values.shape[-2:], weight.shape[-2:]))
        return cls(tower, num_layers, (rows, columns), embeddings)

    def __len__(self) -> int:
        return len(self._known[0])

    @property
    def device(self) -> torch.device:
        return self._known[0].device

    def rows(self, places: Sequence[int]) -> TowerStates:
        """The states of some of the images; what is computed for them is computed once for all."""
        if list(places) == list(range(len(self))):
            return self
        index = index_on(self.device, places)
        part = TowerStates(self.tower, self.num_layers, self.grid, self._known[0][index])
        part._whole, part._places = self, index
        return part

    @property
    def features(self) -> torch.Tensor:
        """What LLaVA reads, with the class token, (M, 1+N, C)."""
        return self.after(self.num_layers)

    @property
    def known_features(self) -> torch.Tensor | None:
        """The features, if they were computed."""
        return self._known.get(self.num_layers)

    def after(self, num_layers: int) -> torch.Tensor:
        """States after the first `num_layers` layers; later layers do not run."""
        if num_layers not in self._known and self._whole is not None:
            self._known[num_layers] = self._whole.after(num_layers)[self._places]
        if num_layers not in self._known:
            start = max(known for known in self._known if known < num_layers)
            states = self._known[start]
            for layer in self.tower.encoder.layers[start:num_layers]:
                before, states = states, layer(states, None)
            # What the last layer read stays at hand too: several methods look at that layer's attention.
            self._known.update({num_layers - 1: before, num_layers: states})
        return self._known[num_layers]

    def class_query_and_keys(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query of the class token (M, H, d), not scaled, and all keys (M, H, 1+N, d) of a layer."""
        if self._whole is not None:
            query, keys = self._whole.class_query_and_keys(layer)
            return query[self._places], keys[self._places]
        block: Any = self.tower.encoder.layers[layer]
        states = to_device_of(block.layer_norm1, self.after(layer))
        with weights_of(block):
            normed, head_dim = block.layer_norm1(states), block.self_attn.head_dim
            query = _split_heads(block.self_attn.q_proj(normed[:, :1]), head_dim)[:, :, 0]
            # With gradients, upstream's layer may have to be repeated in the backward pass.
            if layer + 1 != self.num_layers or layer + 1 in self._known or torch.is_grad_enabled():
                return query, _split_heads(block.self_attn.k_proj(normed), head_dim)
            self._known[layer + 1], keys = _with_keys(block, states, normed)
            return query, keys

    def after_value_attention(self) -> torch.Tensor:
        """States (M, 1+N, C) if the values of the layer that makes the features were its queries and keys too, and it
        had no MLP."""
        layer = self.tower.encoder.layers[self.num_layers - 1]
        attention, states = layer.self_attn, self.after(self.num_layers - 1)
        states = to_device_of(layer.layer_norm1, states)
        with weights_of(layer):
            values = _split_heads(attention.v_proj(layer.layer_norm1(states)), attention.head_dim)
            mixed = nn.functional.scaled_dot_product_attention(values, values, values, scale=attention.scale)
            return states + attention.out_proj(mixed.transpose(1, 2).flatten(2))

    def run_layers(self, between: Between) -> torch.Tensor:
        """See [`VisualEvidence.run_layers`]. Attention is SDPA: FlashAttention takes no bias."""
        states, bias = self._known[0], None
        for layer in self.tower.encoder.layers[: self.num_layers]:
            with weights_of(layer):
                attention = layer.self_attn
                states = to_device_of(layer.layer_norm1, states)
                normed = layer.layer_norm1(states)
                query, keys, values = _heads(attention, normed)
                mask = None if bias is None else bias[:, None, None, :].to(query.dtype)
                mixed = nn.functional.scaled_dot_product_attention(
                    query, keys, values, attn_mask=mask, scale=attention.scale
                )
                states = states + attention.out_proj(mixed.transpose(1, 2).flatten(2))
                states, bias = between(states, keys)
                states = states + layer.mlp(layer.layer_norm2(states))
        return states


def _with_keys(block: Any, states: torch.Tensor, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What upstream's layer makes of states (M, 1+N, C), bit for bit, and its keys (M, H, 1+N, d)."""
    attention = block.self_attn
    heads = _heads(attention, normed)
    kind = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, clip_eager_attention)
    mixed, _ = kind(attention, *heads, None, scaling=attention.scale, dropout=0.0)
    states = states + attention.out_proj(mixed.flatten(2).contiguous())
    return states + block.mlp(block.layer_norm2(states)), heads[1]


def _heads(attention: Any, normed: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values (M, H, t, d) of normalised states (M, t, C)."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [_split_heads(part(normed), attention.head_dim) for part in parts]


def _split_heads(states: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(M, t, C) as (M, H, t, d)."""
    return states.unflatten(-1, (-1, head_dim)).transpose(1, 2)
