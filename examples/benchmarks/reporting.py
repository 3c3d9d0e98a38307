"""What the benchmarks of this folder share on the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch


def run_and_report(
    parser: argparse.ArgumentParser,
    run: Callable[..., dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
    limit: float,
    argv: Sequence[str] | None,
) -> int:
    """Run a benchmark with the options of `parser` and print its result.

    Args:
        parser: has the keywords of `run` as options.
        run: measures, and gives a result with a `"ratio"`.
        describe: the result as text.
        limit: the largest ratio that `--check` accepts.
        argv: the command line.

    Returns:
        The exit code.
    """
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if the ratio is above {limit:.2f}")
    args = vars(parser.parse_args(argv))
    as_json, check, threads = (args.pop(name) for name in ("json", "check", "threads"))
    if threads is not None:
        torch.set_num_threads(threads)
    result = run(**args)
    print(json.dumps(result, indent=2) if as_json else describe(result))
    return 1 if check and result["ratio"] > limit else 0
