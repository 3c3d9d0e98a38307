"""The time of a second sentence about a picture, relative to that of the first, through the HTTP service.

    python examples/benchmarks/second_sentence.py grounding-1b --pairs 5 --dtype bfloat16

The model has the sizes of a preset of `litelvlm benchmark` and random weights; pictures are noise of 640 x 480. Each
pair asks two sentences about a new picture. The bundled tokenizers read them, which know fewer words than others.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import io
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image
from reporting import run_and_report
from transformers import AutoProcessor, CLIPImageProcessorPil, SamImageProcessorPil

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.benchmark.presets import get_preset
from transformers_litelvlm.benchmark.timing import PairedTimes, machine_line, measured_on
from transformers_litelvlm.serving.app import create_app
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter
from transformers_litelvlm.serving.service import Service


SENTENCES = ("the red circle left of the blue square", "the large star above the dotted ring")


def run_pairs(
    preset: str = "grounding-1b", pairs: int = 5, budget: int = 64, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Measure.

    Args:
        preset: of the LLaVA family, with masks.
        pairs: pictures; one more warms up.
        budget: visual tokens that are kept.
        dtype: of the weights.

    Returns:
        `first_ms` and `second_ms`, medians; `stages`, for both the medians of what the answers say in `timings_ms`;
        `speedup` with `interval_95`; and `ratio`, the time of the second relative to the first.
    """
    model, processor = build(preset, getattr(torch, dtype))
    model.config.set_pruning(pruning_budget=budget)
    limits = Limits()
    service = Service(Segmenter(model, processor, limits), limits)
    answers = asyncio.run(_ask(service, pairs + 1))[1:]
    service.close()
    times = PairedTimes(*(tuple(pair[which][0] for pair in answers) for which in range(2)))
    stages = [
        {name: float(np.median([pair[which][1][name] for pair in answers])) for name in answers[0][which][1]}
        for which in range(2)
    ]
    first, second = (1000 * median for median in times.medians)
    result = {"preset": preset, "pairs": pairs, "budget": budget, "dtype": dtype, **measured_on("cpu")}
    result |= {"first_ms": first, "second_ms": second, "stages": stages}
    return {**result, "speedup": times.ratio, "interval_95": times.ratio_interval(), "ratio": 1 / times.ratio}


def build(preset: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model with the sizes of a preset, and the bundled processor with the sizes of its pictures."""
    processor, subject = AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT), get_preset(preset)
    config = subject.build_config()
    side, mask_side = config.vision_config.image_size, config.mask_config.vision_config.image_size
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    processor.mask_image_processor = SamImageProcessorPil(
        size={"longest_edge": mask_side}, pad_size={"height": mask_side, "width": mask_side}
    )
    processor.patch_size, processor.knows_scenes_alone = config.vision_config.patch_size, False
    config.image_token_index = processor.image_token_id
    config.seg_token_id = processor.tokenizer.convert_tokens_to_ids(processor.seg_token)
    for text, tokenizer in (
        (config.text_config, processor.tokenizer),
        (config.guidance_text_config, processor.guidance_tokenizer),
    ):
        text.vocab_size = max(text.vocab_size, len(tokenizer))  # for small presets
    config.guidance_text_config.bos_token_id = processor.guidance_tokenizer.bos_token_id
    config.guidance_text_config.eos_token_id = processor.guidance_tokenizer.eos_token_id
    subject = dataclasses.replace(subject, build_config=lambda: config)
    return subject.build(dtype, torch.device("cpu")), processor


async def _ask(service: Service, pictures: int) -> list[list[tuple[float, dict[str, float]]]]:
    """Seconds and stages of both sentences about each picture."""
    transport, rng, pairs = httpx.ASGITransport(create_app(service)), np.random.default_rng(0), []
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=600) as client:
        for _ in range(pictures):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(file, "PNG")
            pair = []
            for sentence in SENTENCES:
                start = time.perf_counter()
                form = {"files": {"image": file.getvalue()}, "data": {"sentences": [sentence]}}
                answer = await client.post("/v1/segment", **form)
                pair.append((time.perf_counter() - start, answer.raise_for_status().json()["timings_ms"]))
            pairs.append(pair)
    return pairs


def describe(result: dict[str, Any]) -> str:
    """The result as text."""
    low, high = result["interval_95"]
    lines = [f"{result['preset']}, {result['dtype']}, budget {result['budget']}, {result['pairs']} pictures"]
    for name, total, stages in zip(
        ("first", "second"), (result["first_ms"], result["second_ms"]), result["stages"], strict=True
    ):
        parts = ", ".join(f"{stage} {value:.0f}" for stage, value in stages.items() if stage != "total")
        lines.append(f"{name} sentence: {total:.0f} ms ({parts})")
    lines.append(f"the second is {result['speedup']:.2f}x faster (95 % interval {low:.2f} to {high:.2f})")
    return "\n".join([*lines, machine_line(result)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", default="grounding-1b", help="of `litelvlm benchmark`, with masks")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--budget", type=int, default=64, help="visual tokens that are kept")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    return run_and_report(parser, run_pairs, describe, limit=1 / 3, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
