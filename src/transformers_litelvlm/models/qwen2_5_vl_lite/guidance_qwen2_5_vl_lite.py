"""Guidance where the vision tower is not CLIP: named sources of what pruning methods may ask about visual tokens.

`"intrinsic"` asks Qwen2.5-VL itself, without a second model; `"clip"` asks a CLIP beside it. Both are ours, not the
paper's: LiteLVLM is defined on CLIP towers, and publishes no figures for this family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.guidance.clip import SideClipEvidence
from transformers_litelvlm.models.guidance.frames import FrameGroup
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.upstream import (
    apply_rotary_pos_emb_vision,
    get_vision_position_ids,
    get_vision_window_index,
)
from transformers_litelvlm.pruning.base import VisualEvidence


# Queries whose attention rows are held at once. A constant, so that memory grows linearly with the number of tokens.
QUERY_CHUNK = 64


class IntrinsicEvidence(VisualEvidence):
    """Evidence from the model's own parts, for B frames of (h, w) visual tokens each.

    The shared space is that of the language model: visual tokens are compared as they enter it, after the merger, with
    the mean of the embeddings of a sentence's tokens. The context score of a token is the attention that its patches
    receive from all patches of their frame in the last vision block that looks at whole frames.

    Args:
        visual: the vision tower.
        embed_tokens: embedding table of the language model.
        features: (B, h * w, D) visual tokens after the merger.
        grid: (h, w).
        states: (B, h * w, merge ** 2, C) input of that block, the patches of each visual token.
        input_ids, attention_mask: (B, T, L) the expressions in the language model's tokens; `None` without text.
    """

    has_class_token = False

    def __init__(
        self,
        visual: nn.Module,
        embed_tokens: nn.Module,
        features: torch.Tensor,
        grid: tuple[int, int],
        states: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        self.features = features
        self.max_expressions = 0 if input_ids is None else input_ids.shape[1]
        self._visual, self._embed_tokens = visual, embed_tokens
        self.grid, self._states = grid, states
        self._input_ids, self._attention_mask = input_ids, attention_mask

    def image_embeds(self) -> torch.Tensor:
        return self.features

    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._input_ids.to(self.features.device)
        embeds = self._embed_tokens(ids).to(ids.device).float()
        mask = torch.ones_like(ids) if self._attention_mask is None else self._attention_mask.to(ids.device)
        counts = mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return (embeds * mask.unsqueeze(-1)).sum(dim=2) / counts, mask.any(dim=-1)

    def projected_features(self) -> torch.Tensor:
        return self.features

    def context_scores(self) -> torch.Tensor:
        """(B, h * w) float32; over the tokens of a frame they sum to 1."""
        return self.attention_and_keys()[0]

    def attention_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`context_scores`]; keys are turned by their position, and the mean over the patches of a token too."""
        frames, _, merged, _ = self._states.shape
        merge = self._visual.spatial_merge_size
        size = torch.tensor([[1, self.grid[0] * merge, self.grid[1] * merge]])
        positions = get_vision_position_ids(size, merge).to(self._states.device, non_blocking=True)
        states = self._states.flatten(1, 2)
        rotary = self._visual.rotary_pos_emb(states, positions)

        block = self._visual.blocks[last_full_attention_block(self._visual.config)]
        heads = block.attn.num_heads
        # (B, patches, 3, heads, head size)
        query, key, _ = block.attn.qkv(block.norm1(states)).unflatten(-1, (3, heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
        received = attention_received(query.transpose(1, 2), key.transpose(1, 2), block.attn.scaling)
        keys = key.float().mean(dim=2).view(frames, -1, merged, key.shape[-1]).mean(dim=2)
        return received.view(frames, -1, merged).sum(dim=-1), keys


class FrameGuidance(ABC):
    """One way to guide the selection from M images or videos, made before they are encoded.

    Args:
        model: the base model.
        grids: (t, h, w) of each of them, in visual tokens.
        grid_thw: (M, 3) the same in patches, as upstream has it.
        input_ids, attention_mask: (M, T, L) the expressions; `None` for methods without text.
        pixel_values: (number of frames, 3, S, S) pictures for CLIP, or its states of them.

    Raises:
        ValueError: if the inputs are not those that this guidance needs, or their numbers do not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        grids: Sequence[tuple[int, int, int]],
        grid_thw: torch.Tensor,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        pixel_values: torch.Tensor | TowerStates | None,
    ) -> None:
        if input_ids is not None and len(input_ids) != len(grids):
            raise ValueError(
                f"`guidance_input_ids` has sentences for {len(input_ids)} images or videos, but there are "
                f"{len(grids)}: give one row each, those of the images first."
            )
        self.model, self.grids, self.grid_thw = model, grids, grid_thw
        self.input_ids, self.attention_mask, self.pixel_values = input_ids, attention_mask, pixel_values

    @classmethod
    def encoder_kwargs(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """What the vision tower is to be called with in addition."""
        return {}

    @abstractmethod
    def evidence(
        self, group: FrameGroup, features: torch.Tensor, encoded: BaseModelOutputWithPooling
    ) -> VisualEvidence:
        """What a method may ask about the frames of `group`.

        Args:
            features: (B, h * w, D) their visual tokens.
            encoded: output of the vision tower for all M images or videos.
        """

    def sentences(self, group: FrameGroup) -> list[torch.Tensor | None]:
        """Ids and mask (B, T, L) of the expressions of each frame."""
        of_media = (self.input_ids, self.attention_mask)
        return [None if rows is None else torch.stack([rows[media] for media in group.media]) for rows in of_media]


class IntrinsicGuidance(FrameGuidance):
    """`guidance="intrinsic"`: see [`IntrinsicEvidence`]."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.pixel_values is not None:
            raise ValueError(
                "`guidance_pixel_values` are for `guidance='clip'`, but the model has `guidance='intrinsic'`, which "
                "reads sentences in the language model's tokens. Set `model.config.guidance = 'clip'` (and load the "
                "CLIP: `model.base_model.load_guidance()`), or load the processor without `guidance_model`."
            )
        self._states: Sequence[torch.Tensor] | None = None

    @classmethod
    def encoder_kwargs(cls, config: PreTrainedConfig) -> dict[str, Any]:
        # Of all hidden states, upstream then keeps this one alone: the input of the block that gives the context.
        return {"output_hidden_states": [last_full_attention_block(config.vision_config)]}

    def evidence(
        self, group: FrameGroup, features: torch.Tensor, encoded: BaseModelOutputWithPooling
    ) -> VisualEvidence:
        if self._states is None:  # once for all groups
            self._states = self._states_of_frames(encoded)
        states = torch.stack([self._states[frame] for frame in group.frames])
        visual, embed_tokens = self.model.visual, self.model.get_input_embeddings()
        return IntrinsicEvidence(visual, embed_tokens, features, group.grid, states, *self.sentences(group))

    def _states_of_frames(self, encoded: BaseModelOutputWithPooling) -> Sequence[torch.Tensor]:
        """Of every frame (h * w, merge ** 2, C), in raster order; the tower keeps its patches window by window."""
        [states] = [states for states in encoded.hidden_states if states is not None]
        visual = self.model.visual
        window_index, _ = get_vision_window_index(
            self.grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
        )
        order = window_index.to(states.device).argsort()
        states = states.view(len(order), visual.spatial_merge_unit, -1)[order]
        return states.split([height * width for t, height, width in self.grids for _ in range(t)])


class SideClipGuidance(FrameGuidance):
    """`guidance="clip"`: see [`SideClipEvidence`]."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model.guidance is None:
            raise ValueError(
                "`guidance='clip'` needs a CLIP beside the model, and none is loaded: pass `guidance='clip'` to "
                "`from_pretrained`, or call `model.base_model.load_guidance()`."
            )
        num_frames = sum(t for t, _, _ in self.grids)
        if self.pixel_values is not None and len(self.pixel_values) != num_frames:
            raise ValueError(
                f"`guidance_pixel_values` holds {len(self.pixel_values)} pictures, but the images and temporal "
                f"patches of videos are {num_frames}."
            )

    def evidence(
        self, group: FrameGroup, features: torch.Tensor, encoded: BaseModelOutputWithPooling
    ) -> VisualEvidence:
        pictures = self.pixel_values
        if pictures is not None:
            pictures = pictures[torch.tensor(group.frames, device=pictures.device)]
        return SideClipEvidence(self.model.guidance, pictures, features, group.grid, *self.sentences(group))


GUIDANCE: dict[str, type[FrameGuidance]] = {"intrinsic": IntrinsicGuidance, "clip": SideClipGuidance}


def attention_received(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention that each of S tokens receives, averaged over heads and queries.

    Args:
        query, key: (B, H, S, D).
        scaling: factor of the logits.

    Returns:
        (B, S) float32; a row sums to 1. Needs memory for S times a constant number of attention weights.
    """
    query, key = query.float() * scaling, key.float().transpose(2, 3).contiguous()
    received = key.new_zeros(len(key), key.shape[-1])
    for rows in query.split(QUERY_CHUNK, dim=2):
        received += (rows @ key).softmax(dim=-1).sum(dim=(1, 2))
    return received / (query.shape[1] * query.shape[2])


def last_full_attention_block(vision_config) -> int:
    """Index of the last vision block that attends over whole frames, not windows.

    Raises:
        ValueError: if there is none.
    """
    full = [index for index in vision_config.fullatt_block_indexes if index < vision_config.depth]
    if not full:
        raise ValueError(
            "`guidance='intrinsic'` reads a vision block with full attention, and `fullatt_block_indexes` "
            f"{list(vision_config.fullatt_block_indexes)} names none of the {vision_config.depth} blocks."
        )
    return max(full)
