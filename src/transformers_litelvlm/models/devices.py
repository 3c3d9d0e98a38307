"""Tensors on the device of the layer that reads them, in models whose parts are in several places."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch


def to_device_of(module: Any, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where `module` computes.

    A `device_map` moves the inputs of whole parts of a model, but not those of a layer inside that is called alone. An
    offloaded layer (on "meta" until it is called) moves its inputs itself.
    """
    device = next(module.parameters(), tensor).device  # layers of torch's dynamic quantization have no parameters
    return tensor if device.type == "meta" else tensor.to(device)


def check_ids(name: str, ids: torch.Tensor, size: int, further: Iterable[int | None] = ()) -> None:
    """Raises ValueError for ids that neither a table of `size` rows nor `further` has, if `ids` are on the CPU.

    Another device would have to be waited for.
    """
    if not ids.is_cpu or torch.compiler.is_compiling():
        return
    wrong = [id for id in ids[(ids < 0) | (ids.long() >= size)].tolist() if id not in further]
    if wrong:
        raise ValueError(f"`{name}` must be from 0 to {size - 1}, got {wrong[0]}: are they of another tokenizer?")


def index_on(device: torch.device, places: Sequence[int]) -> torch.Tensor:
    """`places` as an index on a device, without waiting for the device, as indexing by a list does."""
    return torch.tensor(places, dtype=torch.long, device="cpu").to(device, non_blocking=True)


def pinned_to(device: torch.device, inputs: dict[str, Any], leave: Container[str] = ()) -> dict[str, Any]:
    """`inputs` with the tensors on the host copied to a device, except those that `leave` names, without waiting.

    CUDA waits for copies of other memory than page-locked one. torch gives that to nobody else until it is copied
    (ATen/core/CachingHostAllocator.h).
    """
    if device.type in ("cpu", "meta"):
        return inputs
    return {
        name: (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) and value.is_cpu and name not in leave
        else value
        for name, value in inputs.items()
    }
