"""Tensors on the device of the layer that reads them, in models whose parts are in several places."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


@contextmanager
def weights_of(block: Any) -> Iterator[None]:
    """For parts of a block that run alone: `fully_shard` gives a block its weights only while the block runs."""
    if not hasattr(block, "reshard"):
        yield
        return
    block.unshard()
    try:
        yield
    finally:
        if not (torch.is_grad_enabled() and any(weight.requires_grad for weight in block.parameters())):
            block.reshard()  # else after the backward pass


def parameters_at_hand(*modules: Any) -> ExitStack:
    """Context with the parameters of `modules` themselves, which an offloaded model brings in for calls of their
    `forward` alone; those that are there already stay.

    Accelerate's `align_module_device` is for modules with one hook; the first of those on a device has two.
    """
    with ExitStack() as stack:
        for module in modules:
            hook = getattr(module, "_hf_hook", None)
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if hook is not None and any(tensor.is_meta for tensor in own):
                hook.pre_forward(module)
                stack.callback(hook.post_forward, module, None)
        return stack.pop_all()


def to_device_of(module: Any, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where `module` computes.

    A `device_map` moves the inputs of whole parts of a model, but not those of a layer inside that is called alone. An
    offloaded layer (on "meta" until it is called) moves its inputs itself.
    """
    device = next(module.parameters(), tensor).device  # layers of torch's dynamic quantization have no parameters
    return tensor if device.type == "meta" else tensor.to(device)


def to_model(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """`inputs` for `segment` on the device of `model`; numbers that are not whole in its dtype, pixels for masks in
    that of its mask model, which may be another one beside a chat model."""
    own, to = {"mask_pixel_values": getattr(model.mask_model, "dtype", model.dtype)}, model.device
    return {n: v.to(to, own.get(n, model.dtype) if v.is_floating_point() else None) for n, v in inputs.items()}


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
