"""Kills an evaluation with SIGKILL at random moments, starts it again each time, and compares what comes out.

    python -m tests.support.kill_evaluations FOLDER KILLS [MODEL VIDEOS]

With a model and a folder of videos (as Ref-DAVIS17), these; else scenes of RefShapes.
A process that has imported everything forks one child per attempt. Prints one JSON line per attempt.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.support.small_evaluations import assert_same, options
from transformers_litelvlm.evaluation.runner import evaluate


MODEL = sys.argv[3:]
DATA: dict = {"max_images": 12}
if MODEL:
    model, source = MODEL
    DATA = {"max_images": None, "model": model, "dataset": "ref-davis17", "split": "valid", "source": source}


def start(folder: Path) -> int:
    """A child that evaluates; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            evaluate(options(folder, batch_size=1, seeds=[0], **DATA))
            code = 0
        finally:
            os._exit(code)
    return child


def was_killed(child: int) -> bool:
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the evaluation failed")
    return os.WIFSIGNALED(status)


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def num_batches(folder: Path) -> int:
    return len(list((folder / "batches").glob("*.json")))


def main() -> None:
    """See the module."""
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    # A child that collects garbage would copy what was imported, page by page, to look at it.
    gc.collect()
    gc.freeze()
    began = time.monotonic()
    was_killed(start(folder / "reference"))
    duration = time.monotonic() - began
    chance = random.Random(0)
    kills = attempt = 0
    while kills < wanted:
        target = folder / f"killed_{attempt}"
        finished = False
        while not finished:
            child, before = start(target), num_batches(target)
            # While there are kills left, anywhere in a third of the run, mostly with a batch made; then let it finish.
            if kills < wanted:
                time.sleep(duration * chance.uniform(0.05, 0.4))
                while kills % 3 and is_running(child) and num_batches(target) == before:
                    time.sleep(0.002)
                os.kill(child, signal.SIGKILL)
            killed = was_killed(child)
            finished, kills = not killed, kills + killed
            line = {"folder": target.name, "killed": killed, "before": before, "after": num_batches(target)}
            print(json.dumps(line), flush=True)
        assert_same(target, folder / "reference")
        left = sorted(str(path) for path in target.rglob(".litelvlm-*"))
        if left:
            raise RuntimeError(f"killed processes left {left}")
        attempt += 1


if __name__ == "__main__":
    main()
