"""Comparing the speed of two functions fairly on a machine that is never quite idle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.evaluation.provenance import versions
from transformers_litelvlm.evaluation.stopwatch import Stopwatch, wait_for_device


def measured_on(device: str) -> dict[str, Any]:
    """What a time depends on beside the code: device, threads, other work on the machine, versions."""
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        **load_at_the_end(),
        "versions": versions(),
    }


def load_at_the_end() -> dict[str, float]:
    """Of the last minute; replaces that of [`measured_on`] when all is measured.

    Other work on the cores hits the route with more and smaller steps harder.
    """
    return {"load_average": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}  # Windows has none


def machine_line(result: dict[str, Any]) -> str:
    """What [`measured_on`] says, in a line."""
    names = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    threads, load = result["threads"], result.get("load_average", 0.0)
    others = load > threads + 1 and result["device"] == "cpu"
    way_out = ", with `--threads 1` if they stay" if threads > 1 else ""
    busy = f": other programs used the CPU, so measure again{way_out}" if others else ""
    known = f", load average at the end {load:.1f}{busy}" if "load_average" in result else ""
    return f"{result['device']}, {threads} thread{'s' * (threads > 1)}, {names}{known}"


@dataclass(frozen=True)
class PairedTimes:
    """Seconds that two functions took, each in the same pairs of runs."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        return float(np.median(self.first)), float(np.median(self.second))

    @property
    def ratio(self) -> float:
        """Median of the first over median of the second: below 1, the first is the faster one."""
        return self.medians[0] / self.medians[1]

    def ratio_interval(self) -> tuple[float, float]:
        """Bootstrap interval (95 %) of [`ratio`]. Pairs are drawn, not single runs: what slows a pair slows both its
        runs."""
        pairs = np.array([self.first, self.second])
        drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(10_000, pairs.shape[1]))
        medians = np.median(pairs[:, drawn], axis=-1)  # (2, resamples)
        low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
        return float(low), float(high)


def time_pairs(
    first: Callable[[], Any],
    second: Callable[[], Any],
    pairs: int = 10,
    warmup: int = 2,
    after_each: Callable[[int], None] = lambda which: None,
) -> PairedTimes:
    """Time two functions in alternating runs.

    The runs are interleaved, and every other pair starts with the second function, so that a machine that becomes
    slower or faster meanwhile favours neither. On CUDA a run ends when the device has finished.

    Args:
        first, second: what to time.
        pairs: timed runs of each.
        warmup: untimed runs of each before (allocation, kernel choice, caches).
        after_each: called after every run, while no time is taken; gets 0 for the first function and 1 for the second.
    """
    if pairs < 1:
        raise ValueError(f"`pairs` must be at least 1, got {pairs}.")
    functions = (first, second)
    for _ in range(warmup):
        for which, function in enumerate(functions):
            function()
            after_each(which)
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[which].append(time_once(functions[which]))
            after_each(which)
    return PairedTimes(tuple(seconds[0]), tuple(seconds[1]))


def time_once(function: Callable[[], Any]) -> float:
    """Seconds of one run, until the device has finished."""
    wait_for_device()
    start = time.perf_counter()
    function()
    wait_for_device()
    return time.perf_counter() - start


class EventStopwatch:
    """Milliseconds by stage, by events on a GPU that know when they happened: unlike with [`Stopwatch`], the host runs
    ahead, as in a whole call."""

    def __init__(self, new_event: Callable[[], Any]) -> None:
        self._new_event = new_event
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin, end = self._new_event(), self._new_event()
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    @property
    def milliseconds(self) -> dict[str, float]:
        """Of every stage so far; waits for the device."""
        wait_for_device()
        found: dict[str, float] = {}
        for name, begin, end in self._events:
            found[name] = found.get(name, 0.0) + begin.elapsed_time(end)
        return found


def stopwatch_of(device: torch.device) -> Stopwatch | EventStopwatch:
    """The one that disturbs a device least."""
    return EventStopwatch(partial(torch.cuda.Event, enable_timing=True)) if device.type == "cuda" else Stopwatch()
