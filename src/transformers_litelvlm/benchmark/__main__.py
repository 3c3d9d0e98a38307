"""`python -m transformers_litelvlm.benchmark vision-tower --pairs 15`"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark, prints its result, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m transformers_litelvlm.benchmark", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="BENCHMARK")
    tower = subparsers.add_parser(
        "vision-tower",
        help="get_image_features with pruning against the stock one, ViT-L/14-336 with random weights",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    tower.add_argument("--budget", type=int, default=64, help="visual tokens kept of 576")
    tower.add_argument("--pairs", type=int, default=15, help="timed runs of each, interleaved")
    tower.add_argument("--warmup", type=int, default=2, help="untimed runs of each before")
    tower.add_argument("--hidden-size", type=int, default=256, help="width that is projected to; 4096 in a 7B model")
    tower.add_argument("--batch-size", type=int, default=1, help="images")
    tower.add_argument("--sentences", type=int, default=1, help="sentences per image")
    tower.add_argument("--sentence-tokens", type=int, default=15, help="CLIP tokens per sentence")
    tower.add_argument("--device", default="cpu")
    tower.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    tower.add_argument("--threads", type=int, default=None, help="threads of torch on the CPU (default: torch's own)")
    tower.add_argument("--json", action="store_true", help="print one JSON object")
    tower.add_argument("--check", action="store_true", help="exit with 1 where the pruned median is the slower one")
    args = vars(parser.parse_args(argv))
    as_json, check, threads = args.pop("json"), args.pop("check"), args.pop("threads")

    import torch

    from transformers_litelvlm.benchmark.vision_tower import run_vision_tower

    if threads is not None:
        torch.set_num_threads(threads)
    result = run_vision_tower(**args)
    print(json.dumps(result, indent=2) if as_json else summary(result))
    return 1 if check and result["ratio"] > 1 else 0


def summary(result: dict[str, Any]) -> str:
    """What a person wants to know of a result."""
    low, high = result["ratio_interval_95"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"get_image_features, {result['budget']} of {result['num_visual_tokens']} visual tokens kept,"
        f" batch {result['batch_size']}, {result['sentences']} sentence(s) of {result['sentence_tokens']} tokens,"
        f" projected to {result['hidden_size']}\n"
        f"  pruned {result['median_ms_pruned']:.1f} ms   stock {result['median_ms_stock']:.1f} ms"
        f"   (medians of {result['pairs']} paired runs)\n"
        f"  ratio {result['ratio']:.3f}, 95 % interval {low:.3f} to {high:.3f} (below 1: pruned is faster)\n"
        f"  {result['device']}, {result['dtype']}, {result['threads']} threads, load average at the end"
        f" {result['load_average']:.1f}; {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
