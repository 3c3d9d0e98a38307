"""Tiny random models of the Qwen2.5-VL family, built in code. A visual token is a square of 8 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_guidance_tokenizer
from transformers_litelvlm import (
    Qwen2_5_VLLite,
    Qwen2_5_VLLiteConfig,
    Qwen2_5_VLLiteProcessor,
    Qwen2_5_VLLiteVideoProcessor,
)


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO = range(len(SPECIAL))
VOCABULARY = len(SPECIAL) + 256
PATCH, MERGE, TEMPORAL = 4, 2, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(**kwargs) -> Qwen2_5_VLLiteConfig:
    """Three vision blocks with windows of 2 x 2 visual tokens, but for the last; two decoder layers."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "tokens_per_second": 4,
        "window_size": 16,
        "out_hidden_size": 48,
        "fullatt_block_indexes": [0, 2],
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
        "pad_token_id": PAD,
        "bos_token_id": PAD,
        "eos_token_id": END,
    }
    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    return Qwen2_5_VLLiteConfig(vision_config=vision, text_config=text, **ids, **kwargs)


def stock_config(config: Qwen2_5_VLLiteConfig) -> Qwen2_5_VLConfig:
    names = (
        "vision_config",
        "text_config",
        "image_token_id",
        "video_token_id",
        "vision_start_token_id",
        "vision_end_token_id",
    )
    return Qwen2_5_VLConfig(**{name: config.to_dict()[name] for name in names})


def tiny_model(**kwargs) -> Qwen2_5_VLLite:
    return asymmetric_(Qwen2_5_VLLite(tiny_config(**kwargs)))


def stock_twin(model: Qwen2_5_VLLite) -> Qwen2_5_VLForConditionalGeneration:
    """The stock class with the same weights."""
    upstream = Qwen2_5_VLForConditionalGeneration(stock_config(model.config)).eval()
    upstream.load_state_dict({n: v for n, v in model.state_dict().items() if ".guidance." not in n})
    return upstream


def save_stock_checkpoint(folder: Path) -> None:
    """A stock checkpoint in `folder`, as on the Hub: one file for both processors, with the class for torchvision."""
    stock_twin(tiny_model()).save_pretrained(folder)
    tiny = tiny_processor()
    tiny.tokenizer.chat_template = CHAT_TEMPLATE
    tiny.tokenizer.save_pretrained(folder)
    settings = {**tiny.image_processor.to_dict(), "image_processor_type": "Qwen2VLImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def tiny_clip(seed: int = 7) -> CLIPModel:
    """A CLIP for pictures of 32 pixels in patches of 8, with the vocabulary of `tiny_guidance_tokenizer`."""
    shared = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        **shared,
        "hidden_size": 24,
        "vocab_size": 514,
        "max_position_embeddings": 77,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    vision = {**shared, "hidden_size": 28, "image_size": 32, "patch_size": 8}
    return asymmetric_(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)), seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=dict(
            zip(("start", "vision_start", "vision_end", "image_token", "video_token"), [SPECIAL[1], *SPECIAL[3:]])
        ),
    )


def tiny_processor(with_clip: bool = False) -> Qwen2_5_VLLiteProcessor:
    settings = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    size = {"shortest_edge": 64, "longest_edge": 64 * 400}
    side = {"height": 32, "width": 32}
    return Qwen2_5_VLLiteProcessor(
        image_processor=Qwen2VLImageProcessorPil(**settings, size=size),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2_5_VLLiteVideoProcessor(**settings, size=size),
        chat_template=CHAT_TEMPLATE,
        guidance_tokenizer=tiny_guidance_tokenizer() if with_clip else None,
        guidance_image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
        if with_clip
        else None,
    )


def random_media(grids: list[tuple[int, int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and grid_thw of images or videos of (t, h, w) visual tokens."""
    grid_thw = torch.tensor([[t, h * MERGE, w * MERGE] for t, h, w in grids])
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(int(grid_thw.prod(-1).sum()), 3 * TEMPORAL * PATCH**2, generator=generator), grid_thw


def prompt(*rows: list, padding_side: str = "left") -> dict[str, torch.Tensor]:
    """Ids, mask and token types of rows given as lists; `("image", n)` and `("video", n)` stand for n placeholders."""
    ids_of = {"image": IMAGE, "video": VIDEO}
    expanded = [
        [token for item in row for token in ([ids_of[item[0]]] * item[1] if isinstance(item, tuple) else [item])]
        for row in rows
    ]
    length = max(map(len, expanded))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(expanded):
        columns = slice(length - len(row), length) if padding_side == "left" else slice(0, len(row))
        ids[index, columns], mask[index, columns] = torch.tensor(row), 1
    types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}


def random_guidance(
    num_media: int, num_expressions: int = 1, length: int = 6, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Sentences of different lengths in the language model's tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(SPECIAL), VOCABULARY, (num_media, num_expressions, length), generator=generator)
    mask = torch.ones_like(ids)
    for media in range(num_media):
        for expression in range(num_expressions):
            mask[media, expression, length - (media + expression) % 3 :] = 0
    return {"guidance_input_ids": ids, "guidance_attention_mask": mask}
