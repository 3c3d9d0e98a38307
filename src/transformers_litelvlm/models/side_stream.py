"""Work beside other work: a second stream of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


@cache
def stream_of(device: torch.device) -> Any:
    """The same in every call: the allocator of torch keeps memory for each stream that ever had some."""
    return torch.cuda.Stream(device)


class SideStream:
    """Work that a GPU may do at the same time as what is asked of it between [`start`] and [`result`].

    On other devices `start` does the work at once, and nothing is different.

    Args:
        device: where the work is.
    """

    def __init__(self, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._streams: Any = (torch.cuda.current_stream(device), stream_of(device)) if is_gpu else None
        self._on: Any = torch.cuda.stream
        self._result: Any = None

    def start(self, work: Callable[[], Any]) -> None:
        """Begin with the work."""
        if self._streams is None:
            self._result = work()
            return
        main, side = self._streams
        side.wait_stream(main)  # what the work reads may not be there yet
        with self._on(side):
            self._result = work()

    def result(self) -> Any:
        """What the work gave. Whatever is asked of the device from now on comes after it."""
        if self._streams is not None:
            main, side = self._streams
            main.wait_stream(side)
            for tensor in tree_leaves(self._result):
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(main)  # else its memory could be given away too early
        return self._result
