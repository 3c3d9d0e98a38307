"""Images and videos after the vision tower, and the sentences that guide the selection from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch

from transformers_litelvlm.models.devices import index_on
from transformers_litelvlm.models.guidance.frames import FrameGroup
from transformers_litelvlm.pruning.base import VisualEvidence


Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Guidance:
    """The sentences about M images or videos, up to T each.

    Attributes:
        input_ids: (M, T, L) their tokens.
        attention_mask: (M, T, L); a sentence that an image does not have is all zero.
        text_embeds: (M, T, P) their embeddings, if they are known already.
    """

    input_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Guidance:
        """From arguments of a model, which may have two dimensions where there is one sentence for each."""
        tensors = (arguments.get("guidance_input_ids"), arguments.get("guidance_attention_mask"))
        return cls(*(tensor.unsqueeze(1) if tensor is not None and tensor.ndim == 2 else tensor for tensor in tensors))

    @property
    def max_expressions(self) -> int:
        """T; 0 without sentences."""
        return 0 if self.input_ids is None else self.input_ids.shape[1]

    def check(self) -> None:
        """Raises ValueError if the sentences are no ids, or the mask does not fit, or an image or video has none.

        The last is not asked of a device that would have to be waited for.
        """
        ids, mask = self.input_ids, self.attention_mask
        if ids.ndim != 3 or ids.is_floating_point():
            raise ValueError(
                "`guidance_input_ids` must be integers of shape (images or videos, expressions, length), got "
                f"{tuple(ids.shape)} of {ids.dtype}. The processor returns them."
            )
        if mask is None:
            return
        if mask.shape != ids.shape:
            raise ValueError(
                f"`guidance_attention_mask` must have the shape of `guidance_input_ids`, {tuple(ids.shape)}, got "
                f"{tuple(mask.shape)}. The processor returns both."
            )
        if mask.is_cpu and not torch.compiler.is_compiling() and not mask.flatten(1).any(dim=1).all():
            without = (~mask.flatten(1).any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(
                f"`guidance_attention_mask` is all zero for the images or videos {without[:8]}: a method guided "
                "by sentences needs one for each. Pass `expressions` for them, or choose another `pruning_method`."
            )

    def rows(self, media: Sequence[int]) -> Guidance:
        """The sentences about some of the images or videos."""

        def select(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None or list(media) == list(range(len(values))):
                return values
            return values[index_on(values.device, media)]

        return Guidance(select(self.input_ids), select(self.attention_mask), select(self.text_embeds))


NO_SENTENCES = Guidance()


class EncodedMedia(ABC):
    """What a family's vision tower makes of M images or videos. No sentence and no pruning setting changes it.

    `encoded[places]` are some of them, repeated or not: those that B dialogues are about.

    Attributes:
        grids: (t, h, w) visual tokens of each; an image has t = 1.
        family: its name, for messages.
        has_class_token: whether methods that read the class token, or the layers of a CLIP tower, are defined.
    """

    grids: list[Grid]
    family: str
    has_class_token: bool = True

    @property
    def sizes(self) -> list[int]:
        """N_i, the number of visual tokens of each image or video."""
        return [prod(grid) for grid in self.grids]

    def __len__(self) -> int:
        return len(self.grids)

    @abstractmethod
    def __getitem__(self, places: Sequence[int]) -> EncodedMedia: ...

    def finish(self) -> None:  # noqa: B027 (most towers have run)
        """Run what is left of the tower, if it is lazy: for who measures it."""

    @property
    @abstractmethod
    def tower_features(self) -> torch.Tensor | None:
        """`last_hidden_state` of the features: the tower's output before selection, if it was computed."""

    @property
    def deepstack(self) -> list[list[torch.Tensor]]:
        """What the language model reads of the visual tokens beside themselves, see [`~outputs.MediaFeatures`]."""
        return []

    @abstractmethod
    def evidence(self, group: FrameGroup, guidance: Guidance) -> VisualEvidence:
        """What a method may ask about the frames of a group; `guidance` has the sentences of all media."""

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Visual tokens (B, K, C) as the language model reads them, (B, K, D); the same if the tower ends with the
        projector."""
        return tokens

    @abstractmethod
    def all_tokens(self) -> list[torch.Tensor]:
        """All visual tokens of each image or video as the language model reads them, (N_i, D)."""


def rows_of(sizes: Sequence[int], media: Sequence[int]) -> torch.Tensor:
    """Where the rows of some media are, in a tensor that holds the rows of all media one after the other.

    Args:
        sizes: rows of each of them.
        media: which ones, in any order, repeated or not.
    """
    starts = [0, *accumulate(sizes)]
    return torch.cat([torch.arange(starts[one], starts[one + 1], device="cpu") for one in media])
