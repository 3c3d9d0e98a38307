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
    subparsers = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
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
    intrinsic = subparsers.add_parser(
        "intrinsic-guidance",
        help="selection by the model's own guidance against the unpruned prefill, Qwen2.5-VL-3B with random weights",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    intrinsic.add_argument("--rows", type=int, default=25, help="of visual tokens of the image")
    intrinsic.add_argument("--columns", type=int, default=40, help="of visual tokens of the image")
    intrinsic.add_argument("--retention-ratio", type=float, default=0.25, help="fraction of them that is kept")
    intrinsic.add_argument("--sentences", type=int, default=2, help="two or more need the context score, too")
    intrinsic.add_argument("--pairs", type=int, default=5, help="timed runs of each, interleaved")
    intrinsic.add_argument("--warmup", type=int, default=1, help="untimed runs of each before")
    intrinsic.add_argument("--device", default="cpu")
    intrinsic.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    sweep = subparsers.add_parser(
        "sweep",
        help="an evaluation of many runs in one launch against the same runs one by one, embedded checkpoint",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sweep.add_argument("--images", type=int, default=24, help="scenes of RefShapes")
    sweep.add_argument("--protocol", default="all", choices=("all", "glamm"))
    sweep.add_argument("--in-process", action="store_true", help="leave the start of Python out of both")
    for benchmark, check in (
        (sweep, "exit with 1 where the sweep takes more than 60 %% of the time"),
        (tower, "exit with 1 where the pruned median is the slower one"),
        (intrinsic, "exit with 1 where the selection is 3 %% of the prefill or more"),
    ):
        benchmark.add_argument("--threads", type=int, default=None, help="threads of torch on the CPU")
        benchmark.add_argument("--json", action="store_true", help="print one JSON object")
        benchmark.add_argument("--check", action="store_true", help=check)
    args = vars(parser.parse_args(argv))
    name, as_json, check, threads = (args.pop(key) for key in ("benchmark", "json", "check", "threads"))

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    run, describe, limit = _benchmark(name)
    result = run(**args)
    print(json.dumps(result, indent=2) if as_json else describe(result))
    return 1 if check and result["ratio"] > limit else 0


def _benchmark(name: str) -> tuple[Any, Any, float]:
    """What to run, how to describe its result, and the largest ratio that `--check` accepts."""
    if name == "intrinsic-guidance":
        from transformers_litelvlm.benchmark.intrinsic_guidance import run_intrinsic_guidance

        return run_intrinsic_guidance, intrinsic_summary, 0.03
    if name == "sweep":
        from transformers_litelvlm.benchmark.sweep import run_sweep, sweep_summary

        return run_sweep, sweep_summary, 0.6
    from transformers_litelvlm.benchmark.vision_tower import run_vision_tower

    return run_vision_tower, summary, 1.0


def summary(result: dict[str, Any]) -> str:
    """What a person wants to know of a result of `vision-tower`."""
    from transformers_litelvlm.benchmark.timing import machine_line

    low, high = result["ratio_interval_95"]
    return (
        f"get_image_features, {result['budget']} of {result['num_visual_tokens']} visual tokens kept,"
        f" batch {result['batch_size']}, {result['sentences']} sentence(s) of {result['sentence_tokens']} tokens,"
        f" projected to {result['hidden_size']}\n"
        f"  pruned {result['median_ms_pruned']:.1f} ms   stock {result['median_ms_stock']:.1f} ms"
        f"   (medians of {result['pairs']} paired runs)\n"
        f"  ratio {result['ratio']:.3f}, 95 % interval {low:.3f} to {high:.3f} (below 1: pruned is faster)\n"
        f"  {result['dtype']}, {machine_line(result)}"
    )


def intrinsic_summary(result: dict[str, Any]) -> str:
    """What a person wants to know of a result of `intrinsic-guidance`."""
    from transformers_litelvlm.benchmark.timing import machine_line

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


if __name__ == "__main__":
    sys.exit(main())
