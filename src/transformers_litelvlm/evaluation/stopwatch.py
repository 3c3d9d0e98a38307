"""How long each stage of an evaluation takes, and the most memory it takes on the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


STAGES = ("vision", "guidance", "selection", "prefill", "mask_encoder", "mask_decoder")


class Stopwatch:
    """Milliseconds by stage. A stage ends when the device has finished it."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wait_for_device()
        start = time.perf_counter()
        yield
        wait_for_device()
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1000 * (time.perf_counter() - start)


def wait_for_device() -> None:
    """Return when the device has finished what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def start_peak_memory(device: torch.device) -> None:
    """Start to watch the memory of a CUDA device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes since [`start_peak_memory`]; `None` if the device does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
