"""Tiny random models of Qwen's families, built in code; the Qwen2.5-VL. A visual token is a square of 8 pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
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


@dataclass(frozen=True)
class TinyQwen:
    """A family of Qwen's in small: its classes, and what its config has beside what all of them have.

    Attributes:
        video_processor_type: in stock checkpoints; `None` where a file is for both processors.
    """

    model_class: Any
    config_class: Any
    stock_class: Any
    stock_config_class: Any
    processor_class: Any
    video_processor_class: Any
    vision: dict[str, Any]
    text: dict[str, Any]
    video_processor_type: str | None = "Qwen3VLVideoProcessor"

    def tiny_config(self, **kwargs) -> Any:
        """Three vision blocks, two decoder layers."""
        vision = {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": 48,
        }
        text = {
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
        parts = {"vision_config": {**vision, **self.vision}, "text_config": {**text, **self.text}}
        return self.config_class(**parts, **IDS, **kwargs)

    def stock_config(self, config: Any) -> Any:
        return self.stock_config_class(
            **{name: config.to_dict()[name] for name in ("vision_config", "text_config", *IDS)}
        )

    def tiny_model(self, **kwargs) -> Any:
        return asymmetric_(self.model_class(self.tiny_config(**kwargs)))

    def stock_twin(self, model: Any) -> Any:
        """The stock class with the same weights."""
        upstream = self.stock_class(self.stock_config(model.config)).eval()
        upstream.load_state_dict({n: v for n, v in model.state_dict().items() if ".guidance." not in n})
        return upstream

    def tiny_processor(self, with_clip: bool = False) -> Any:
        settings = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
        size = {"shortest_edge": 64, "longest_edge": 64 * 400}
        side = {"height": 32, "width": 32}
        return self.processor_class(
            image_processor=Qwen2VLImageProcessorPil(**settings, size=size),
            tokenizer=tiny_tokenizer(),
            video_processor=self.video_processor_class(**settings, size=size),
            chat_template=CHAT_TEMPLATE,
            guidance_tokenizer=tiny_guidance_tokenizer() if with_clip else None,
            guidance_image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
            if with_clip
            else None,
        )

    def save_stock_checkpoint(self, folder: Path) -> None:
        """A stock checkpoint in `folder`, as on the Hub, with the classes for torchvision."""
        self.stock_twin(self.tiny_model()).save_pretrained(folder)
        tiny = self.tiny_processor()
        tiny.tokenizer.chat_template = CHAT_TEMPLATE
        tiny.tokenizer.save_pretrained(folder)
        files = {"preprocessor_config.json": (tiny.image_processor, "image_processor_type", "Qwen2VLImageProcessor")}
        if self.video_processor_type is not None:
            of_videos = (tiny.video_processor, "video_processor_type", self.video_processor_type)
            files["video_preprocessor_config.json"] = of_videos
        for name, (processor, key, value) in files.items():
            (folder / name).write_text(json.dumps({**processor.to_dict(), key: value}), encoding="utf-8")


# The tower has windows of 2 x 2 visual tokens, but for the last block.
QWEN2_5_VL = TinyQwen(
    model_class=Qwen2_5_VLLite,
    config_class=Qwen2_5_VLLiteConfig,
    stock_class=Qwen2_5_VLForConditionalGeneration,
    stock_config_class=Qwen2_5_VLConfig,
    processor_class=Qwen2_5_VLLiteProcessor,
    video_processor_class=Qwen2_5_VLLiteVideoProcessor,
    vision={"tokens_per_second": 4, "window_size": 16, "fullatt_block_indexes": [0, 2]},
    text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}},
    video_processor_type=None,
)
tiny_config, tiny_model, tiny_processor = QWEN2_5_VL.tiny_config, QWEN2_5_VL.tiny_model, QWEN2_5_VL.tiny_processor
stock_config, stock_twin = QWEN2_5_VL.stock_config, QWEN2_5_VL.stock_twin
save_stock_checkpoint = QWEN2_5_VL.save_stock_checkpoint


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
