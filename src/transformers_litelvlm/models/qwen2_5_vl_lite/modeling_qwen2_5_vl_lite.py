"""Qwen2.5-VL with visual-token pruning of images and videos: the stock model, told which visual tokens to keep."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from transformers_litelvlm.models.decoder.forward import forward_in_decoder
from transformers_litelvlm.models.guidance.clip import SideClip
from transformers_litelvlm.models.outputs import PrunedOutputMixin
from transformers_litelvlm.models.prompt.generation import PrunedGenerationMixin
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs, prune_inputs
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.pruned_media_qwen2_5_vl_lite import (
    PrunedMediaMixin,
    SideGuidanceLoadingMixin,
)
from transformers_litelvlm.models.remote_code import RemoteCodeMixin
from transformers_litelvlm.models.upstream import (
    MultimodalBaseModelOutputWithPast,
    MultimodalCausalLMOutputWithPast,
    can_return_tuple,
    takes_old_cache_name,
)


# Weights of `Qwen2_5_VLLiteForReferringSegmentation` that the other classes leave aside.
MASK_KEYS = [r"^mask_model\.", r"^seg_head\."]

# What upstream computes M-RoPE positions from, beside embeddings and cache.
_POSITION_ARGUMENTS = (
    "input_ids",
    "attention_mask",
    "image_grid_thw",
    "video_grid_thw",
    "mm_token_type_ids",
    "second_per_grid_ts",
)


@dataclass
class Qwen2_5_VLLiteModelOutputWithPast(PrunedOutputMixin, MultimodalBaseModelOutputWithPast):
    """Upstream's output, of the shortened prompt; `image_outputs`, `video_outputs` are [`PrunedImageFeatures`].

    Where a method prunes inside the language model, hidden states have the length of the whole prompt, with zeros for
    tokens that left.
    """


@dataclass
class Qwen2_5_VLLiteCausalLMOutputWithPast(PrunedOutputMixin, MultimodalCausalLMOutputWithPast):
    """Upstream's output, of the shortened prompt, further as [`Qwen2_5_VLLiteModelOutputWithPast`]."""


