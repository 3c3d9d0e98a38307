"""How much one sweep saves over separate runs: two methods at four budgets with three seeds.

python examples/benchmarks/sweep.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from reporting import run_and_report

from transformers_litelvlm.evaluation.arguments import EvaluationArguments, as_command_line
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.evaluation.runs import Run, plan_runs


METHODS = ["litelvlm", "random"]
BUDGETS: list[int | float] = [48, 32, 16, 8]
SEEDS = [0, 1, 2]


def run_sweep(images: int = 24, protocol: str = "all", in_process: bool = False) -> dict[str, Any]:
    """Times both on RefShapes with the embedded checkpoint, and compares their records.

    Under the protocol `"all"` a deterministic method runs once per budget, in the sweep and alone: 16 runs. Under
    `"glamm"` the sentences are drawn by the seed, so there are 24.

    Args:
        images: scenes of the test split.
        protocol: of the evaluation.
        in_process: everything in this process, so that the start of Python and its imports, which the runs alone pay
            again and again, counts for neither.

    Returns:
        Seconds of both, on the clock and of CPU time, their ratios, and whether the records are identical.
    """
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_images": images, "protocol": protocol}
        sweep = EvaluationArguments(
            output_dir=f"{folder}/sweep", methods=METHODS, budgets=BUDGETS, seeds=SEEDS, **options
        )
        alone = {run.run_id: _alone(f"{folder}/{place}", run, options) for place, run in enumerate(plan_runs(sweep))}
        if in_process:  # what the first evaluation of a process costs more
            evaluate(_alone(f"{folder}/warm", plan_runs(sweep)[0], {**options, "max_images": 1}))
        whole = _seconds(sweep, in_process)
        single = np.array([_seconds(args, in_process) for args in alone.values()]).sum(axis=0)
        swept = pq.read_table(Path(folder, "sweep", "records.parquet"))
        identical = all(
            _records(Path(args.output_dir)).equals(swept.filter(pc.equal(swept["run_id"], run_id)))
            for run_id, args in alone.items()
        )
    return {
        "images": images,
        "protocol": protocol,
        "in_process": in_process,
        "runs": len(alone),
        "seconds_sweep": whole[0],
        "seconds_alone": float(single[0]),
        "ratio": float(whole[0] / single[0]),
        "cpu_seconds_sweep": whole[1],
        "cpu_seconds_alone": float(single[1]),
        "cpu_ratio": float(whole[1] / single[1]),
        "identical_records": identical,
    }


def summary(result: dict[str, Any]) -> str:
    """What a person wants to know of it."""
    where = "start of Python excluded" if result["in_process"] else "every run a launch of its own"
    return (
        f"{result['runs']} runs on {result['images']} scenes, protocol {result['protocol']}, {where}\n"
        f"  one sweep {result['seconds_sweep']:.1f} s   one by one {result['seconds_alone']:.1f} s\n"
        f"  ratio {result['ratio']:.3f}; of CPU time, which other work on the machine changes less,"
        f" {result['cpu_ratio']:.3f}; records {'identical' if result['identical_records'] else 'DIFFERENT'}"
    )


def _alone(folder: str, run: Run, options: dict[str, Any]) -> EvaluationArguments:
    seeds = SEEDS[:1] if run.seed is None else [run.seed]
    return EvaluationArguments(output_dir=folder, methods=[run.name], budgets=[run.budget], seeds=seeds, **options)


def _seconds(args: EvaluationArguments, in_process: bool) -> tuple[float, float]:
    """On the clock, and of CPU time."""

    def cpu_time() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    started, cpu_started = time.perf_counter(), cpu_time()
    if in_process:
        evaluate(args)
    else:
        command = [sys.executable, "-m", "transformers_litelvlm.evaluation", *as_command_line(args)]
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started, cpu_time() - cpu_started


def _records(folder: Path) -> pa.Table:
    return pq.read_table(folder / "records.parquet")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="scenes of RefShapes")
    parser.add_argument("--protocol", default="all", choices=("all", "glamm"))
    parser.add_argument("--in-process", action="store_true", help="leave the start of Python out of both")
    return run_and_report(parser, run_sweep, summary, limit=0.6, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
