"""The grounding model, put together from the two towers of the first stages and a fresh language model."""

from __future__ import annotations

import torch
from transformers import CLIPModel, LlamaConfig, PreTrainedTokenizerBase, SamModel

from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation


def build_grounding_model(
    clip: CLIPModel, sam: SamModel, tokenizer: PreTrainedTokenizerBase
) -> LlavaLiteForReferringSegmentation:
    """A model of about 4.2 million parameters, with a random projector, language model and [SEG] projection.

    Args:
        clip: gives the vision tower and the guidance.
        sam: gives the mask decoder and its image encoder.
        tokenizer: the language tokenizer.

    Returns:
        The model, in float32.
    """
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = clip.config.vision_config
    config = LlavaLiteConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        guidance_text_config=clip.config.text_config,
        guidance_projection_dim=clip.config.projection_dim,
        guidance_model="",
        mask_config=sam.config,
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
        tie_word_embeddings=False,
    )
    model = LlavaLiteForReferringSegmentation(config)
    model.set_attn_implementation(
        "eager"
    )  # at this size faster on a CPU than the fused kernel, whose backward pass is slow
    # Upstream draws word embeddings fifty times smaller than visual tokens: what a word is would be lost behind the
    # first layer's output.
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    model.model.guidance.text_model.load_state_dict(clip.text_model.state_dict())
    model.model.guidance.text_projection.load_state_dict(clip.text_projection.state_dict())
    model.model.guidance.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    model.mask_model.load_state_dict(sam.state_dict())
    return model
