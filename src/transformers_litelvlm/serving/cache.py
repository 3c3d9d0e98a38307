"""Encoded pictures that are kept, the least recently used ones leave first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


class EncodingCache:
    """What vision tower and mask model made of pictures, by key, in at most so many bytes.

    One thread uses it: the one that runs the model. Encodings may grow while they are used, since a vision tower runs
    layers when a method asks for them: each is measured again after its use.

    Args:
        max_bytes: 0 keeps nothing.

    Attributes:
        hits, misses, evictions: how often a picture was there, was not, and left.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = self.evictions = 0
        self._entries: OrderedDict[str, Any] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        return sum(self._sizes.values())

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The entry of a key, made if it is not there."""
        if key in self._entries:
            self.hits += 1
            self._entries.move_to_end(key)
            return self._entries[key]
        self.misses += 1
        self._entries[key] = entry = make()
        self.measure(key)
        return entry

    def measure(self, key: str) -> None:
        """Count the bytes of an entry again, and drop what is too much: others first, then itself."""
        if key not in self._entries:
            return
        self._sizes[key] = tensor_bytes(self._entries[key])
        while self._entries and self.num_bytes > self.max_bytes:
            oldest, _ = self._entries.popitem(last=False)
            del self._sizes[oldest]
            self.evictions += 1


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in a value, each memory once; parameters of models are not counted."""
    seen: set[int] = set()
    memories: dict[int, int] = {}
    left = [value]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, nn.Module | type):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            memories[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        elif isinstance(each, Mapping):
            left += each.values()
        elif isinstance(each, list | tuple):
            left += each
        else:
            left += getattr(each, "__dict__", {}).values()
    return sum(memories.values())
