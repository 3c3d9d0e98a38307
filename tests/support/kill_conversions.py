"""Kills conversions with SIGKILL at many moments, and says in which state each left the disk.

    python -m tests.support.kill_conversions FOLDER KILLS

A process that has imported everything forks one child per attempt. Prints one JSON line per attempt.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.support.fake_family import assert_identical, expected, fake_conversion, make_source, written_tensors
from transformers_litelvlm.conversion.convert import convert_checkpoint
from transformers_litelvlm.conversion.source import CheckpointSource


NUM_LAYERS = 400


def convert(folder: Path) -> None:
    """The whole conversion, metadata included."""
    convert_checkpoint(
        fake_conversion(CheckpointSource(folder / "source")), folder / "out", max_shard_size="20KB", progress=False
    )


def run_and_kill(folder: Path, moment: Callable[[], None]) -> bool:
    """Whether a conversion in a child was still running when `moment()` returned and it was killed."""
    child = os.fork()
    if child == 0:
        try:
            convert(folder)
        finally:
            os._exit(0)
    moment()
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def after_appearance(path: Path, seconds: float) -> None:
    """Returns shortly after a file appeared."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.0001)
    time.sleep(seconds)


def loads(folder: Path) -> bool:
    """Whether the folder would be taken for a checkpoint: it has a config, and weights that open."""
    if not (folder / "config.json").exists():
        return False
    return bool(written_tensors(folder))


def state(folder: Path, values: dict[str, torch.Tensor]) -> dict[str, object]:
    """What is there; whatever loads must be complete."""
    found = {}
    for name in ("out", ".out.converting"):
        path = folder / name
        found[name] = "absent"
        if path.exists():
            found[name] = "loads" if loads(path) else "incomplete"
        if found[name] == "loads":
            assert_identical(written_tensors(path), values)
            for file in ("conversion_report.json", "tokenizer/words.json"):
                (path / file).read_text()
    return found


def main() -> None:
    """See the module."""
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    # A child that collects garbage would copy what was imported, page by page, to look at it.
    gc.collect()
    gc.freeze()
    values = expected(*make_source(folder / "source", num_layers=NUM_LAYERS))
    began = time.monotonic()
    convert(folder)
    duration = time.monotonic() - began
    print(json.dumps({"duration": duration, **state(folder, values)}), flush=True)
    chance = random.Random(0)
    staging = folder / ".out.converting"
    attempt = kills = 0
    while kills < wanted and attempt < 3 * wanted:
        # Half of them anywhere in the run, half at its end: all weights are there, config.json is, it is renamed.
        if attempt % 2 == 0:
            seconds = duration * chance.random()
            name, moment = f"{seconds:.3f} s", partial(time.sleep, seconds)
        else:
            path = (staging / "config.json", staging / "rest", folder / "out")[attempt // 2 % 3]
            seconds = chance.random() * 0.001
            name, moment = f"{path.name} + {seconds * 1000:.1f} ms", partial(after_appearance, path, seconds)
        # What the kill before left in the staging folder stays: the next run has to cope with it.
        shutil.rmtree(folder / "out", ignore_errors=True)
        killed = run_and_kill(folder, moment)
        print(json.dumps({"moment": name, "killed": killed, **state(folder, values)}), flush=True)
        kills, attempt = kills + killed, attempt + 1
    shutil.rmtree(folder / "out", ignore_errors=True)
    convert(folder)
    left = sorted(path.name for path in folder.iterdir())
    print(json.dumps({"left": left, **state(folder, values)}), flush=True)


if __name__ == "__main__":
    main()
