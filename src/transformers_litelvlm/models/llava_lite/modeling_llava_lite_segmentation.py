"""LLaVA that writes masks: the language model's [SEG] states prompt the decoder of a stock SAM (LISA, GLaMM)."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.dialogue_images import DialogueImagesMixin, features_by_dialogue
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.masks.sam import (
    ReferringSegmentationOutput,
    by_image,
    count_seg,
    decode_masks,
    foreground_confidence,
    require_mask_parts,
    resize_masks,
    states_before_seg,
    states_of_new_tokens,
)
from transformers_litelvlm.models.masks.sam_in_chunks import run_in_chunks
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.compaction import count_prompt
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs, prune_inputs
from transformers_litelvlm.models.prompt.shared_prefix import read_after_shared_prefix


class LlavaLiteForReferringSegmentation(DialogueImagesMixin, LlavaLiteForConditionalGeneration):
    """[`LlavaLiteForConditionalGeneration`] with a [SEG] projection and a mask decoder.

    Modifications: `text_hidden_fcs` projects the hidden state before each [SEG] to a prompt of `mask_model`, a stock
    [`~transformers.SamModel`] whose image encoder mixes some heads at a time; [`segment`] and [`generate_masks`]
    return masks at the original size. The wiring is that of LISA and GLaMM; their names for the parts are kept.
    """

    # Everything is expected here: nothing of the folder is left over.
    _keys_to_ignore_on_load_unexpected: list[str] = []

    def __init__(self, config: LlavaLiteConfig) -> None:
        require_mask_parts(config, type(self).__name__, "LlavaLiteForConditionalGeneration")
        super().__init__(config)
        hidden_size = config.text_config.hidden_size
        prompt_size = config.mask_config.prompt_encoder_config.hidden_size
        self.text_hidden_fcs = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, prompt_size)
        )
        self.mask_model = AutoModel.from_config(config.mask_config)
        run_in_chunks(self.mask_model.vision_encoder)
        self.post_init()

    def encode_for_masks(self, mask_pixel_values: torch.Tensor) -> torch.Tensor:
        """SAM's image embeddings (B, C, h, w) of `mask_pixel_values` (B, 3, S, S); the sentences play no part."""
        encoder = self.mask_model.vision_encoder
        pixel_values = to_device_of(encoder, mask_pixel_values.to(self.mask_model.dtype))
        return self.mask_model.get_image_embeddings(pixel_values)

    def predict_low_res_masks(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        image_embeddings: torch.Tensor,
        num_masks: list[int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
        """Masks for every [SEG] of `input_ids`; differentiable, for training as well.

        Args:
            hidden_states: (B, L, D) of the language model, after its final norm.
            input_ids: (B, L), the ids that those states belong to.
            image_embeddings: (B, C, h, w), see [`encode_for_masks`].
            num_masks: [SEG] of each row, where that is known; else the device is asked.

        Returns:
            Logits (B, T, 4h, 4w), predicted IoU (B, T), projected states (B, T, C), and T_i of each row.
        """
        states, counts = states_before_seg(hidden_states, input_ids, self.config.seg_token_id, num_masks)
        prompts = self.text_hidden_fcs(states)
        masks, iou_scores = decode_masks(self.mask_model, image_embeddings, prompts.to(image_embeddings))
        return masks, iou_scores, prompts, counts

    @torch.no_grad()
    def segment(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        mask_pixel_values: torch.Tensor | None = None,
        original_sizes: torch.Tensor | None = None,
        reshaped_input_sizes: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        mask_image_embeddings: torch.Tensor | None = None,
        dialogue_images: torch.Tensor | None = None,
    ) -> ReferringSegmentationOutput:
        """Masks for all sentences of all images in ONE forward pass: the answers with [SEG] are part of the prompt.

        Takes what [`LlavaLiteProcessor.segmentation_inputs`] returns: B dialogues about M pictures. Usually one
        dialogue holds all sentences of its picture, and B = M.

        Args:
            input_ids, attention_mask: (B, L), one [SEG] per sentence.
            pixel_values: (M, 3, H, W) for the vision tower.
            mask_pixel_values: (M, 3, S, S) for SAM.
            original_sizes, reshaped_input_sizes: (M, 2) height, width of the picture, and of it inside the square.
            guidance_input_ids, guidance_attention_mask: (B, T, L) the sentences for CLIP; or (M, T, L), with
                `dialogue_images`, for one selection that all dialogues about a picture share.
            mm_encoder_outputs: features of `get_image_features` instead of `pixel_values`, for sweeps; of each
                dialogue, or of each picture where all dialogues about it get the same.
            mask_image_embeddings: (M, C, h, w) instead of `mask_pixel_values`, for sweeps.
            dialogue_images: (B,) the picture that each dialogue is about, where several are about one; ascending.

        Returns:
            [`ReferringSegmentationOutput`]; its lists have one entry per picture, its tensors one row per dialogue.

        Raises:
            ValueError: if a row of the prompt has no [SEG], or an input is missing.
        """
        # What shapes depend on is asked of the device before it has much to do; from here on, nothing waits for it.
        num_masks = count_seg(input_ids, self.config.seg_token_id)
        original_sizes, reshaped_input_sizes, dialogue_images = (
            value if value is None else value.cpu()
            for value in (original_sizes, reshaped_input_sizes, dialogue_images)
        )
        pruned, states = self.read_dialogues(
            input_ids,
            attention_mask,
            pixel_values=pixel_values,
            guidance_input_ids=guidance_input_ids,
            guidance_attention_mask=guidance_attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            dialogue_images=dialogue_images,
        )
        return self.decode_dialogues(
            states,
            pruned.model_inputs["input_ids"],
            mask_pixel_values=mask_pixel_values,
            mask_image_embeddings=mask_image_embeddings,
            original_sizes=original_sizes,
            reshaped_input_sizes=reshaped_input_sizes,
            features=pruned.features,
            dialogue_images=dialogue_images,
            num_masks=num_masks,
        )

    def read_dialogues(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        guidance_input_ids: torch.Tensor | None = None,
        guidance_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        dialogue_images: torch.Tensor | None = None,
    ) -> tuple[PrunedInputs, torch.Tensor]:
        """First half of [`segment`], whose arguments it has: what the language model makes of the dialogues.

        Returns:
            The shortened prompt, with what stayed in its `features`, and its states (B, L', D) after the final norm.
            Where dialogues about a picture share tokens, only what is behind their common beginning.

        Raises:
            ValueError: if a row of the prompt has no [SEG], or there are no pictures for `dialogue_images`.
        """
        count_seg(input_ids, self.config.seg_token_id)
        counts = None
        if dialogue_images is not None:
            about = dialogue_images.tolist()
            if self.config.pruning_config.is_on:
                counts = {"image": count_prompt(input_ids == self.config.image_token_id, attention_mask)}
            length = self._shared_prefix_length(input_ids, attention_mask, about)
            features = (mm_encoder_outputs or {}).get("image")
            if pixel_values is None and features is None:
                raise ValueError("`pixel_values` is missing: pass `images` to `processor.segmentation_inputs`.")
            if pixel_values is not None:
                features = self.features_of_dialogues(
                    pixel_values, dialogue_images, guidance_input_ids, guidance_attention_mask
                )
            if length and len(features.pooler_output) != len(about):
                return read_after_shared_prefix(self.model, input_ids, attention_mask, features, about, length, counts)
            pixel_values, mm_encoder_outputs = None, {"image": features_by_dialogue(features, about)}
        pruned = prune_inputs(
            self.model,
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=None,
            mm_encoder_outputs=mm_encoder_outputs,
            image_kwargs={
                "guidance_input_ids": guidance_input_ids,
                "guidance_attention_mask": guidance_attention_mask,
            },
            counts=counts,
        )
        outputs = self.model(**pruned.model_inputs, pruned=pruned, use_cache=False)
        return pruned.completed_by(outputs), outputs.last_hidden_state

    @torch.no_grad()
    def generate_masks(
        self,
        input_ids: torch.Tensor,
        mask_pixel_values: torch.Tensor,
        original_sizes: torch.Tensor,
        reshaped_input_sizes: torch.Tensor,
        **kwargs: Any,
    ) -> ReferringSegmentationOutput:
        """Masks for every [SEG] that the model writes itself; the slow route, for open questions.

        Args:
            input_ids: (B, L) prompts that end where the answer begins, one row per image.
            kwargs: further arguments of `generate`: `pixel_values`, guidance, `max_new_tokens`, ...
            The rest as in [`segment`].

        Returns:
            [`ReferringSegmentationOutput`] with `sequences`; an answer without [SEG] has no masks.
        """
        kwargs.update(return_dict_in_generate=True, output_hidden_states=True)
        generated = self.generate(input_ids=input_ids, **kwargs)
        if len(generated.sequences) != len(input_ids):
            raise ValueError("`generate_masks` takes one answer per prompt: `num_return_sequences` must be 1.")
        new_ids = generated.sequences[:, input_ids.shape[1] :]
        output = self.decode_dialogues(
            states_of_new_tokens(generated, new_ids.shape[1]),
            # Shifted by one, so that a state stands before the token it predicted, as in a full sequence.
            torch.nn.functional.pad(new_ids, (1, 0), value=-1)[:, : new_ids.shape[1] + 1],
            mask_pixel_values=mask_pixel_values,
            original_sizes=original_sizes,
            reshaped_input_sizes=reshaped_input_sizes,
        )
        output.sequences = generated.sequences
        return output

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any):
        """As [`LlavaLiteForConditionalGeneration.generate`]; inputs that only masks need are left aside."""
        for name in ("mask_pixel_values", "original_sizes", "reshaped_input_sizes"):
            kwargs.pop(name, None)
        return super().generate(inputs, **kwargs)

    def decode_dialogues(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        *,
        original_sizes: torch.Tensor | None,
        reshaped_input_sizes: torch.Tensor | None,
        mask_pixel_values: torch.Tensor | None = None,
        mask_image_embeddings: torch.Tensor | None = None,
        features: PrunedImageFeatures | None = None,
        dialogue_images: torch.Tensor | None = None,
        num_masks: list[int] | None = None,
    ) -> ReferringSegmentationOutput:
        """Second half of [`segment`], whose arguments it has: masks from the states before each [SEG].

        Args:
            hidden_states, input_ids: (B, L', D) and (B, L') of the shortened prompt.
            features: what was kept of the images, for the output.
            num_masks: [SEG] of each row, where that is known; else the device is asked.
        """
        if original_sizes is None or reshaped_input_sizes is None:
            raise ValueError("`original_sizes` and `reshaped_input_sizes` are needed; the processor returns both.")
        if mask_image_embeddings is None:
            if mask_pixel_values is None:
                raise ValueError("`mask_pixel_values` is missing: pass `images` to `processor.segmentation_inputs`.")
            mask_image_embeddings = self.encode_for_masks(mask_pixel_values)
        if dialogue_images is not None:
            index = dialogue_images.to(mask_image_embeddings.device, non_blocking=True)
            mask_image_embeddings = mask_image_embeddings[index]
        low_res, iou_scores, prompts, counts = self.predict_low_res_masks(
            hidden_states, input_ids, mask_image_embeddings, num_masks
        )
        about = list(range(len(counts))) if dialogue_images is None else dialogue_images.tolist()
        side = self.config.mask_config.vision_config.image_size
        sizes = zip(reshaped_input_sizes.tolist(), original_sizes.tolist())
        logits = [
            resize_masks(masks, side, resized, original)
            for masks, (resized, original) in zip(by_image(low_res, counts, about), sizes, strict=True)
        ]
        return ReferringSegmentationOutput(
            masks=[mask_logits > 0 for mask_logits in logits],
            mask_logits=logits,
            scores=[foreground_confidence(mask_logits) for mask_logits in logits],
            iou_scores=[scores.float() for scores in by_image(iou_scores, counts, about)],
            low_res_masks=low_res,
            seg_embeddings=prompts,
            retained_indices=None if features is None else features.retained_indices,
            similarity=None if features is None else features.similarity,
            context_scores=None if features is None else features.context_scores,
            merge_weights=None if features is None else features.merge_weights,
        )


__all__ = ["LlavaLiteForReferringSegmentation"]
