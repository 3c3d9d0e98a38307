"""`litelvlm benchmark`: time, memory and operations, pruned against unpruned, side by side."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from transformers_litelvlm.benchmark.progress import Progress
from transformers_litelvlm.cli.errors import BadInputError, bad_input, checked_device, checked_output, positive_int
from transformers_litelvlm.cli.models import import_given
from transformers_litelvlm.evaluation.arguments import QUANTIZATIONS, add_imports
from transformers_litelvlm.utils.files import to_json


DTYPES = ("float32", "bfloat16", "float16")

MAX_DETAILS = 3  # points whose stages go to the terminal

HELP = "measure the speed and memory that pruning saves on this machine"
DESCRIPTION = (
    "Measure pruned against unpruned models of real size on this machine, with random weights: time"
    " end to end and by stage, memory, floating-point operations, and how near the speed-up comes to their ratio."
)
EPILOG = """\
examples:
  litelvlm benchmark --list-presets
  litelvlm benchmark tiny
  litelvlm benchmark grounding-1b --budgets 192 64 --dtypes float32 bfloat16 --output-dir results
  litelvlm benchmark --checkpoint ./glamm-refseg --image photo.jpg --expressions "the left dog"
  litelvlm benchmark tiny --methods all --batch-sizes 1 8 --without stages decode memory --check
  litelvlm benchmark glamm-7b --device cuda --dtypes bfloat16 --sentences 1 3
  litelvlm benchmark llava-1b --quantization none int8 int4 --budgets 192 32
  litelvlm benchmark --engine vllm --checkpoint ./glamm-refseg --budgets 192 64 --concurrency 1 8 32

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="?", help="a model by name (default: tiny), see --list-presets")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="instead of a preset: a folder or Hub id, with its processor"
    )
    parser.add_argument("--image", metavar="FILE", help="image for --checkpoint (default: a generated scene)")
    parser.add_argument("--expressions", nargs="+", metavar="TEXT", help="sentences for --checkpoint (default: three)")
    parser.add_argument("--list-presets", action="store_true", help="list the models that are known, and stop")
    _add_grid(parser)
    _add_effort(parser)
    _add_engine(parser)
    parser.add_argument(
        "--output-dir", metavar="DIR", help="write benchmark.json, benchmark.md and benchmark.png there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--check", action="store_true", help="exit with 1 if pruned is slower than unpruned anywhere")


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["litelvlm"],
        metavar="NAME",
        help="NAME or NAME:KEY=VALUE,... with options, or 'all' (default: litelvlm)",
    )
    add_imports(parser)
    parser.add_argument(
        "--budgets",
        nargs="+",
        type=positive_int,
        metavar="K",
        help="visual tokens kept of each image (default: 1/3, 2/9 and 1/9 of them: 192, 128 and 64 of 576)",
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive_int, default=[1], metavar="B", help="images in a call"
    )
    parser.add_argument(
        "--sentences",
        nargs="+",
        type=positive_int,
        default=[1],
        metavar="T",
        help="sentences about each image; several are compared with the unpruned model doing them one by one, too",
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, help="of the weights (default: float32, bfloat16 on CUDA)"
    )
    parser.add_argument(
        "--quantization",
        nargs="+",
        choices=QUANTIZATIONS,
        default=["none"],
        help="of the language model's weights: memory and speed of each, pruned and unpruned (default: none)",
    )


