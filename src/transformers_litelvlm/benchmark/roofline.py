"""The second bound of a time: every operation reads its weights and inputs once, however few tokens there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from transformers_litelvlm.benchmark.flops import UNKNOWN
from transformers_litelvlm.benchmark.timing import time_once


@dataclass(frozen=True)
class Card:
    """What a device reaches."""

    flops_per_second: float  # in one large product of matrices
    bytes_per_second: float  # read and written, in one large copy


def measure_card(device: torch.device, dtype: torch.dtype) -> Card:
    """Measure a device: the fastest of several products and copies. On a GPU about a second and 2.5 GB of memory."""
    side, size, repeats = (8192, 1 << 30, 10) if device.type == "cuda" else (512, 1 << 24, 2)
    # Random: of equal numbers a GPU multiplies more per second, since that takes less power.
    matrix = torch.randn(side, side, dtype=dtype, device=device)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def fastest(function: Callable[[], Any]) -> float:
        function()
        return min(time_once(lambda: [function() for _ in range(repeats)]) for _ in range(3)) / repeats

    return Card(2 * side**3 / fastest(lambda: matrix @ matrix), 2 * size / fastest(lambda: target.copy_(source)))


class RooflineMeter(FlopCounterMode):
    """Counts operations as [`~benchmark.flops.count_flops`] does, and the seconds that they take at least on a card.

    Each operation that has floating-point operations takes the longer of two times: of its arithmetic, and of moving
    its inputs and its result once. Elementwise work counts as nothing.
    """

    def __init__(self, card: Card) -> None:
        super().__init__(display=False, custom_mapping=UNKNOWN)
        self.card, self.seconds = card, 0.0

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        count: Any = self.flop_registry.get(func_packet)
        if count is not None:
            flops = count(*args, **kwargs, out_val=out)
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            # A view may be smaller than its memory, and one that repeats itself is larger.
            moved = sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
            self.seconds += max(flops / self.card.flops_per_second, moved / self.card.bytes_per_second)
        return super()._count_flops(func_packet, out, args, kwargs)
