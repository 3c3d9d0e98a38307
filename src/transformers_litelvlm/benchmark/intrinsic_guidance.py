"""What does choosing by the model's own guidance cost? Selection against prefill, on a random model in the shape of
Qwen2.5-VL-3B (the time does not depend on the weights).

Both run in pairs on the same model: the selection alone, from the vision tower's output to the kept tokens, and the
whole unpruned prefill, vision tower and language model, that it is to be compared with.
"""

from __future__ import annotations

from typing import Any

import torch

from transformers_litelvlm.benchmark.timing import measured_on, time_pairs
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import Qwen2_5_VLLite


QUESTION_TOKENS = 24  # text of the prompt
SENTENCE_TOKENS = 10  # of one sentence of the guidance


def qwen2_5_vl_3b_config() -> Qwen2_5_VLLiteConfig:
    """The shape of Qwen/Qwen2.5-VL-3B-Instruct."""
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    text = {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    return Qwen2_5_VLLiteConfig(vision_config=vision, text_config=text, tie_word_embeddings=True)


def random_inputs(config: Qwen2_5_VLLiteConfig, rows: int, columns: int, sentences: int) -> dict[str, torch.Tensor]:
    """A prompt about one image of noise, with rows x columns visual tokens."""
    generator = torch.Generator().manual_seed(0)
    vision = config.vision_config
    merge = vision.spatial_merge_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    words = torch.randint(0, 150_000, (1, QUESTION_TOKENS), generator=generator)
    image = torch.full((1, rows * columns), config.image_token_id)
    ids = torch.cat((words[:, :4], image, words[:, 4:]), dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(rows * columns * merge**2, patch, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows * merge, columns * merge]]),
        "guidance_input_ids": torch.randint(0, 150_000, (1, sentences, SENTENCE_TOKENS), generator=generator),
        "guidance_attention_mask": torch.ones(1, sentences, SENTENCE_TOKENS, dtype=torch.long),
    }


@torch.inference_mode()
def run_intrinsic_guidance(
    rows: int = 25,
    columns: int = 40,
    retention_ratio: float = 0.25,
    sentences: int = 2,
    pairs: int = 5,
    warmup: int = 1,
    device: str = "cpu",
    dtype: str = "bfloat16",
    config: Qwen2_5_VLLiteConfig | None = None,
) -> dict[str, Any]:
    """
    Builds the model and measures.

    Args:
        sentences: two or more need the context score as well, which is the larger part of the cost.
        config: another shape, for tests.

    Returns:
        `dict`: Medians in milliseconds of selection, unpruned prefill and pruned prefill; the selection's
        share of the unpruned prefill with its 95 % bootstrap interval over pairs; every single time, the setting and
        the versions.
    """
    torch.manual_seed(0)
    config = config or qwen2_5_vl_3b_config()
    with torch.device(device):
        model = Qwen2_5_VLLite._from_config(config, dtype=getattr(torch, dtype)).eval()
    inputs = {name: value.to(device) for name, value in random_inputs(config, rows, columns, sentences).items()}
    guidance = {name: value for name, value in inputs.items() if name.startswith("guidance_")}
    grid = inputs["image_grid_thw"]
    encoded = model.model.encode_images(inputs["pixel_values"], grid)

    def select():
        config.pruning_retention_ratio = retention_ratio
        return model.model.select_visual_tokens(encoded, grid, **guidance)

    def prefill(ratio):
        config.pruning_retention_ratio = ratio
        return model(**inputs, use_cache=True, logits_to_keep=1)

    config = model.config
    times = time_pairs(select, lambda: prefill(None), pairs=pairs, warmup=warmup)
    pruned = time_pairs(lambda: prefill(retention_ratio), select, pairs=pairs, warmup=warmup)
    return {
        "benchmark": "intrinsic-guidance",
        "num_visual_tokens": rows * columns,
        "kept": len(select().retained_indices[0]),
        "median_ms_selection": times.medians[0] * 1000,
        "median_ms_prefill": times.medians[1] * 1000,
        "median_ms_pruned_prefill": pruned.medians[0] * 1000,
        "ratio": times.ratio,
        "ratio_interval_95": list(times.ratio_interval()),
        "pairs": pairs,
        "sentences": sentences,
        "dtype": dtype,
        **measured_on(device),
        "ms_selection": [seconds * 1000 for seconds in times.first],
        "ms_prefill": [seconds * 1000 for seconds in times.second],
        "ms_pruned_prefill": [seconds * 1000 for seconds in pruned.first],
    }