class Qwen2_5_VLLiteModel(RemoteCodeMixin, SideGuidanceLoadingMixin, PrunedMediaMixin, Qwen2_5_VLModel):
    """[`~transformers.Qwen2_5_VLModel`] whose `get_image_features` and `get_video_features` keep selected tokens.

    Modifications: both prune, `forward` shortens the prompt accordingly, and `guidance` holds a CLIP where
    `config.guidance` is `"clip"`. With pruning off it is the stock model, bit for bit.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the heads of the classes built on this one.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", *MASK_KEYS]

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        super().__init__(config)
        self.guidance = None if config.guidance_config is None else SideClip(config.guidance_config)
        self.post_init()

    def prune_prompt(
        self,
        *,
        input_ids: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
        full_positions: Callable[[], torch.Tensor | None] | None = None,
        **prompt: Any,
    ) -> PrunedInputs:
        """[`prune_inputs`] with guidance divided among images and videos, and M-RoPE positions of the full prompt.

        Args:
            guidance_input_ids, guidance_attention_mask, guidance_pixel_values: those of the images, then those of the
                videos.
            full_positions: see [`prune_inputs`]; default: as upstream's `forward`.
            The rest as in `forward`.

        Raises:
            ValueError: as [`prune_inputs`]; for a prompt with the kept placeholders alone, without `position_ids`.
        """
        image_kwargs: dict[str, Any] = {"image_grid_thw": image_grid_thw}
        video_kwargs: dict[str, Any] = {"video_grid_thw": video_grid_thw}
        both = image_grid_thw is not None and video_grid_thw is not None
        for name, rows in (
            ("guidance_input_ids", guidance_input_ids),
            ("guidance_attention_mask", guidance_attention_mask),
            ("guidance_pixel_values", guidance_pixel_values),  # of an image one, so they divide like the sentences
        ):
            if rows is not None:
                image_kwargs[name] = rows[: len(image_grid_thw)] if both else rows
                video_kwargs[name] = rows[len(image_grid_thw) :] if both else rows

        def positions() -> torch.Tensor | None:
            return self.compute_3d_position_ids(
                input_ids=input_ids,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                # Upstream only reads the size and device of these.
                inputs_embeds=input_ids.unsqueeze(-1) if input_ids is not None else prompt["inputs_embeds"],
                attention_mask=prompt["attention_mask"],
                cache=prompt.get("cache"),
                second_per_grid_ts=second_per_grid_ts,
                mm_token_type_ids=prompt["mm_token_type_ids"],
            )

        pruned = prune_inputs(
            self,
            input_ids=input_ids,
            image_kwargs=image_kwargs,
            video_kwargs=video_kwargs,
            full_positions=full_positions or positions,
            **prompt,
        )
        pruned.model_inputs["second_per_grid_ts"] = second_per_grid_ts
        if pruned.plan is not None:
            self._continue_after_the_full_prompt(pruned)
        elif (pruned.features or pruned.video_features) and prompt["position_ids"] is None:
            raise ValueError(
                "The prompt already holds the placeholders of the kept tokens alone, so their places in the picture "
                "cannot be told from it. Pass `position_ids`, or a prompt with all placeholders."
            )
        return pruned

    def _continue_after_the_full_prompt(self, pruned: PrunedInputs) -> None:
        """Adapt what upstream derives from the length of the prompt, which is shorter now than its positions say."""
        full, is_real = pruned.full_position_ids, pruned.plan.is_real
        if full is None or full.ndim < 3:
            return
        # New positions are `rope_deltas` plus the number of tokens before, as in upstream's `get_rope_index`.
        self.rope_deltas = (full[-3:].amax(dim=(0, 2)) + 1 - is_real.sum(dim=1)).unsqueeze(1)
        if len(full) == 4:
            # Row 0 numbers the tokens for the attention mask, where a gap would mean another, packed sequence.
            numbers = (is_real.long().cumsum(dim=-1) - 1).clamp(min=0)
            short = pruned.model_inputs["position_ids"]
            pruned.model_inputs["position_ids"] = torch.cat((numbers.unsqueeze(0), short[1:]))

    @can_return_tuple
    @takes_old_cache_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
        pruned: PrunedInputs | None = None,
        **kwargs: Any,
    ) -> tuple | Qwen2_5_VLLiteModelOutputWithPast:
        """As upstream; where pruning is on, hidden states are those of the shortened prompt (B, L', D).

        Args:
            pruned: the prompt and the media, from a caller that pruned them.
            The rest as upstream, and in [`get_image_features`].
        """
        pruned = pruned or self.prune_prompt(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts,
            mm_encoder_outputs=mm_encoder_outputs,
            guidance_input_ids=guidance_input_ids,
            guidance_attention_mask=guidance_attention_mask,
            guidance_pixel_values=guidance_pixel_values,
        )
        in_decoder = forward_in_decoder(
            self,
            pruned,
            cache,
            # Upstream's names for what decides M-RoPE positions.
            lambda embeds: self.compute_3d_position_ids(
                inputs_embeds=embeds,
                cache=cache,
                **{name: pruned.model_inputs.get(name) for name in _POSITION_ARGUMENTS},
            ),
            **kwargs,
        )
        if in_decoder is None:
            output = Qwen2_5_VLLiteModelOutputWithPast(
                **super().forward(**pruned.model_inputs, cache=cache, return_dict=True, **kwargs)
            )
            output.image_outputs = pruned.features or output.image_outputs
            output.video_outputs = pruned.video_features or output.video_outputs
            return output
        return Qwen2_5_VLLiteModelOutputWithPast(
            last_hidden_state=in_decoder.last_hidden_state,
            cache=in_decoder.cache,
            hidden_states=in_decoder.hidden_states,
            image_outputs=in_decoder.features.get("image"),
            video_outputs=in_decoder.features.get("video"),
        )


class Qwen2_5_VLLiteForConditionalGeneration(
    RemoteCodeMixin, SideGuidanceLoadingMixin, PrunedGenerationMixin, Qwen2_5_VLForConditionalGeneration
):
    """[`~transformers.Qwen2_5_VLForConditionalGeneration`] on the visual tokens that a pruning method keeps.

    Modifications: `model` is a [`Qwen2_5_VLLiteModel`]; `forward` shortens labels with the prompt; `generate` encodes
    and prunes once, and returns the full prompt in front of the new tokens, as upstream does. Loads stock weights.
    """

    config: Qwen2_5_VLLiteConfig
    # The same folder may hold the mask decoder of `Qwen2_5_VLLiteForReferringSegmentation`.
    _keys_to_ignore_on_load_unexpected = MASK_KEYS
    _prompt_arguments = (
        "attention_mask",
        "position_ids",
        "pixel_values",
        "pixel_values_videos",
        "inputs_embeds",
        "mm_encoder_outputs",
        "mm_token_type_ids",
    )
    _encoder_arguments = (
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "guidance_input_ids",
        "guidance_attention_mask",
        "guidance_pixel_values",
    )

    def __init__(self, config: Qwen2_5_VLLiteConfig) -> None:
        # Upstream's constructor would build a stock Qwen2_5_VLModel only to throw it away.
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)
        self.model = Qwen2_5_VLLiteModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: Any = None, **kwargs: Any):
        """See [`Qwen2_5_VLLiteModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def get_video_features(self, pixel_values_videos: torch.Tensor, video_grid_thw: Any = None, **kwargs: Any):
        """See [`Qwen2_5_VLLiteModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw, **kwargs)

    def _prune(self, *, prompt: dict[str, Any], encoder_kwargs: dict[str, Any], **kwargs: Any) -> PrunedInputs:
        return self.model.prune_prompt(**prompt, **encoder_kwargs, **kwargs)

    @can_return_tuple
    @takes_old_cache_name
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, Any] | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        guidance_pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple | Qwen2_5_VLLiteCausalLMOutputWithPast:
        """As upstream; where pruning is on, logits are those of the shortened prompt (B, L', vocabulary)."""
        pruned = self.model.prune_prompt(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            labels=labels,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts,
            mm_encoder_outputs=mm_encoder_outputs,
            guidance_input_ids=guidance_input_ids,
            guidance_attention_mask=guidance_attention_mask,
            guidance_pixel_values=guidance_pixel_values,
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
        return Qwen2_5_VLLiteCausalLMOutputWithPast(**outputs)


Qwen2_5_VLLite = Qwen2_5_VLLiteForConditionalGeneration

__all__ = ["Qwen2_5_VLLite", "Qwen2_5_VLLiteForConditionalGeneration", "Qwen2_5_VLLiteModel"]
