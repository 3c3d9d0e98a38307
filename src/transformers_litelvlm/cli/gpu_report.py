"""`litelvlm gpu-report`: what a person with a GPU measures in ten minutes."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from transformers_litelvlm.cli.errors import bad_input, checked_device, checked_output, positive_int


HELP = "measure in nine minutes what a GPU gains, and write a page about it"
DESCRIPTION = (
    "Run the checks marked gpu, and measure models of 7 and 8 billion parameters with random weights, pruned and"
    " unpruned in turn, against two bounds: operations, and reading the weights. Writes performance_gpu.json, .md and"
    " .png. What does not fit into the memory or the time is left out, and Ctrl-C keeps what was measured."
)
EPILOG = """\
examples:
  litelvlm gpu-report --output-dir gpu
  litelvlm gpu-report --tests tests/gpu --output-dir gpu
  litelvlm gpu-report --presets glamm-7b --minutes 4 --output-dir gpu
  litelvlm gpu-report --from gpu/performance_gpu.json --output-dir docs
  litelvlm gpu-report --presets tiny --device cpu --minutes 2 --runs 2 --output-dir try
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="write the three files there")
    parser.add_argument("--from", dest="source", metavar="JSON", help="measure nothing: a report that exists already")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="run tests marked gpu of a clone first")
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="models (default: four of 7 and 8 B)")
    parser.add_argument("--minutes", type=positive_int, default=9, metavar="N", help="for everything (default: 9)")
    parser.add_argument("--runs", type=positive_int, default=5, metavar="N", help="timed runs of each (default: 5)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: cuda if there is one)")


def run(args: argparse.Namespace) -> None:
    """Measure, write, and say where."""
    from transformers_litelvlm.utils.extras import needs_extra

    with bad_input(), needs_extra("benchmark", "The report has a plot, which"):
        import matplotlib  # noqa: F401

        from transformers_litelvlm.benchmark.gpu_page import FILES, read_report, write_report
    checked_output("--output-dir", args.output_dir, FILES)
    with bad_input():
        result = _measure(args, write_report) if args.source is None else read_report(args.source)
    write_report(result, args.output_dir)
    print(f"report: {args.output_dir}/{FILES[1]}")
    if args.source is None and result.get("was_stopped"):
        raise KeyboardInterrupt


def _measure(args: argparse.Namespace, write: Any) -> dict[str, Any]:
    import dataclasses

    from transformers_litelvlm.benchmark.gpu_report import PRESETS, Plan, gpu_report
    from transformers_litelvlm.benchmark.presets import get_preset

    device = checked_device(args.device)
    plan = Plan(60.0 * args.minutes, args.tests)
    is_small = device.type == "cpu"  # which has no fast arithmetic of two bytes, as a rule
    plan = dataclasses.replace(
        plan,
        subjects=[get_preset(name) for name in args.presets or PRESETS],
        dtypes=("float32",) if is_small else plan.dtypes,
        effort=dataclasses.replace(plan.effort, runs=args.runs, warmup=min(plan.effort.warmup, args.runs)),
    )
    return gpu_report(
        plan,
        device,
        says=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
        keep=lambda result: write(result, args.output_dir),
    )
