"""What a person with a GPU measures in ten minutes: checks, models of 7 and 8 billion parameters, both bounds."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from transformers_litelvlm.benchmark.grid import BenchmarkStopped, Grid, default_budgets, describe_times, run_benchmark
from transformers_litelvlm.benchmark.presets import get_preset
from transformers_litelvlm.benchmark.progress import Progress
from transformers_litelvlm.benchmark.roofline import Card, measure_card
from transformers_litelvlm.benchmark.side_by_side import Effort
from transformers_litelvlm.benchmark.stages import StagedModel
from transformers_litelvlm.benchmark.subjects import Subject, free_memory
from transformers_litelvlm.benchmark.timing import load_at_the_end, measured_on


FORMAT = 1
PRESETS = ("glamm-7b", "llava-1.5-7b", "qwen2.5-vl-7b", "qwen3-vl-8b")
PARTS = ("stages", "memory", "stock", "switches")
SHARE_OF_CHECKS = 1 / 4  # of the time, at most
# A test of pytest -v, and a line of its summary.
_OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_REASON = re.compile(r"^(FAILED|ERROR|SKIPPED) (?:\[\d+\] )?(.+?)(?: - |: )(.+)$")


@dataclass(frozen=True)
class Plan:
    """What is measured, in this order, as far as the time goes."""

    seconds: float = 540.0  # for everything
    tests: Sequence[str] = ()  # folders or files with tests marked `gpu`, which run first
    subjects: Sequence[str | Subject] = PRESETS  # models, by name or as `Preset`
    batch_sizes: Sequence[int] = (1, 8)
    sentences: Sequence[int] = (1, 3)  # several are for models with masks
    dtypes: Sequence[str] = ("bfloat16",)
    ninths: Sequence[int] = (3, 1)  # visual tokens kept, in ninths of all: 3 and 1 are 192 and 64 of 576
    effort: Effort = Effort(runs=5, warmup=1, parts=PARTS)  # of each point


class _Collecting(Progress):
    """Says every point as it is measured, and keeps it, whatever comes after it."""

    def __init__(self, says: Callable[[str], None]) -> None:
        self._says = says
        self.points: list[dict[str, Any]] = []

    def says(self, message: str) -> None:
        if ": " not in message:  # not every part of a point
            self._says(message)

    def measured(self, point: dict[str, Any]) -> None:
        self.points.append(point)
        self._says(point_line(point))


def point_line(point: dict[str, Any]) -> str:
    """A point that was measured, in a line."""
    roofline = point["roofline"]
    return (
        f"{describe_times(point)}; bounds: {point['flops']['bound']:.2f}x (operations), {roofline['bound']:.2f}x "
        f"(roofline); {roofline['share_of_lower_bound']:.0%} of the lower one"
    )


def gpu_report(
    plan: Plan,
    device: torch.device,
    says: Callable[[str], None] = lambda line: None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """
    Measure what the plan says on a device.

    To be called from the main thread: what takes longer than its time is ended there, as by Ctrl-C.

    Args:
        says (`Callable`): Told in a line what was found.
        keep (`Callable`): Given the result whenever a part is done, to write it.

    Returns:
        `dict`: The machine, `card`, `checks` with an outcome for each test, and in `models` what [`run_benchmark`]
        returns for each, or the reason in `failed`. `is_complete` is false if something was left out for the time, or
        after Ctrl-C, when `was_stopped` is true.
    """
    start = time.monotonic()

    def left() -> float:
        return plan.seconds - (time.monotonic() - start)

    result: dict[str, Any] = {"format": FORMAT, "benchmark": "GPU report", **measured_on(str(device))}
    result |= {"free_bytes": free_memory(device), "checks": [], "models": [], "is_complete": True}
    says(f"{result['device']}, {result['free_bytes'] / 1e9:.0f} GB free; about {plan.seconds / 60:.0f} minutes")
    try:
        if plan.tests:
            is_done = _check(plan.tests, plan.seconds * SHARE_OF_CHECKS, result["checks"], says)
            result["is_complete"] &= is_done
            keep(result)
        card = measure_card(device, getattr(torch, plan.dtypes[0]))
        result["card"] = {"flops_per_second": card.flops_per_second, "bytes_per_second": card.bytes_per_second}
        says(f"reaches {card.flops_per_second / 1e12:.3g} TFLOP/s, {card.bytes_per_second / 1e12:.3g} TB/s")
        for place, subject in enumerate(plan.subjects):
            # The first has twice the time of another: it has masks, and most settings.
            seconds = left() * 2 / (len(plan.subjects) + 1) if place == 0 else left() / (len(plan.subjects) - place)
            of_model = _measure(subject, plan, device, card, seconds, says)
            was_stopped = of_model.pop("was_stopped", False)
            result["models"].append(of_model)
            result["is_complete"] &= of_model.get("is_complete", True)
            if was_stopped:
                raise KeyboardInterrupt
            keep(result)
    except KeyboardInterrupt:
        says("stopped: what was measured by then is kept")
        result.update(is_complete=False, was_stopped=True)
    result |= {"seconds": time.monotonic() - start, **load_at_the_end()}
    keep(result)
    return result


def _measure(
    subject: str | Subject, plan: Plan, device: torch.device, card: Card, seconds: float, says: Callable[[str], None]
) -> dict[str, Any]:
    """What [`run_benchmark`] returns, or what is known if the time is over or the model cannot run."""
    subject = get_preset(subject) if isinstance(subject, str) else subject
    says(f"{subject.name}: {max(seconds, 0):.0f} s at most")
    progress, is_over = _Collecting(says), threading.Event()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself looks as if it were taken
    try:
        with time_limit(seconds, is_over):
            try:
                return run_benchmark(subject, _grid(subject, plan), str(device), plan.effort, progress, card)
            except BenchmarkStopped as stopped:
                [result] = stopped.args
                return result | {"was_stopped": not is_over.is_set()}
    except KeyboardInterrupt:  # before the first point, or after the last
        reason = "no time was left for it" if is_over.is_set() else "stopped"
        left_out = {"model": subject.name, "failed": reason, "is_complete": False}
        return left_out | {"points": progress.points, "was_stopped": not is_over.is_set()}
    except (ValueError, ImportError) as error:
        says(f"{subject.name}: {error}")
        return {"model": subject.name, "failed": str(error), "points": progress.points}
    except Exception as error:  # of a kernel, for example; the other models are worth their time
        says(f"{subject.name}: {type(error).__name__}: {error}")
        failed = {"failed": f"{type(error).__name__}: {error}", "is_complete": False}
        return {"model": subject.name, **failed, "points": progress.points}


def _grid(subject: Subject, plan: Plan) -> Grid:
    """Several sentences are worth their time only where they become masks."""
    empty = StagedModel(subject.meta_model())
    num_tokens = empty.num_visual_tokens(subject.workload(empty.model.config, 1, 1).inputs)
    budgets = default_budgets(num_tokens, plan.ninths)
    return Grid(("litelvlm",), budgets, plan.batch_sizes, plan.sentences if empty.has_masks else (1,), plan.dtypes)


@contextmanager
def time_limit(seconds: float, is_over: threading.Event) -> Iterator[None]:
    """KeyboardInterrupt in the main thread after so many seconds; `is_over` tells whether it was this one."""

    is_left, main = threading.Event(), threading.main_thread().ident

    def stop() -> None:
        # Again every second: Python drops an exception that is raised while an object is deleted.
        wait = max(seconds, 0.0)
        while not is_left.wait(wait):
            is_over.set()
            signal.pthread_kill(main, signal.SIGINT)  # a true signal ends what waits for a compiler, too
            wait = 1.0

    def interrupt(*_: Any) -> None:
        if is_over.is_set():
            raise KeyboardInterrupt

    # A job that a shell starts in the background ignores Ctrl-C, and then nothing would interrupt it.
    ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignores:
        signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=stop, daemon=True).start()
    try:
        yield
    finally:
        is_left.set()
        if ignores:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check(tests: Sequence[str], seconds: float, outcomes: list[dict[str, str]], says: Callable[[str], None]) -> bool:
    """Run the tests marked `gpu`; the outcome of each goes to `outcomes`. Returns whether all ran."""
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-rfEs", "--color=no", "-p", "no:xdist", *tests]
    environment = {**os.environ, "COLUMNS": "1000"}  # else pytest cuts the reasons
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if found := _OUTCOME.match(line):
                    outcomes.append({"test": found[1], "outcome": found[2].lower()})
                    says(f"{found[2].lower()}: {found[1]}")
                elif found := _REASON.match(line):
                    _explain(outcomes, *found.groups())
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    is_done = process.returncode in (0, 1) and bool(outcomes)  # 1 is also that pytest is not installed
    if not is_done:
        says(f"the tests ended with {process.returncode}")
    return is_done


def _explain(outcomes: list[dict[str, str]], kind: str, where: str, reason: str) -> None:
    """Add the reason to a test that failed, or to those skipped in a file, whose lines pytest sums up."""
    for outcome in outcomes:
        name = outcome["test"].split("::")[0] if kind == "SKIPPED" else outcome["test"]
        if outcome["outcome"] == kind.lower() and (where == name or where.startswith(f"{name}:")):
            outcome.setdefault("reason", reason.strip())
