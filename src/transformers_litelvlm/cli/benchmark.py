"""`litelvlm benchmark`: time, memory and operations, pruned against unpruned, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from transformers_litelvlm.cli.errors import BadInputError, one_line, positive_int


DTYPES = ("float32", "bfloat16", "float16")

EPILOG = """\
examples:
  litelvlm benchmark --list-presets
  litelvlm benchmark tiny
  litelvlm benchmark grounding-1b --budgets 192 64 --dtypes float32 bfloat16 --output-dir results
  litelvlm benchmark glamm-7b --device cuda --dtypes bfloat16 --sentences 1 3
"""


def register(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        "benchmark",
        help="measure the speed and memory that pruning saves on this machine",
        description="Measure pruned against unpruned models of real size on this machine, with random weights: time end"
        " to end and by stage, memory, floating-point operations, and how close the speed-up comes to their ratio.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "preset", nargs="?", default="tiny", help="a model by name (default: tiny), see --list-presets"
    )
    parser.add_argument("--list-presets", action="store_true", help="list the models that are known, and stop")
    parser.add_argument(
        "--methods", nargs="+", default=["litelvlm"], metavar="NAME", help="or 'all' (default: litelvlm)"
    )
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=positive_int,
        metavar="K",
        help="visual tokens kept of each picture (default: 1/3, 2/9 and 1/9 of them: 192, 128 and 64 of 576)",
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive_int, default=[1], metavar="B", help="pictures in a call"
    )
    parser.add_argument(
        "--sentences",
        nargs="+",
        type=positive_int,
        default=[1],
        metavar="T",
        help="sentences about each picture; more than one is compared with the unpruned model doing them one by one, too",
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="of the weights (default: float32, bfloat16 on CUDA)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of torch on the CPU")
    parser.add_argument(
        "--runs", type=positive_int, default=5, metavar="N", help="timed runs of each side (default: 5)"
    )
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="untimed runs of each before (default: 1)")
    parser.add_argument(
        "--new-tokens", type=positive_int, default=16, metavar="N", help="generated tokens that time one (default: 16)"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=("stages", "decode", "memory"), help="leave out, to be done sooner"
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", help="write benchmark.json, benchmark.md and benchmark.png there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 if pruned is slower than unpruned anywhere")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Measures and prints."""
    if args.list_presets:
        _list_presets()
        return
    import torch

    from transformers_litelvlm.benchmark.grid import Grid, run_benchmark
    from transformers_litelvlm.benchmark.report import render
    from transformers_litelvlm.benchmark.side_by_side import PARTS, Effort
    from transformers_litelvlm.pruning import list_pruners

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInputError(f"--device {device}: this machine (or this build of torch) has no CUDA; use --device cpu")
    methods = [name for name in list_pruners() if name != "none"] if args.methods == ["all"] else args.methods
    dtypes = args.dtypes or (["bfloat16"] if device.startswith("cuda") else ["float32"])
    grid = Grid(methods, args.budgets, args.batch_sizes, args.sentences, dtypes)
    effort = Effort(args.runs, args.warmup, args.new_tokens, [part for part in PARTS if part not in args.without])
    try:
        result = run_benchmark(args.preset, grid, device, effort, progress=_progress)
    except ValueError as error:
        raise BadInputError(one_line(error)) from error
    print(json.dumps(result, indent=2) if args.json else render(result), end="\n" if args.json else "")


def _progress(message: str) -> None:
    print(f"  {message} ...", file=sys.stderr, flush=True)


def _list_presets() -> None:
    from transformers_litelvlm.benchmark.presets import PRESETS

    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        print(f"{name.ljust(width)}  {preset.description}")
