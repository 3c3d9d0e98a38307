"""What does choosing by the model's own guidance cost? Selection against prefill, on a random model in the shape of
Qwen2.5-VL-3B (the time does not depend on the weights).

Both run in pairs on the same model: the selection alone, from the vision tower's output to the kept tokens, and the
whole unpruned prefill, vision tower and language model, that it is to be compared with.
"""

from __future__ import annotations

from typing import Any

import torch

from transformers_litelvlm.benchmark.inputs import random_workload
from transformers_litelvlm.benchmark.presets import Preset, PromptLengths, qwen2_5_vl_3b
from transformers_litelvlm.benchmark.timing import measured_on, time_pairs
from transformers_litelvlm.models.qwen2_5_vl_lite.configuration_qwen2_5_vl_lite import Qwen2_5_VLLiteConfig
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import Qwen2_5_VLLite


# Of the question 20 tokens behind the picture, and sentences of 10.
PROMPT = PromptLengths(before=4, turn=20, further_turn=0, sentence=10)


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
    config = config or qwen2_5_vl_3b()
    with torch.device(device):
        model = Qwen2_5_VLLite._from_config(config, dtype=getattr(torch, dtype)).eval()
    preset = Preset("Qwen2.5-VL", Qwen2_5_VLLite, lambda: config, PROMPT, (rows, columns))
    workload = random_workload(preset, config, batch_size=1, sentences=sentences)
    inputs = {name: value.to(device) for name, value in workload.inputs.items()}
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
