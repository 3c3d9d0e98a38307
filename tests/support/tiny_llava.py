"""Tiny random models of the LLaVA family, built in code. 16 visual tokens, asymmetric random weights."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SamConfig,
    SamImageProcessorPil,
)

from tests.support.random_weights import asymmetric_
from transformers_litelvlm import LlavaLiteConfig, LlavaLiteForReferringSegmentation, LlavaLiteProcessor


NUM_TOKENS = 16
IMAGE_TOKEN = 98
SEG_TOKEN = 97
VOCABULARY = 99
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "[SEG]"]
GUIDANCE_LENGTH = 77


def tiny_config(with_masks: bool = False, vocabulary: int = VOCABULARY, **kwargs) -> LlavaLiteConfig:
    """32 pixels in patches of 8: a 4 x 4 grid of visual tokens."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    guidance = kwargs.pop("guidance_text_config", None) or CLIPTextConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=20,
        bos_token_id=61,
        eos_token_id=62,
        pad_token_id=62,
    )
    if with_masks:
        kwargs = {"mask_config": tiny_sam_config(), "seg_token_id": SEG_TOKEN, **kwargs}
    return LlavaLiteConfig(
        vision_config=vision,
        text_config=text,
        guidance_text_config=guidance,
        guidance_projection_dim=20,
        **{"image_token_index": IMAGE_TOKEN, "image_seq_length": NUM_TOKENS, **kwargs},
    )


def tiny_sam_config() -> SamConfig:
    vision = {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 24,
    }
    prompt = {"hidden_size": 16, "image_size": 32, "patch_size": 4, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
        "layer_norm_eps": 1e-5,
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def random_pixels(num_images: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def random_guidance(num_images: int, num_expressions: int = 1, length: int = 7, seed: int = 0):
    """CLIP ids and mask (M, T, L): sentences of different lengths, padded with the end token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (num_images, num_expressions, length), generator=generator)
    ids[..., 0] = 61
    mask = torch.ones_like(ids)
    for image in range(num_images):
        for expression in range(num_expressions):
            end = length - 1 - (image + expression) % 3
            ids[image, expression, end:] = 62
            mask[image, expression, end + 1 :] = 0
    return ids, mask


def prompt(*rows: list, padding_side: str = "left"):
    """Ids and mask of rows given as lists; `"image"` stands for the placeholders of one image."""
    expanded = [
        [token for item in row for token in ([IMAGE_TOKEN] * NUM_TOKENS if item == "image" else [item])]
        for row in rows
    ]
    length = max(map(len, expanded))
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(expanded):
        columns = slice(length - len(row), length) if padding_side == "left" else slice(0, len(row))
        ids[index, columns], mask[index, columns] = torch.tensor(row), 1
    return ids, mask


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after the special tokens; `<s>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "seg_token": "[SEG]"},
    )


def tiny_guidance_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = alphabet + [f"{byte}</w>" for byte in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=GUIDANCE_LENGTH)


def tiny_processor(with_masks: bool = True) -> LlavaLiteProcessor:
    side = {"height": 32, "width": 32}
    return LlavaLiteProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side),
        tokenizer=tiny_tokenizer(),
        guidance_tokenizer=tiny_guidance_tokenizer(),
        mask_image_processor=SamImageProcessorPil(size={"longest_edge": 32}, pad_size=side) if with_masks else None,
        patch_size=8,
    )


def tiny_grounding_model(**kwargs) -> LlavaLiteForReferringSegmentation:
    """A model whose vocabularies are those of [`tiny_processor`]."""
    guidance = CLIPTextConfig(
        vocab_size=514,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=GUIDANCE_LENGTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    config = tiny_config(
        with_masks=True,
        vocabulary=len(SPECIAL) + 256,
        guidance_text_config=guidance,
        image_token_index=SPECIAL.index("<image>"),
        seg_token_id=SPECIAL.index("[SEG]"),
        **kwargs,
    )
    return asymmetric_(LlavaLiteForReferringSegmentation(config))


def save_tiny_checkpoint(folder) -> str:
    """A whole grounding checkpoint, model and processor; returns the folder as a string."""
    tiny_grounding_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)
