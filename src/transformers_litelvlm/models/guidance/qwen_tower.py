"""Media after a vision tower of Qwen's, and guidance where that is not CLIP: named sources of what methods may ask.

`"intrinsic"` asks the model itself, without a second one; `"clip"` asks a CLIP beside it. Both are ours, not the
paper's: LiteLVLM is defined on CLIP towers, and publishes no figures for these families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from transformers_litelvlm.models.devices import weights_of
from transformers_litelvlm.models.guidance.clip import SideClipEvidence
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid, Guidance, rows_of
from transformers_litelvlm.models.guidance.frames import FrameGroup
from transformers_litelvlm.models.guidance.intrinsic import IntrinsicEvidence
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.outputs import MediaFeatures, deepstack_of, token_lists
from transformers_litelvlm.models.upstream import apply_rotary_pos_emb_vision, get_vision_position_ids
from transformers_litelvlm.pruning.base import VisualEvidence


class QwenTowerEvidence(IntrinsicEvidence):
    """[`IntrinsicEvidence`] with the last block of Qwen's tower that looks at whole frames. Keys are turned by their
    position.

    Args:
        visual: the vision tower.
        block: index of that block.
        states: (B, h * w, merge ** 2, C) its input, the patches of each visual token.
        more: of [`IntrinsicEvidence`].
    """

    def __init__(self, visual: nn.Module, block: int, states: torch.Tensor, *more: Any) -> None:
        super().__init__(*more)
        self._visual, self._block, self._states = visual, visual.blocks[block], states

    def heads(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        merge = self._visual.spatial_merge_size
        size = torch.tensor([[1, self.grid[0] * merge, self.grid[1] * merge]], device="cpu")
        positions = get_vision_position_ids(size, merge).to(self._states.device, non_blocking=True)
        states, attention = self._states.flatten(1, 2), self._block.attn
        rotary = self._visual.rotary_pos_emb(states, positions)
        # (B, patches, 3, heads, head size)
        with weights_of(self._block):
            heads = attention.qkv(self._block.norm1(states)).unflatten(-1, (3, attention.num_heads, -1))
        query, key, _ = heads.unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
        return query.transpose(1, 2), key.transpose(1, 2), attention.scaling


class EncodedByQwen(EncodedMedia):
    """Images or videos after a vision tower of Qwen's, which ends with the projector.

    Args:
        model: the base model.
        tower: output of the vision tower for M images or videos.
        grid_thw: (M, 3) patches of each.
    """

    has_class_token = False

    def __init__(self, model: PreTrainedModel, tower: Any, grid_thw: torch.Tensor) -> None:
        self.family = model.config.family_title
        self.model, self.tower, self.grid_thw = model, tower, grid_thw
        self.grids = token_grids(grid_thw, model.visual.spatial_merge_size)

    def __getitem__(self, places: Sequence[int]) -> EncodedByQwen:
        if list(places) == list(range(len(self))):
            return self
        return type(self)(self.model, self._tower_of(places), self.grid_thw[list(places)])

    def _tower_of(self, places: Sequence[int]) -> MediaFeatures:
        """Of every hidden state the patches of some of the media."""
        rows = rows_of(self.grid_thw.prod(-1).tolist(), places)
        states = tuple(
            state if state is None else state[rows.to(state.device, non_blocking=True)]
            for state in self.tower.hidden_states or ()
        )
        return MediaFeatures.of_lists(token_lists(self.tower, places), hidden_states=states or None)

    @property
    def deepstack(self) -> list[list[torch.Tensor]]:
        return deepstack_of(self.tower)

    @property
    def tower_features(self) -> torch.Tensor | None:
        return self.tower.last_hidden_state

    def all_tokens(self) -> list[torch.Tensor]:
        return list(self.tower.pooler_output)

    def tokens_of(self, group: FrameGroup) -> torch.Tensor:
        """(B, h * w, D) the visual tokens of the frames of a group."""
        return torch.stack([self._frames[frame] for frame in group.frames])

    @cached_property
    def _frames(self) -> Sequence[torch.Tensor]:
        return torch.cat(list(self.tower.pooler_output)).split(frame_sizes(self.grids))


class EncodedWithIntrinsicGuidance(EncodedByQwen):
    """`guidance="intrinsic"`: see [`IntrinsicEvidence`]."""

    @classmethod
    def encode(
        cls, model: Any, encode: Encode, grid_thw: torch.Tensor, pictures: torch.Tensor | None
    ) -> EncodedByQwen:
        """Run the tower, see [`GUIDANCE`].

        Raises:
            ValueError: if there are pictures for a CLIP.
        """
        if pictures is not None:
            raise ValueError(
                "`guidance_pixel_values` are for `guidance='clip'`, but the model has `guidance='intrinsic'`, which "
                "reads sentences in the language model's tokens. Set `model.config.guidance = 'clip'` (and load the "
                "CLIP: `model.base_model.load_guidance()`), or load the processor without `guidance_model`."
            )
        # Of all hidden states, upstream then keeps this one alone: the input of the block that gives the context.
        return cls(model, encode(output_hidden_states=[model.context_block]), grid_thw)

    def evidence(self, group: FrameGroup, guidance: Guidance) -> VisualEvidence:
        states = torch.stack([self._states[frame] for frame in group.frames])
        model, tokens = self.model, self.tokens_of(group)
        shared = (model.get_input_embeddings(), tokens, group.grid, guidance.rows(group.media))
        return QwenTowerEvidence(model.visual, model.context_block, states, *shared)

    @cached_property
    def _states(self) -> Sequence[torch.Tensor]:
        """Of every frame (h * w, merge ** 2, C), in raster order."""
        [states] = [states for states in self.tower.hidden_states if states is not None]
        states = states.unflatten(0, (-1, self.model.visual.spatial_merge_unit))
        return self.model.in_raster_order(states, self.grid_thw).split(frame_sizes(self.grids))


class EncodedWithSideClip(EncodedByQwen):
    """`guidance="clip"`: see [`SideClipEvidence`].

    Attributes:
        clip: CLIP's states of every frame, whose layers run when a method asks; `None` without pictures.
    """

    clip: TowerStates | None = None

    @classmethod
    def encode(
        cls, model: Any, encode: Encode, grid_thw: torch.Tensor, pictures: torch.Tensor | None
    ) -> EncodedByQwen:
        """Run the tower, see [`GUIDANCE`].

        Args:
            pictures: (number of frames, 3, S, S) for CLIP.

        Raises:
            ValueError: if no CLIP is loaded, or the number of pictures does not fit.
        """
        if model.guidance is None:
            raise ValueError(
                "`guidance='clip'` needs a CLIP beside the model, and none is loaded: pass `guidance='clip'` to "
                "`from_pretrained`, or call `model.base_model.load_guidance()`."
            )
        num_frames = int(grid_thw[:, 0].sum())
        if pictures is not None and len(pictures) != num_frames:
            raise ValueError(
                f"`guidance_pixel_values` holds {len(pictures)} pictures, but the images and temporal "
                f"patches of videos are {num_frames}."
            )
        encoded = cls(model, encode(), grid_thw)
        encoded.clip = None if pictures is None else model.guidance.encode_pictures(pictures)
        return encoded

    def __getitem__(self, places: Sequence[int]) -> EncodedByQwen:
        part: Any = super().__getitem__(places)
        if part is not self and self.clip is not None:
            part.clip = self.clip.rows(rows_of(self.grid_thw[:, 0].tolist(), places).tolist())
        return part

    def evidence(self, group: FrameGroup, guidance: Guidance) -> VisualEvidence:
        pictures = None if self.clip is None else self.clip.rows(group.frames)
        sentences = guidance.rows(group.media)
        return SideClipEvidence(self.model.guidance, pictures, self.tokens_of(group), group.grid, sentences)


# What `encode` of these classes calls: upstream's encoder, with further arguments of the tower.
Encode = Callable[..., Any]
GUIDANCE: dict[str, Any] = {"intrinsic": EncodedWithIntrinsicGuidance, "clip": EncodedWithSideClip}


def token_grids(grid_thw: torch.Tensor, merge: int) -> list[Grid]:
    """(t, h, w) visual tokens of media of `grid_thw` (M, 3) patches."""
    return [(t, height // merge, width // merge) for t, height, width in grid_thw.tolist()]


def frame_sizes(grids: Sequence[Grid]) -> list[int]:
    """Visual tokens of every frame of every medium."""
    return [height * width for t, height, width in grids for _ in range(t)]
