"""What models return about the visual tokens that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.devices import index_on
from transformers_litelvlm.models.upstream import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput


# (M, K) where every image keeps as many tokens, else one tensor (K_i,) for each of the M images.
RetainedIndices = torch.Tensor | Sequence[torch.Tensor]


class NotFiniteError(ValueError, FloatingPointError):
    """What came out is not made of finite numbers."""


@dataclass
class MediaFeatures(BaseModelOutputWithPooling):
    """Features of M images or videos as the language model reads them.

    Attributes:
        pooler_output: list of M tensors (N_i, D), the visual tokens.
        deepstack_features: in families with DeepStack, for each of the first decoder layers a list of M tensors
            (N_i, D), which are added to the states of the visual tokens after that layer.
    """

    deepstack_features: Any = None

    @classmethod
    def of_lists(cls, lists: Sequence[list[torch.Tensor]], **fields: Any) -> Self:
        """From what [`token_lists`] returns."""
        tokens, *layers = lists
        return cls(pooler_output=tokens, deepstack_features=layers or None, **fields)


def deepstack_of(features: Any) -> list[list[torch.Tensor]]:
    """`deepstack_features` of ours or of upstream's output; `[]` in a family without DeepStack."""
    return [list(of_layer) for of_layer in getattr(features, "deepstack_features", None) or []]


def token_lists(features: Any, places: Sequence[int] | None = None) -> list[list[torch.Tensor]]:
    """All that the language model reads of M images or videos, in lists of M tensors (N_i, D): `pooler_output`, and
    the `deepstack_features` of each layer. With `places`, of some of the M, repeated or not."""
    lists = [list(features.pooler_output), *deepstack_of(features)]
    return lists if places is None else [[of_level[place] for place in places] for of_level in lists]


@dataclass
class PrunedImageFeatures(MediaFeatures):
    """Output of `get_image_features` (or `get_video_features`) where pruning is on, for M images of N_i visual tokens.

    It is also the `image_outputs` (or `video_outputs`) of what `forward` and `generate` return, for methods inside the
    language model too.

    Attributes:
        last_hidden_state: features of the vision tower before selection, (M, 1+N, C) in the LLaVA family; `None` where
            tokens were merged inside the tower.
        pooler_output: list of M tensors (K_i, D), projected kept tokens; for a method inside the language model
            (N_i, D), all tokens as they entered it.
        deepstack_features: of the same tokens, see [`MediaFeatures`].
        retained_indices: 0-based raster indices (of a video: frame after frame), long, in the order of
            `pooler_output`; (M, K), or a list of M tensors (K_i,) where images differ in size or the image decides how
            many tokens are kept. Inside the language model: what is left in the end.
        similarity: (M, T, N) and context_scores: (M, N), float32, if the method computed them; lists of M tensors
            (T, N_i) and (N_i,) where images differ in size.
        merge_weights: (M, K, N) float32, or a list of (K_i, N): how much of each visual token is in each kept one;
            `None` if nothing was merged.
        retained_stages: for a method inside the language model, what was left after each layer that pruned, each like
            `retained_indices`.
        num_visual_tokens: N_i of every image.

    `hidden_states` and `attentions` of the vision tower are `None`, also if they are asked for.
    """

    retained_indices: RetainedIndices | None = None
    similarity: Any = None
    context_scores: Any = None
    merge_weights: torch.Tensor | list[torch.Tensor] | None = None
    retained_stages: tuple[RetainedIndices, ...] | None = None
    num_visual_tokens: list[int] | None = None

    def of_images(self, places: Sequence[int]) -> PrunedImageFeatures:
        """The features of some of the images, repeated or not."""

        def rows(values: Any) -> Any:
            if isinstance(values, torch.Tensor):
                return values[index_on(values.device, places)]
            return [values[place] for place in places]

        tokens = ("pooler_output", "deepstack_features")
        fields = {name: rows(values) for name, values in self.items() if name not in tokens}
        return PrunedImageFeatures.of_lists(token_lists(self, places), **fields)


def _read(modality: str, name: str) -> property:
    """A property with one field of the [`PrunedImageFeatures`] of a modality; `None` if there are none."""
    return property(
        lambda self: getattr(getattr(self, f"{modality}_outputs", None), name, None),
        doc=f"`{modality}_outputs.{name}`, see [`PrunedImageFeatures`]; `None` if pruning was off.",
    )


class PrunedOutputMixin:
    """For outputs with `image_outputs` and `video_outputs`: what was kept, by short names."""

    retained_indices = _read("image", "retained_indices")
    merge_weights = _read("image", "merge_weights")
    retained_stages = _read("image", "retained_stages")
    retained_video_indices = _read("video", "retained_indices")
    video_merge_weights = _read("video", "merge_weights")
    retained_video_stages = _read("video", "retained_stages")


@dataclass
class PrunedGenerateOutput(PrunedOutputMixin, GenerateDecoderOnlyOutput):
    """What `generate` returns for `return_dict_in_generate=True`: upstream's, and what was kept.

    Attributes:
        image_outputs, video_outputs: [`PrunedImageFeatures`] of the M images (videos) as they were passed, also if
            there are several sequences for each prompt; `None` if nothing was cut.
    """

    image_outputs: PrunedImageFeatures | None = None
    video_outputs: PrunedImageFeatures | None = None


@dataclass
class PrunedGenerateBeamOutput(PrunedOutputMixin, GenerateBeamDecoderOnlyOutput):
    """The same of a beam search, further as [`PrunedGenerateOutput`]."""

    image_outputs: PrunedImageFeatures | None = None
    video_outputs: PrunedImageFeatures | None = None
