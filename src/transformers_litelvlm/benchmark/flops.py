"""Floating-point operations of whatever runs, by torch's own counter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    *heads, length, size = query
    return 2 * math.prod(heads) * length * key[-2] * (size + value[-1])


# What the counter does not know would silently count as nothing: the attention kernel of CPUs, products in place, and
# those of a mixture of experts. Of the other kernels of attention it refuses grouped heads in torch 2.10.
UNKNOWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention: _attention,
    torch.ops.aten._scaled_dot_product_efficient_attention: _attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention: _attention,
    torch.ops.aten.baddbmm_: lambda bias, first, second, *args, **kwargs: 2 * first.numel() * second[-1],
    # Each row meets the weights of one expert.
    torch.ops.aten._grouped_mm: lambda rows, weights, *args, **kwargs: 2 * rows.numel() * weights[-1],
}


def count_flops(function: Callable[[], Any], meter: FlopCounterMode | None = None) -> int:
    """Operations of matrix products, convolutions and attention in `function()`.

    A multiplication and an addition are two. Attention counts as the whole square, also if a kernel skips what a
    causal mask hides; norms, activations and other elementwise work count as nothing. `meter` counts in place of
    torch's own counter.
    """
    with meter or FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        function()
    return counter.get_total_flops()


class FlopMeter:
    """Operations by stage; the counterpart of [`~evaluation.stopwatch.Stopwatch`]."""

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
            yield
        self.flops[name] = self.flops.get(name, 0) + counter.get_total_flops()
