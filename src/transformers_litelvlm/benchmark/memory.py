"""Activation memory of a computation (weights and inputs not counted), on any device; and the size of a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves


def activation_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """The most memory that tensors made by `function()` take at one time, its result included.

    On CUDA the allocator's own peak; elsewhere the running sum of the allocator's events, as the profiler records
    them. Memory that libraries hold for themselves is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch 2.13 says on stderr when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as recorded:
        result = function()
    del result
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())  # of several threads, else one after the other
    return max(0, *accumulate(event.nbytes() for event in events), 0)


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache, whatever lengths its layers have, and of recurrent layers' states."""
    held = tree_leaves([vars(layer) for layer in cache.layers])
    return sum(leaf.nbytes for leaf in held if isinstance(leaf, torch.Tensor))
