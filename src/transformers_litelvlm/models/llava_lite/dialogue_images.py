"""Several dialogues about one picture in the LLaVA family: encoded once, and read once as far as they are the same."""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.shared_prefix import shared_prefix_length


class DialogueImagesMixin:
    """For the class that writes masks: inputs of B dialogues about M pictures."""

    model: Any
    config: Any

    def features_of_dialogues(
        self,
        pixel_values: torch.Tensor,
        dialogue_images: torch.Tensor,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """What `get_image_features` gives for B dialogues about M pictures, which are encoded once.

        Args:
            pixel_values: (M, 3, H, W).
            dialogue_images: (B,) the picture that each dialogue is about; ascending.
            guidance_input_ids, guidance_attention_mask: (B, T, L), or (M, T, L) for one selection per picture.

        Returns:
            Features of the M pictures where all dialogues about one get the same visual tokens, else of B dialogues.

        Raises:
            ValueError: if there are more or fewer pictures than `dialogue_images` names.
        """
        about, base = dialogue_images.tolist(), self.model
        num_pictures = len(pixel_values)
        if num_pictures != about[-1] + 1:
            raise ValueError(
                f"`pixel_values` holds {num_pictures} pictures, but `dialogue_images` names {about[-1] + 1}: give "
                "each of them once."
            )
        guidance = {"guidance_input_ids": guidance_input_ids, "guidance_attention_mask": guidance_attention_mask}
        budget = self.config.pruning_config.resolve(base.num_visual_tokens(pixel_values))
        pruner = self.config.pruning_config.build_pruner()
        is_guided = budget is not None and pruner.needs_text and not pruner.is_inside_language_model
        by_picture = guidance_input_ids is not None and len(guidance_input_ids) == num_pictures
        if not is_guided or by_picture:
            return base.get_image_features(pixel_values, return_dict=True, **guidance)
        states = base.encode_images(pixel_values)[dialogue_images.to(pixel_values.device, non_blocking=True)]
        return base.select_visual_tokens(states, budget, **guidance)

    def _shared_prefix_length(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, about: list[int]
    ) -> int:
        """How much of the prompt dialogues about a picture can share, if they get the same visual tokens; maybe 0."""
        pruning = self.config.pruning_config
        if pruning.is_on and pruning.build_pruner().is_inside_language_model:
            return 0
        return shared_prefix_length(
            input_ids, attention_mask, about, self.config.image_token_id, self.config.seg_token_id
        )


def features_by_dialogue(features: BaseModelOutputWithPooling, about: list[int]) -> BaseModelOutputWithPooling:
    """Features of M pictures as those of B dialogues, each about one of them."""
    if len(features.pooler_output) == len(about):
        return features
    if isinstance(features, PrunedImageFeatures):
        return features.of_images(about)
    return BaseModelOutputWithPooling(pooler_output=[features.pooler_output[picture] for picture in about])
