"""InternVL with visual-token pruning: the stock model, told which visual tokens to keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from transformers import InternVLForConditionalGeneration, InternVLModel

from transformers_litelvlm.models.devices import index_on, weights_of
from transformers_litelvlm.models.family import (
    SENTENCE_ARGUMENTS,
    PrunedHeadMixin,
    PrunedModelMixin,
    pruned_features,
    pruned_forward,
)
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid, Guidance, rows_of
from transformers_litelvlm.models.guidance.frames import FrameGroup
from transformers_litelvlm.models.guidance.intrinsic import IntrinsicEvidence
from transformers_litelvlm.models.internvl_lite.configuration_internvl_lite import InternVLLiteConfig
from transformers_litelvlm.models.loading import GuidedLoadingMixin
from transformers_litelvlm.models.masks.grounding import MASK_KEYS, GroundedMixin
from transformers_litelvlm.models.outputs import MediaFeatures, PrunedOutputMixin
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.upstream import MultimodalBaseModelOutputWithPast, MultimodalCausalLMOutputWithPast
from transformers_litelvlm.utils.messages import quoted


@dataclass
class InternVLLiteModelOutputWithPast(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    """Upstream's, whose `image_outputs` are [`PrunedImageFeatures`] if tokens were pruned."""


@dataclass
class InternVLLiteCausalLMOutputWithPast(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    """Upstream's, further as [`InternVLLiteModelOutputWithPast`]."""


class TileEvidence(IntrinsicEvidence):
    """[`IntrinsicEvidence`] with the layer of the vision tower that makes the features; its class token is left out.

    Args:
        layer: that layer.
        states: (B, h * w, patches, C) its input, the patches of each visual token.
        more: of [`IntrinsicEvidence`].
    """

    def __init__(self, layer: Any, states: torch.Tensor, *more: Any) -> None:
        super().__init__(*more)
        self._layer, self._states = layer, states

    def heads(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        attention = self._layer.attention
        with weights_of(self._layer):
            states = self._layer.layernorm_before(self._states.flatten(1, 2))
            query, key = (
                norm(project(states)).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for project, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm))
            )
        return query, key, attention.scale