def _add_effort(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="threads of torch on the CPU; 1 if others use it"
    )
    parser.add_argument(
        "--runs", type=positive_int, default=5, metavar="N", help="timed runs of each side (default: 5)"
    )
    parser.add_argument(
        "--warmup",
        type=_count,
        default=1,
        metavar="N",
        help="untimed runs of each before (default: 1); with 0, still one that counts operations",
    )
    parser.add_argument(
        "--new-tokens", type=positive_int, default=8, metavar="N", help="generated tokens that time one (default: 8)"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=("stages", "decode", "memory"), help="leave out, to save time"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the language model (default: transformers). vllm: requests per second and time to the first"
        " token of --checkpoint, unpruned and at each of --budgets; it reads --new-tokens, --json and the next two"
        " options, no others",
    )
    parser.add_argument(
        "--concurrency",
        nargs="+",
        type=positive_int,
        default=[1, 8, 32],
        metavar="N",
        help="requests at a time in vLLM",
    )
    parser.add_argument(
        "--requests", type=positive_int, default=16, metavar="N", help="for each of them (at least 2 * concurrency)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure and print."""
    if args.list_presets:
        _list_presets()
        return
    if args.engine == "vllm":
        _measure_vllm(args)
        return
    _check_subject(args)
    import torch

    from transformers_litelvlm.benchmark.report import render
    from transformers_litelvlm.pruning import list_pruners

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.device = str(checked_device(args.device))
    if args.output_dir:
        checked_output("--output-dir", args.output_dir)
    import_given(args)
    args.dtypes = args.dtypes or (["bfloat16"] if args.device.startswith("cuda") else ["float32"])
    if args.methods == ["all"]:
        args.methods = [name for name in list_pruners() if name != "none"]
    with bad_input():
        result = _measure(args)
    print(to_json(result, indent=2) if args.json else render(result, max_details=MAX_DETAILS))
    if not result["is_complete"]:
        raise KeyboardInterrupt
    slower = [point for point in result["points"] if point["end_to_end"]["speedup"] < 1]
    if args.check and slower:
        print(f"litelvlm: pruned is slower than unpruned at {len(slower)} point(s)", file=sys.stderr)
        sys.exit(1)


def _check_subject(args: argparse.Namespace) -> None:
    """Refuse what would be measured of something else than it says."""
    if args.checkpoint and args.preset:
        raise BadInputError(f"give the preset {args.preset!r} or --checkpoint, not both")
    for option, value in (("--image", args.image), ("--expressions", args.expressions)):
        if value and not args.checkpoint:
            raise BadInputError(f"{option} needs --checkpoint: presets are measured on random pixels and words")


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from transformers_litelvlm.benchmark.grid import BenchmarkStopped, Grid, run_benchmark
    from transformers_litelvlm.benchmark.report import write_benchmark
    from transformers_litelvlm.benchmark.side_by_side import PARTS, Effort
    from transformers_litelvlm.benchmark.subjects import CheckpointSubject
    from transformers_litelvlm.utils.extras import needs_extra

    if args.output_dir:  # before hours of measuring
        with bad_input(), needs_extra("benchmark", "An output folder gets a plot, which"):
            import matplotlib  # noqa: F401
    subject = args.preset or "tiny"
    if args.checkpoint:
        own = {"expressions": args.expressions} if args.expressions else {}
        subject = CheckpointSubject(args.checkpoint, args.image, **own)
    grid = Grid(args.methods, args.budgets, args.batch_sizes, args.sentences, args.dtypes, args.quantization)
    effort = Effort(args.runs, args.warmup, args.new_tokens, [part for part in PARTS if part not in args.without])
    try:
        with closing(_Bar()) as progress, _term_is_ctrl_c():
            result = run_benchmark(subject, grid, args.device, effort, progress)
    except BenchmarkStopped as stopped:
        [result] = stopped.args
        if not result["points"]:
            raise
    if args.output_dir:
        write_benchmark(result, args.output_dir)
    return result


@contextmanager
def _term_is_ctrl_c() -> Iterator[None]:
    """`timeout` and batch systems end a process by SIGTERM: what was measured by then is to be printed, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _measure_vllm(args: argparse.Namespace) -> None:
    with bad_input():
        if not args.checkpoint or not args.budgets:
            raise ValueError("`--engine vllm` needs `--checkpoint` (a folder or Hub id) and `--budgets`.")
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ImportError(f"`--engine vllm` needs vLLM ({error}): see docs/vllm.md.") from error
        from transformers_litelvlm.serving.vllm.measuring import Load, render, run_engines

        load = Load(args.concurrency, args.requests, args.new_tokens)
        result = run_engines(args.checkpoint, args.budgets, load, lambda text: print(f"  {text} ...", file=sys.stderr))
    print(to_json(result, indent=2) if args.json else render(result))


def _count(text: str) -> int:
    """Type of an argparse argument: 0, 1, 2, ..."""
    return 0 if text == "0" else positive_int(text)


class _Bar(Progress):
    """On stderr: what happens next, the expected duration, and a bar for all runs of the model."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self.bar, self.runs = tqdm(disable=True), 0

    def says(self, message: str) -> None:
        self.bar.write(f"  {message} ...", file=sys.stderr)

    def expects(self, runs: int, seconds_of_one: float, seconds: float) -> None:
        one = f"{1000 * seconds_of_one:.0f} ms" if seconds_of_one < 1 else f"{seconds_of_one:.1f} s"
        estimate = f"an estimate: {runs - self.runs} more runs of the model, and one takes {one} on average"
        self.bar.write(f"  expected duration from now on: about {_duration(seconds)} ({estimate})", file=sys.stderr)
        self.bar = type(self.bar)(total=runs, initial=self.runs, unit="run", leave=False)

    def ran(self, runs: int = 1) -> None:
        self.runs += runs
        self.bar.update(runs)

    def reached(self, runs: int) -> None:
        self.bar.update(runs - self.bar.n)

    def measured(self, point: dict[str, Any]) -> None:
        from transformers_litelvlm.benchmark.grid import describe_times

        self.bar.write(f"  {describe_times(point)}", file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _list_presets() -> None:
    from transformers_litelvlm.benchmark.presets import PRESETS

    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        print(f"{name.ljust(width)}  {preset.description}")
