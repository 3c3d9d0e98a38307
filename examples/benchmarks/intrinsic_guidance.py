"""What does choosing by the model's own guidance cost?

    python examples/benchmarks/intrinsic_guidance.py --pairs 5 --threads 2

Selection against prefill, on a random model in the shape of Qwen2.5-VL-3B (the time does not depend on the weights).

Both run in pairs on the same model: the selection alone, from the vision tower's output to the kept tokens, and the
whole unpruned prefill, vision tower and language model, that it is to be compared with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from reporting import run_and_report

from transformers_litelvlm.benchmark.inputs import PromptLengths, random_workload
from transformers_litelvlm.benchmark.presets import qwen2_5_vl_3b
from transformers_litelvlm.benchmark.timing import machine_line, measured_on, time_pairs
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import Qwen2_5_VLLite


# 20 tokens of the question after the picture, and sentences of 10.
PROMPT = PromptLengths(before=4, turn=20, further_turn=0, sentence=10)


@torch.inference_mode()
def run_intrinsic_guidance(
    grid: tuple[int, int], retention_ratio: float, sentences: int, pairs: int, warmup: int, device: str, dtype: str
) -> dict[str, Any]:
    """Build the model and measure.

    Args:
        grid: rows and columns of visual tokens.
        sentences: two or more need the context score as well, which is the larger part of the cost.

    Returns:
        Medians in milliseconds of selection, unpruned prefill and pruned prefill; the selection's share of the
        unpruned prefill with its 95 % bootstrap interval over pairs; every single time, the setting and the versions.
    """
    torch.manual_seed(0)
    config = qwen2_5_vl_3b()
    with torch.device(device):
        model = Qwen2_5_VLLite._from_config(config, dtype=getattr(torch, dtype)).eval()
    workload = random_workload(PROMPT, tuple(grid), config, batch_size=1, sentences=sentences)
    inputs = {name: value.to(device) for name, value in workload.inputs.items()}
    guidance = {name: value for name, value in inputs.items() if name.startswith("guidance_")}
    sizes = inputs["image_grid_thw"]
    encoded = model.model.encode("image", {"pixel_values": inputs["pixel_values"], "image_grid_thw": sizes})

    def select():
        config.pruning_retention_ratio = retention_ratio
        return model.model.select(encoded, Guidance.of(guidance))

    def prefill(ratio):
        config.pruning_retention_ratio = ratio
        return model(**inputs, use_cache=True, logits_to_keep=1)

    config = model.config
    times = time_pairs(select, lambda: prefill(None), pairs=pairs, warmup=warmup)
    pruned = time_pairs(lambda: prefill(retention_ratio), select, pairs=pairs, warmup=warmup)
    return {
        "benchmark": "intrinsic-guidance",
        "num_visual_tokens": grid[0] * grid[1],
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


def summary(result: dict[str, Any]) -> str:
    """What a person wants to know of it."""
    low, high = result["ratio_interval_95"]
    return (
        f"{result['kept']} of {result['num_visual_tokens']} visual tokens chosen by intrinsic guidance,"
        f" {result['sentences']} sentence(s)\n"
        f"  selection {result['median_ms_selection']:.0f} ms   unpruned prefill {result['median_ms_prefill']:.0f} ms"
        f"   (medians of {result['pairs']} paired runs)\n"
        f"  ratio {result['ratio']:.4f}, 95 % interval {low:.4f} to {high:.4f}\n"
        f"  pruned prefill, selection included: {result['median_ms_pruned_prefill']:.0f} ms\n"
        f"  {result['dtype']}, {machine_line(result)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=(25, 40), help="rows and columns of visual tokens")
    parser.add_argument("--retention-ratio", type=float, default=0.25, help="fraction of them that is kept")
    parser.add_argument("--sentences", type=int, default=2, help="two or more need the context score, too")
    parser.add_argument("--pairs", type=int, default=5, help="timed runs of each, interleaved")
    parser.add_argument("--warmup", type=int, default=1, help="untimed runs of each before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    return run_and_report(parser, run_intrinsic_guidance, summary, limit=0.03, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
