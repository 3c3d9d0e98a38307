"""Is pruning free before the language model?

    python examples/benchmarks/vision_tower.py --pairs 15

`get_image_features`, pruned against stock, on a ViT-L/14-336 with random weights (the time does not depend on them).

The pruned route encodes the sentence with CLIP's text tower, scores and selects; it saves the last layer of the vision
tower, which LLaVA never uses, and the projection of pruned tokens. This measures the sum.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from reporting import run_and_report
from transformers import LlamaConfig, LlavaConfig, LlavaModel

from transformers_litelvlm.benchmark.inputs import clip_sentences, random_pixels
from transformers_litelvlm.benchmark.presets import clip_vit_l, clip_vit_l_text
from transformers_litelvlm.benchmark.timing import PairedTimes, machine_line, measured_on, time_pairs
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteModel


# The projector maps to the width of the language model. Projecting fewer tokens saves the more the wider that is, so a
# narrow one is the hard case for pruning, and the default; 4096 is the width of a 7B model.
DEFAULT_HIDDEN_SIZE = 256
DEFAULT_SENTENCE_TOKENS = 15  # "Please segment the brown dog left of the bench in this image." has 15 with its markers


def vit_l_336_configs(budget: int | None, hidden_size: int = DEFAULT_HIDDEN_SIZE) -> dict[str, Any]:
    """Keywords of a config with the towers of openai/clip-vit-large-patch14-336 and a language model of one layer."""
    return {
        "vision_config": clip_vit_l(336),
        "text_config": LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            vocab_size=64,
            max_position_embeddings=2048,
        ),
        "guidance_text_config": clip_vit_l_text(),
        "guidance_projection_dim": 768,
        "image_token_id": 63,
        "pruning_budget": budget,
    }


def stock_twin(model: LlavaLiteModel) -> LlavaModel:
    """A stock `LlavaModel` that runs on the very modules of `model`: no weight is held twice."""
    config = LlavaConfig(
        vision_config=model.config.vision_config,
        text_config=model.config.text_config,
        image_token_id=model.config.image_token_id,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
    )
    with torch.device("meta"):
        twin = LlavaModel(config)
    for name, module in model.named_children():
        if name in dict(twin.named_children()):
            setattr(twin, name, module)
    return twin.eval()


def random_inputs(
    config: LlavaLiteConfig, batch_size: int = 1, sentences: int = 1, sentence_tokens: int = DEFAULT_SENTENCE_TOKENS
) -> dict[str, torch.Tensor]:
    """Pixels of noise (B, 3, H, W) and sentences of random words, with CLIP's markers: (B, sentences, tokens)."""
    side = config.vision_config.image_size
    words = clip_sentences(config.guidance_text_config, batch_size, list(range(sentences)), sentence_tokens)
    return {"pixel_values": random_pixels(batch_size, 3, side, side), **words}


@torch.inference_mode()
def time_vision_tower(model: LlavaLiteModel, inputs: dict[str, Any], pairs: int, warmup: int) -> PairedTimes:
    """Times the stock (first) and the pruned (second) `get_image_features`, after checking that they agree."""
    stock = stock_twin(model)
    pruned_output = model.get_image_features(**inputs)
    stock_output = stock.get_image_features(inputs["pixel_values"])
    for kept, full, indices in zip(
        pruned_output.pooler_output, stock_output.pooler_output, pruned_output.retained_indices, strict=True
    ):
        torch.testing.assert_close(kept, full[indices], atol=2e-2, rtol=2e-2)
    return time_pairs(
        lambda: stock.get_image_features(inputs["pixel_values"]),
        lambda: model.get_image_features(**inputs),
        pairs=pairs,
        warmup=warmup,
    )


def run_vision_tower(
    budget: int, pairs: int, warmup: int, device: str, dtype: str, hidden_size: int, **sizes: int
) -> dict[str, Any]:
    """Build the model and measure.

    Args:
        sizes: of the inputs, see [`random_inputs`].

    Returns:
        Medians in milliseconds, the speed-up (stock / pruned) with its 95 % bootstrap interval, every single time,
        the setting and the versions.
    """
    torch.manual_seed(0)
    config = LlavaLiteConfig(**vit_l_336_configs(budget, hidden_size))
    with torch.device(device):
        model = LlavaLiteModel(config).to(getattr(torch, dtype)).eval()
    inputs = {name: tensor.to(device) for name, tensor in random_inputs(config, **sizes).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    times = time_vision_tower(model, inputs, pairs, warmup)
    return {
        "benchmark": "vision-tower",
        "num_visual_tokens": model.num_visual_tokens("image", inputs)[0],
        "budget": budget,
        "median_ms_stock": times.medians[0] * 1000,
        "median_ms_pruned": times.medians[1] * 1000,
        "speedup": times.ratio,
        "ratio": 1 / times.ratio,
        "speedup_interval_95": list(times.ratio_interval()),
        "pairs": pairs,
        **sizes,
        "hidden_size": hidden_size,
        "dtype": dtype,
        **measured_on(device),
        "ms_stock": [seconds * 1000 for seconds in times.first],
        "ms_pruned": [seconds * 1000 for seconds in times.second],
    }


def summary(result: dict[str, Any]) -> str:
    """What a person wants to know of it."""
    low, high = result["speedup_interval_95"]
    return (
        f"get_image_features, {result['budget']} of {result['num_visual_tokens']} visual tokens kept,"
        f" batch {result['batch_size']}, {result['sentences']} sentence(s) of {result['sentence_tokens']} tokens,"
        f" projected to {result['hidden_size']}\n"
        f"  stock {result['median_ms_stock']:.1f} ms   pruned {result['median_ms_pruned']:.1f} ms"
        f"   (medians of {result['pairs']} paired runs)\n"
        f"  speed-up {result['speedup']:.2f}x, 95 % interval {low:.2f} to {high:.2f}\n"
        f"  {result['dtype']}, {machine_line(result)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--budget", type=int, default=64, help="visual tokens kept of 576")
    parser.add_argument("--pairs", type=int, default=15, help="timed runs of each, interleaved")
    parser.add_argument("--warmup", type=int, default=2, help="untimed runs of each before")
    parser.add_argument("--hidden-size", type=int, default=256, help="width that is projected to; 4096 in a 7B model")
    parser.add_argument("--batch-size", type=int, default=1, help="images")
    parser.add_argument("--sentences", type=int, default=1, help="sentences per image")
    parser.add_argument("--sentence-tokens", type=int, default=15, help="CLIP tokens per sentence")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    return run_and_report(parser, run_vision_tower, summary, limit=1.0, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
