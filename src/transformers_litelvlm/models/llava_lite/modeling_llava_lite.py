"""LLaVA with visual-token pruning: the stock model, told which visual tokens to keep."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.decoder.forward import forward_in_decoder
from transformers_litelvlm.models.guidance.clip import ClipGuidance, ClipTowerEvidence, load_guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.linear_projector import LinearProjector
from transformers_litelvlm.models.outputs import PrunedImageFeatures, PrunedOutputMixin
from transformers_litelvlm.models.prompt.embedding import merge_features
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.prompt.placeholder_embedding import PlaceholderEmbedding
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs, project_selection, prune_inputs
from transformers_litelvlm.models.quantization import keep_unquantized
from transformers_litelvlm.models.remote_code import RemoteCodeMixin
from transformers_litelvlm.models.upstream import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    can_return_tuple,
    takes_old_cache_name,
)


# Weights of `LlavaLiteForReferringSegmentation` that the other classes leave aside.
MASK_KEYS = [r"^mask_model\.", r"^text_hidden_fcs\."]

# Small beside the language model, and what they compute decides which tokens survive and where a mask ends.
UNQUANTIZED_PARTS = ["vision_tower", "guidance", "text_hidden_fcs", "mask_model"]


@dataclass
class LlavaLiteModelOutputWithPast(PrunedOutputMixin, LlavaModelOutputWithPast):
    """[`LlavaModelOutputWithPast`] of the shortened prompt; `image_outputs` is [`PrunedImageFeatures`].

    Where a method prunes inside the language model, hidden states have the length of the whole prompt, with zeros for
    tokens that left.
    """


@dataclass
class LlavaLiteCausalLMOutputWithPast(PrunedOutputMixin, LlavaCausalLMOutputWithPast):
    """[`LlavaCausalLMOutputWithPast`] of the shortened prompt, further as [`LlavaLiteModelOutputWithPast`]."""


class GuidanceLoadingMixin:
    """For the model classes: a checkpoint without guidance (stock LLaVA) gets it from `config.guidance_model`.

    A `quantization_config` leaves the guidance and the parts that make masks as they are.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """As upstream.

        Raises:
            ValueError: if guidance is missing, and the CLIP that the config names cannot be loaded or does not fit.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = keep_unquantized(kwargs["quantization_config"], UNQUANTIZED_PARTS)
        result = super().from_pretrained(*args, output_loading_info=output_loading_info, **kwargs)  # type: ignore[misc]
        model = result[0] if output_loading_info else result
        if model.__dict__.pop("_misses_guidance"):
            base, config = model.base_model, model.config
            base.guidance = load_guidance(config.guidance_model, base.vision_tower)
            config.guidance_text_config = base.guidance.text_model.config
            config.guidance_projection_dim = base.guidance.text_projection.out_features
        return result

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        # Upstream's place to say which missing weights are none of its business; `from_pretrained` fetches these.
        misses_guidance = {name for name in loading_info.missing_keys if "guidance." in name}
        self._misses_guidance = bool(misses_guidance)
        loading_info.missing_keys -= misses_guidance
        super()._adjust_missing_and_unexpected_keys(loading_info)  # type: ignore[misc]


class LlavaLiteModel(RemoteCodeMixin, GuidanceLoadingMixin, LlavaModel):
    """[`~transformers.LlavaModel`] whose `get_image_features` keeps the visual tokens that the pruning method selects.

    Modifications: `get_image_features` prunes, `forward` shortens the prompt accordingly, and `guidance` holds the
    CLIP text tower and projections. With pruning off it is the stock model, bit for bit.
    """

    config: LlavaLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    def __init__(self, config: LlavaLiteConfig) -> None:
        super().__init__(config)
        if config.projector_type == "linear":
            self.multi_modal_projector = LinearProjector(config)
        if config.image_token_id >= config.text_config.vocab_size:
            embedding = PlaceholderEmbedding.in_place_of(self.get_input_embeddings())
            self.set_input_embeddings(embedding)
        self.guidance = ClipGuidance(
            config.guidance_text_config, config.vision_config.hidden_size, config.guidance_projection_dim
        )
        self.post_init()

    def num_visual_tokens(self, pixel_values: torch.Tensor) -> int:
        """N, the number of visual tokens of one image of `pixel_values` (M, 3, H, W) before pruning."""
        patch_size = self.config.vision_config.patch_size
        return (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithPooling | PrunedImageFeatures:
        """Encode images and project the visual tokens that the pruning method keeps.

        Args:
            pixel_values: (M, 3, H, W).
            vision_feature_layer, vision_feature_select_strategy, image_sizes: as upstream.
            guidance_input_ids: (M, T, L) CLIP tokens of the T expressions of each image, as the processor makes them.
            guidance_attention_mask: (M, T, L); an expression that an image does not have is all zero.

        Returns:
            Upstream's output where pruning is off, or happens inside the language model. Otherwise
            [`PrunedImageFeatures`]: `pooler_output` is a list of M tensors (K, D), `last_hidden_state` (M, 1+N, C)
            holds the tower's features before selection (`None` for a method that merges inside the tower). Later
            tower layers do not run, so there is no other hidden state.

        Raises:
            ValueError: if the method needs sentences and there are none, or the tower is not one it is defined for.
        """
        num_tokens = self.num_visual_tokens(pixel_values)
        budget = self.config.pruning_config.resolve(num_tokens)
        if budget is None or self.config.pruning_config.build_pruner().is_inside_language_model:
            return super().get_image_features(
                pixel_values,
                vision_feature_layer=vision_feature_layer,
                vision_feature_select_strategy=vision_feature_select_strategy,
                image_sizes=image_sizes,
                **kwargs,
            )
        return_dict = kwargs.pop("return_dict", None)
        states = self.encode_images(pixel_values, vision_feature_layer, vision_feature_select_strategy, **kwargs)
        output = self.select_visual_tokens(states, budget, guidance_input_ids, guidance_attention_mask)
        return output if return_dict is not False else output.to_tuple()

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Any,
    ) -> TowerStates:
        """First half of pruned `get_image_features`: the vision tower's states, which no sentence changes.

        A layer runs when a method first asks for its output. Indexed with the places of images, the result is the
        states of those images.

        Raises:
            ValueError: if the tower, the layer or the strategy is not one that pruning is defined for.
        """
        layer_index = self._feature_layer_index(vision_feature_layer, vision_feature_select_strategy)
        return TowerStates.of(self.vision_tower, pixel_values, layer_index, **kwargs)

    def select_visual_tokens(
        self,
        states: TowerStates,
        budget: int,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
    ) -> PrunedImageFeatures | BaseModelOutputWithPooling:
        """Second half: select and project. Sweeps over methods and budgets call it on states they encoded once.

        Args:
            states: what [`encode_images`] returned, or some of it.
            budget: K, with 1 <= K <= N. For K = N the method orders all tokens, where `get_image_features` would leave
                the model unpruned.
            guidance_input_ids, guidance_attention_mask: (M, T, L), see [`get_image_features`].
            text_embeds: (M, T, P) of `guidance.encode_text`, where they are known already.

        Returns:
            [`PrunedImageFeatures`] under `config.pruning_config`. For a method that prunes inside the language model
            a plain output with all tokens: `forward` prunes them by the config's own budget.

        Raises:
            ValueError: if the method needs sentences and there are none, or cannot keep exactly `budget` tokens.
        """
        pruner = self.config.pruning_config.build_pruner()
        if pruner.is_inside_language_model:
            return BaseModelOutputWithPooling(pooler_output=list(self.multi_modal_projector(states.features[:, 1:])))
        if pruner.needs_text and guidance_input_ids is None:
            raise ValueError(
                f"The pruning method {pruner.name!r} is guided by sentences, but `guidance_input_ids` is None. Pass "
                "`expressions=[...]` to the processor and its whole output to the model, or choose another "
                "`pruning_method`."
            )
        evidence = ClipTowerEvidence(
            states, self.guidance, self.multi_modal_projector, guidance_input_ids, guidance_attention_mask, text_embeds
        )
        features = project_selection(
            pruner.select(evidence, budget),
            evidence,
            self.multi_modal_projector,
            in_raster_order=self.config.pruning_config.resolved_token_order == "raster",
        )
        features.last_hidden_state = states.known_features
        return features

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

    @can_return_tuple
    @takes_old_cache_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        pruned: PrunedInputs | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaLiteModelOutputWithPast:
        """As upstream; where pruning is on, hidden states are those of the shortened prompt (B, L', D).

        Args:
            pruned: the prompt and the images, from a caller that pruned them.
            The rest as upstream, and in [`get_image_features`].
        """
        pruned = pruned or prune_inputs(
            self,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cache=cache,
            mm_encoder_outputs=mm_encoder_outputs,
            image_kwargs={
                "vision_feature_layer": vision_feature_layer,
                "vision_feature_select_strategy": vision_feature_select_strategy,
                "image_sizes": image_sizes,
                "guidance_input_ids": guidance_input_ids,
                "guidance_attention_mask": guidance_attention_mask,
            },
        )
        in_decoder = forward_in_decoder(self, pruned, cache, **kwargs)
        if in_decoder is None:
            inputs = pruned.model_inputs if pruned.plan is None else merge_features(self, pruned, cache)
            output = LlavaLiteModelOutputWithPast(**super().forward(**inputs, cache=cache, return_dict=True, **kwargs))
            output.image_outputs = pruned.features or output.image_outputs
            return output
        return LlavaLiteModelOutputWithPast(
            last_hidden_state=in_decoder.last_hidden_state,
            cache=in_decoder.cache,
            hidden_states=in_decoder.hidden_states,
            image_outputs=in_decoder.features.get("image"),
        )


class LlavaLiteForConditionalGeneration(
    RemoteCodeMixin, GuidanceLoadingMixin, PrunedGenerationMixin, LlavaForConditionalGeneration
):
    """[`~transformers.LlavaForConditionalGeneration`] that generates from the visual tokens a pruning method keeps.

    Modifications: `model` is a [`LlavaLiteModel`]; `forward` shortens labels with the prompt; `generate` encodes and
    prunes once, and returns the full prompt in front of the new tokens, as upstream does. Loads stock LLaVA weights.
    """

    config: LlavaLiteConfig
    # The same folder may hold the mask decoder of `LlavaLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS

    def __init__(self, config: LlavaLiteConfig) -> None:
        # Upstream's constructor would build a stock LlavaModel only to throw it away.
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = LlavaLiteModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any):
        """See [`LlavaLiteModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    @takes_old_cache_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaLiteCausalLMOutputWithPast:
        """As upstream; where pruning is on, logits are those of the shortened prompt (B, L', vocabulary)."""
        pruned = prune_inputs(
            self.model,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            cache=cache,
            mm_encoder_outputs=mm_encoder_outputs,
            image_kwargs={
                "vision_feature_layer": vision_feature_layer,
                "vision_feature_select_strategy": vision_feature_select_strategy,
                "image_sizes": image_sizes,
                "guidance_input_ids": guidance_input_ids,
                "guidance_attention_mask": guidance_attention_mask,
            },
        )
        if pruned.plan is not None and isinstance(logits_to_keep, torch.Tensor):
            raise ValueError("`logits_to_keep` as a tensor names columns of the unpruned prompt; pass an integer.")
        outputs = super().forward(
            **pruned.model_inputs,
            cache=cache,
            logits_to_keep=logits_to_keep,
            pruned=pruned,
            return_dict=True,
            **kwargs,
        )
        return LlavaLiteCausalLMOutputWithPast(**outputs)


__all__ = ["LlavaLiteForConditionalGeneration", "LlavaLiteModel"]