class EncodedTiles(EncodedMedia):
    """M images after the vision tower and the projector. The tower sees each tile of an image alone, as a frame.

    Args:
        model: the base model.
        tokens: (tiles, h * w, D) visual tokens of all images.
        grids: (tiles, h, w) of each image.
        tower: (tiles, 1 + patches, C) output of the tower.
        states: (tiles, 1 + patches, C) input of `layer`.
        layer: of the tower, the one that makes the features.
    """

    has_class_token = False

    def __init__(
        self,
        model: "InternVLLiteModel",
        tokens: torch.Tensor,
        grids: list[Grid],
        tower: torch.Tensor,
        states: torch.Tensor,
        layer: Any,
    ) -> None:
        self.family = model.config.family_title
        self.model, self.tokens, self.grids = model, tokens, grids
        self._tower, self._states, self._layer = tower, states, layer

    def __getitem__(self, places: Sequence[int]) -> "EncodedTiles":
        if list(places) == list(range(len(self))):
            return self
        tiles = index_on(self.tokens.device, rows_of([t for t, _, _ in self.grids], places).tolist())
        tokens, tower, states = (part[tiles] for part in (self.tokens, self._tower, self._states))
        return EncodedTiles(self.model, tokens, [self.grids[place] for place in places], tower, states, self._layer)

    @property
    def tower_features(self) -> torch.Tensor:
        return self._tower

    def evidence(self, group: FrameGroup, guidance: Guidance) -> TileEvidence:
        tiles = index_on(self.tokens.device, group.frames)
        shared = (self.model.get_input_embeddings(), self.tokens[tiles], group.grid, guidance.rows(group.media))
        return TileEvidence(self._layer, self._patches[tiles.to(self._patches.device)], *shared)

    def all_tokens(self) -> list[torch.Tensor]:
        return by_image(self.tokens, [tiles for tiles, _, _ in self.grids])

    @cached_property
    def _patches(self) -> torch.Tensor:
        """(tiles, h * w, patches, C): the states of the patches that pixel shuffle joins to each visual token."""
        _, height, width = self.grids[0]
        rows = round(((self._states.shape[1] - 1) / (height * width)) ** 0.5)
        patches = self._states[:, 1:].unflatten(1, (height, rows, width, rows))
        return patches.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def by_image(tokens: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
    """Visual tokens (tiles, h * w, D) of images of so many tiles as those of each image, (N_i, D)."""
    return [of_image.flatten(0, 1) for of_image in tokens.split(counts)]


def _counts(num_tiles: Any, total: int) -> list[int]:
    """`num_tiles` as a list. Raises ValueError if they do not make `total`."""
    counts = torch.as_tensor(num_tiles, device="cpu").flatten().tolist()
    if sum(counts) != total or min(counts, default=1) < 1:
        raise ValueError(
            f"`num_tiles` is {quoted(counts)}, but `pixel_values` holds {total} tiles. The processor returns both."
        )
    return counts


class InternVLLiteModel(GuidedLoadingMixin, PrunedModelMixin, InternVLModel):
    """[`~transformers.InternVLModel`] whose `get_image_features` keeps the visual tokens a pruning method selects.

    Modifications: `get_image_features` and `forward` prune, see [`PrunedModelMixin`]. They take `num_tiles` (M,), the
    number of tiles of each of M images, or of frames of a video, as the processor returns it; without it, every tile
    is an image. A method before the language model has the budget of an image spread evenly over its tiles, the
    thumbnail among them, and ranks within each of them. With pruning off it is the stock model, bit for bit.
    """

    config: InternVLLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^(language_model\.)?lm_head\.", *MASK_KEYS]

    media_arguments: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "num_tiles", "vision_feature_layer", "vision_feature_select_strategy")
    }
    own_media_arguments = ("num_tiles",)
    # Small beside the language model, and what they compute decides which tokens are kept and where a mask ends.
    unquantized_parts = ("vision_tower", "seg_head", "mask_model")
    output_class = InternVLLiteModelOutputWithPast
    takes_one_tensor = True

    forward = pruned_forward(InternVLModel, "num_tiles", *SENTENCE_ARGUMENTS)
    get_image_features = pruned_features(InternVLModel, "image", "num_tiles", *SENTENCE_ARGUMENTS)

    def media_grids(self, modality: str, arguments: dict[str, Any]) -> list[Grid]:
        pixels, tiles = arguments["pixel_values"], arguments.get("num_tiles")
        counts = [1] * len(pixels) if tiles is None else _counts(tiles, len(pixels))
        scale, patch = self.config.downsample_ratio, self.config.vision_config.patch_size
        height, width = (int(side // size * scale) for side, size in zip(pixels.shape[-2:], patch))
        return [(count, height, width) for count in counts]

    def encode(self, modality: str, arguments: dict[str, Any]) -> EncodedTiles:
        """As [`PrunedModelMixin.encode`].

        Raises:
            ValueError: if the tower or its layer is not one that pruning is defined for.
        """
        last = self._feature_layer(**{name: arguments.get(name) for name in self.media_arguments[modality][2:]})
        of_tower = {name: value for name, value in arguments.items() if name not in self.guidance_arguments}
        grids = self.media_grids(modality, arguments)  # asks for numbers before the tower has much to do
        # Of all hidden states, upstream then keeps these: input and output of the layer that makes the features.
        tower = self.upstream_features(modality, {**of_tower, "output_hidden_states": [last - 1, last]})
        return EncodedTiles(
            self,
            tower.pooler_output,
            grids,
            tower.last_hidden_state,
            tower.hidden_states[last - 1],
            self.vision_tower.encoder.layer[last - 1],
        )

    def features_of_all_tokens(self, modality: str, arguments: dict[str, Any]) -> Any:
        return self.features_by_medium(self.upstream_features(modality, arguments), modality, arguments)

    def features_by_medium(self, features: Any, modality: str, arguments: dict[str, Any]) -> Any:
        # Upstream's are one tensor (tiles, h * w, D).
        tiles, tokens = arguments.get("num_tiles"), getattr(features, "pooler_output", None)
        if tiles is None or not isinstance(tokens, torch.Tensor):
            return features
        of_images = by_image(tokens, _counts(tiles, len(tokens)))
        return MediaFeatures(pooler_output=of_images, last_hidden_state=features.last_hidden_state)

    def load_missing_guidance(self, **access: Any) -> None:
        """Nothing is missing: the model guides itself."""

    def _feature_layer(
        self, vision_feature_layer: int | list[int] | None, vision_feature_select_strategy: str | None
    ) -> int:
        """How many tower layers make the features."""
        config, layer, strategy = self.config.vision_config, vision_feature_layer, vision_feature_select_strategy
        layer = self.config.vision_feature_layer if layer is None else layer
        strategy = self.config.vision_feature_select_strategy if strategy is None else strategy
        count = layer + config.num_hidden_layers + 1 if isinstance(layer, int) and layer < 0 else layer
        if config.model_type != "internvl_vision" or strategy != "default":
            raise ValueError(
                "Pruning is defined for InternVL's own vision tower with `vision_feature_select_strategy='default'`, "
                f"got {config.model_type!r} and {strategy!r}. Set `pruning_budget=None` to run the model unpruned."
            )
        if not isinstance(count, int) or not 0 < count <= config.num_hidden_layers:
            raise ValueError(
                f"Pruning needs one `vision_feature_layer` of {config.num_hidden_layers} layers, got {layer!r}."
            )
        return count


class InternVLLiteForConditionalGeneration(
    GuidedLoadingMixin, PrunedGenerationMixin, PrunedHeadMixin, InternVLForConditionalGeneration
):
    """[`~transformers.InternVLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is an [`InternVLLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`]
    and [`PrunedGenerationMixin`]. Loads stock weights.
    """

    config: InternVLLiteConfig
    # The same folder may hold the mask decoder of `InternVLLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    base_class = InternVLLiteModel
    output_class = InternVLLiteCausalLMOutputWithPast

    forward = pruned_forward(InternVLForConditionalGeneration, "num_tiles", *SENTENCE_ARGUMENTS)


class InternVLLiteForReferringSegmentation(GroundedMixin, InternVLLiteForConditionalGeneration):
    """[`InternVLLiteForConditionalGeneration`] with a [SEG] head and a mask decoder, SAM 2 (Sa2VA).

    Modifications: those of [`Qwen2_5_VLLiteForReferringSegmentation`].
    """

    without_masks = InternVLLiteForConditionalGeneration.__name__
