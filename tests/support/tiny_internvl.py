"""Tiny random models of the InternVL family, built in code. A tile of 32 pixels has 4 x 4 visual tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.support.random_weights import asymmetric_
from transformers_litelvlm import InternVLLiteConfig, InternVLLiteForConditionalGeneration, InternVLLiteProcessor


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
    "[SEG]",
]
PAD, START, END, IMAGE_START, IMAGE_END, IMAGE, VIDEO, SEG = range(len(SPECIAL))
VOCABULARY = len(SPECIAL) + 256
NUM_TOKENS = 16  # of a tile
SIDE = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = ("vision_config", "text_config", "image_token_id", "image_seq_length", "tie_word_embeddings")


def tiny_config(**kwargs: Any) -> InternVLLiteConfig:
    """Three vision layers, two decoder layers."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": PAD,
        "eos_token_id": END,
    }
    return InternVLLiteConfig(
        vision_config={**vision, "image_size": SIDE, "patch_size": 4, "attention_bias": True},
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=NUM_TOKENS,
        **{"tie_word_embeddings": False, **kwargs},
    )


def tiny_model(**kwargs: Any) -> InternVLLiteForConditionalGeneration:
    return asymmetric_(InternVLLiteForConditionalGeneration(tiny_config(**kwargs)))


def stock_twin(model: Any) -> InternVLForConditionalGeneration:
    """The stock class with the same weights."""
    config = InternVLConfig(**{name: model.config.to_dict()[name] for name in PARTS})
    upstream = InternVLForConditionalGeneration(config).eval()
    upstream.load_state_dict(model.state_dict())
    return upstream


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token", "seg")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={"start": SPECIAL[START], **dict(zip(names, SPECIAL[IMAGE_START:]))},
    )


def tiny_processor(with_clip: bool = False, **kwargs: Any) -> InternVLLiteProcessor:
    """Images have up to six tiles and a thumbnail. There is no CLIP for this family."""
    return InternVLLiteProcessor(
        image_processor=GotOcr2ImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_patches=6),
        tokenizer=tiny_tokenizer(),
        image_seq_length=NUM_TOKENS,
        chat_template=CHAT_TEMPLATE,
        **kwargs,
    )


def save_stock_checkpoint(folder: Path) -> None:
    """A stock checkpoint in `folder`, as on the Hub, with the classes for torchvision."""
    stock_twin(tiny_model()).save_pretrained(folder)
    tiny = tiny_processor()
    tiny.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {**tiny.image_processor.to_dict(), "image_processor_type": "GotOcr2ImageProcessorFast"}
    settings |= {"processor_class": "InternVLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_length": NUM_TOKENS, "processor_class": "InternVLProcessor"}), encoding="utf-8"
    )


def random_tiles(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
