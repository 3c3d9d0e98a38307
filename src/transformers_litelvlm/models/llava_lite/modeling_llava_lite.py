"""LLaVA with visual-token pruning: the stock model, told which visual tokens to keep."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import LlavaForConditionalGeneration, LlavaModel

from transformers_litelvlm.models.family import (
    SENTENCE_ARGUMENTS,
    PrunedHeadMixin,
    PrunedModelMixin,
    pruned_features,
    pruned_forward,
)
from transformers_litelvlm.models.guidance.clip import ClipGuidance, ClipTowerEvidence, load_guidance
from transformers_litelvlm.models.guidance.clip_mlp import activate_in_place
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Grid, Guidance
from transformers_litelvlm.models.guidance.frames import FrameGroup
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.loading import GuidedLoadingMixin
from transformers_litelvlm.models.outputs import MediaFeatures, PrunedOutputMixin
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.prompt.placeholder_embedding import PlaceholderEmbedding
from transformers_litelvlm.models.upstream import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast


# Weights of `LlavaLiteForReferringSegmentation` that the other classes leave aside.
MASK_KEYS = [r"^mask_model\.", r"^text_hidden_fcs\."]


@dataclass
class LlavaLiteModelOutputWithPast(PrunedOutputMixin, LlavaModelOutputWithPast):
    """[`LlavaModelOutputWithPast`] whose `image_outputs` are [`PrunedImageFeatures`] if tokens were pruned."""


@dataclass
class LlavaLiteCausalLMOutputWithPast(PrunedOutputMixin, LlavaCausalLMOutputWithPast):
    """[`LlavaCausalLMOutputWithPast`], further as [`LlavaLiteModelOutputWithPast`]."""


class LlavaLiteLoadingMixin(GuidedLoadingMixin):
    """For the model classes: stock LLaVA has no guidance."""

    # Small beside the language model, and what they compute decides which tokens are kept and where a mask ends.
    unquantized_parts = ("vision_tower", "guidance", "text_hidden_fcs", "mask_model")

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        # Upstream's place to say which missing weights are none of its business; `from_pretrained` fetches these.
        misses_guidance = {name for name in loading_info.missing_keys if "guidance." in name}
        self.base_model.misses_guidance = bool(misses_guidance)
        loading_info.missing_keys -= misses_guidance
        super()._adjust_missing_and_unexpected_keys(loading_info)  # type: ignore[misc]


class EncodedImages(EncodedMedia):
    """Images of one size after a CLIP vision tower, whose layers run when a method asks.

    Args:
        model: the base model.
        states: of M images.
    """

    family = "LLaVA"

    def __init__(self, model: "LlavaLiteModel", states: TowerStates) -> None:
        self.model, self.states = model, states
        self.grids: list[Grid] = [(1, *states.grid)] * len(states)

    def __getitem__(self, places: Sequence[int]) -> "EncodedImages":
        return EncodedImages(self.model, self.states.rows(places))

    def finish(self) -> None:
        _ = self.states.features

    @property
    def tower_features(self) -> torch.Tensor | None:
        return self.states.known_features

    def evidence(self, group: FrameGroup, guidance: Guidance) -> ClipTowerEvidence:
        # Images of one size are one group.
        return ClipTowerEvidence(self.states, self.model.guidance, self.project, guidance)

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.multi_modal_projector(tokens)

    def all_tokens(self) -> list[torch.Tensor]:
        return list(self.project(self.states.features[:, 1:]))


class LlavaLiteModel(LlavaLiteLoadingMixin, PrunedModelMixin, LlavaModel):
    """[`~transformers.LlavaModel`] whose `get_image_features` keeps the visual tokens a pruning method selects.

    Modifications: `get_image_features` and `forward` prune, see [`PrunedModelMixin`]; `guidance` holds the CLIP text
    tower and projections. With pruning off it is the stock model, bit for bit.
    """

    config: LlavaLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    media_arguments: ClassVar[dict[str, tuple[str, ...]]] = {
        "image": ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    }
    output_class = LlavaLiteModelOutputWithPast
    can_share_prefix = True

    forward = pruned_forward(LlavaModel, *SENTENCE_ARGUMENTS)
    get_image_features = pruned_features(LlavaModel, "image", *SENTENCE_ARGUMENTS)

    def __init__(self, config: LlavaLiteConfig) -> None:
        super().__init__(config)
        activate_in_place(self.vision_tower)
        if config.projector_type == "linear":
            widths = (config.vision_config.hidden_size, config.text_config.hidden_size)
            layer = torch.nn.Linear(*widths, bias=config.multimodal_projector_bias)
            # Under the name of the first of upstream's two.
            self.multi_modal_projector = torch.nn.Sequential(OrderedDict(linear_1=layer))
        if config.image_token_id >= config.text_config.vocab_size:
            embedding = PlaceholderEmbedding.in_place_of(self.get_input_embeddings())
            self.set_input_embeddings(embedding)
        self.guidance = ClipGuidance(
            config.guidance_text_config, config.vision_config.hidden_size, config.guidance_projection_dim
        )
        self.post_init()

    def media_grids(self, modality: str, arguments: dict[str, Any]) -> list[Grid]:
        pixels, patch = arguments["pixel_values"], self.config.vision_config.patch_size
        return [(1, pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * len(pixels)

    def encode(self, modality: str, arguments: dict[str, Any]) -> "EncodedImages":
        """As [`PrunedModelMixin.encode`].

        Raises:
            ValueError: if the tower, the layer or the strategy is not one that pruning is defined for.
        """
        pixels, image_sizes, layer, strategy = self.media_arguments["image"]
        # Which layers run is for the method to say: there are no states of all of them to return.
        not_kept = ("output_hidden_states", "output_attentions")
        own = {pixels, image_sizes, layer, strategy, *not_kept, *self.guidance_arguments}
        of_tower = {name: value for name, value in arguments.items() if name not in own}
        layer_index = self._feature_layer_index(arguments.get(layer), arguments.get(strategy))
        return EncodedImages(self, TowerStates.of(self.vision_tower, arguments[pixels], layer_index, **of_tower))

    def features_of_all_tokens(self, modality: str, arguments: dict[str, Any]) -> Any:
        """As upstream's, bit for bit, without the layers of a CLIP tower that come after the features."""
        if any(
            arguments.get(name) is not None for name in ("image_sizes", "output_hidden_states", "output_attentions")
        ):
            return self.upstream_features(modality, arguments)
        try:
            encoded = self.encode(modality, arguments)
        except ValueError:  # of towers and layers for which only pruning in front of the language model is not defined
            return self.upstream_features(modality, arguments)
        return MediaFeatures(pooler_output=encoded.all_tokens(), last_hidden_state=encoded.tower_features)

    def load_missing_guidance(self, **access: Any) -> None:
        """Take the guidance from the CLIP `config.guidance_model` if the checkpoint had none.

        Args:
            access: of `from_pretrained`: `cache_dir`, `force_download`, `local_files_only`, `token`.
        """
        if self.__dict__.pop("misses_guidance"):
            self.guidance = load_guidance(self.config.guidance_model, self.vision_tower, **access)
            self.config.guidance_text_config = self.guidance.text_model.config
            self.config.guidance_projection_dim = self.guidance.text_projection.out_features

    def embed_sentences(self, guidance: Guidance) -> Guidance:
        if guidance.input_ids is None:
            return guidance
        return replace(guidance, text_embeds=self.guidance.encode_text(guidance.input_ids))

    def _feature_layer_index(self, layer: int | list[int] | None, strategy: str | None) -> int:
        """How many tower layers make the features; that number is also the index of the layer that reads them."""
        vision_config = self.config.vision_config
        layer = self.config.vision_feature_layer if layer is None else layer
        strategy = self.config.vision_feature_select_strategy if strategy is None else strategy
        if vision_config.model_type != "clip_vision_model":
            raise ValueError(
                f"Pruning is defined for CLIP vision towers, this one is a {vision_config.model_type!r}. "
                "Set `pruning_budget=None` to run the model unpruned."
            )
        if strategy != "default":
            raise ValueError(f"Pruning needs `vision_feature_select_strategy='default'`, got {strategy!r}.")
        num_layers = vision_config.num_hidden_layers
        index = layer + num_layers + 1 if isinstance(layer, int) and layer < 0 else layer
        if not isinstance(index, int) or not 0 < index < num_layers:
            raise ValueError(
                f"Pruning needs one `vision_feature_layer` before the last of {num_layers} layers, got {layer!r}."
            )
        return index


class LlavaLiteForConditionalGeneration(
    LlavaLiteLoadingMixin, PrunedGenerationMixin, PrunedHeadMixin, LlavaForConditionalGeneration
):
    """[`~transformers.LlavaForConditionalGeneration`] that generates from the visual tokens a pruning method keeps.

    Modifications: `model` is a [`LlavaLiteModel`]; `forward` and `generate` prune once, see [`PrunedHeadMixin`] and
    [`PrunedGenerationMixin`]. Loads stock LLaVA weights.
    """

    config: LlavaLiteConfig
    # The same folder may hold the mask decoder of `LlavaLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    base_class = LlavaLiteModel
    output_class = LlavaLiteCausalLMOutputWithPast

    forward = pruned_forward(LlavaForConditionalGeneration, *SENTENCE_ARGUMENTS)
