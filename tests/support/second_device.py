"""A second device for machines that have only a CPU, which computes what its tensors hold under another name.

What CUDA refuses is refused here too: operations on tensors of two devices, products of integers, generators of the
other device. What makes the host wait for CUDA is written down, by torch's sources: what
`torch.cuda.set_sync_debug_mode` is to count, copies of pageable memory included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only


DEVICE = torch.device("privateuseone", 0)

# Operations whose result, or the size of it, is a value that the device has to tell.
WAITING = {
    "_local_scalar_dense",
    "_linalg_check_errors",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_"}
PRODUCTS = {"addbmm", "addmm", "addmv", "baddbmm", "baddbmm_", "bmm", "dot", "mm", "mv"}


class OtherTensor(torch.Tensor):
    """A tensor of [`DEVICE`]; `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OtherTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        self.inner = inner
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside `other_device()`")

    def __repr__(self) -> str:
        return f"OtherTensor({self.inner})"

    def tolist(self) -> Any:  # torch has none for tensors of a class
        return self.cpu().tolist()


class _Construction(TorchFunctionMode):
    """Tensors of given values are made on the CPU first, as for CUDA; torch does not show that to dispatch modes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], OtherTensor):
            kwargs = {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            function, args = torch.tensor, args[1:]
        if function in (torch.tensor, torch.as_tensor) and _is_other(kwargs.get("device")):
            values = tree_map_only(OtherTensor, lambda tensor: tensor.item(), args)
            return function(*values, **{**kwargs, "device": None}).to(DEVICE)
        if function is torch.Tensor.__getitem__ and isinstance(args[0], OtherTensor):
            is_tuple = isinstance(args[1], tuple)
            items = (_index_there(item) for item in (args[1] if is_tuple else (args[1],)))
            args = (args[0], tuple(items) if is_tuple else next(items))
        return function(*args, **kwargs)


def _index_there(item: Any) -> Any:
    """Lists in an index go to the device of what is indexed."""
    return torch.tensor(item).to(DEVICE) if isinstance(item, list) else item


class _Dispatch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function._overloadpacket.__name__
        if torch.is_inference_mode_enabled():  # compound operations arrive whole there
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "copy_":
            is_result_other = isinstance(args[0], OtherTensor)
        elif kwargs.get("device") is not None:
            is_result_other = _is_other(kwargs["device"])
        else:
            is_result_other = any(isinstance(tensor, OtherTensor) for tensor in tensors)
        if is_result_other or any(isinstance(tensor, OtherTensor) for tensor in tensors):
            self._refuse(function, name, tensors, kwargs)
            if self._waits(name, tensors, args, kwargs, is_result_other):
                self.waits.append(f"{name} {[tuple(tensor.shape) for tensor in tensors]}")
        if not is_result_other:
            return function(*_inner(args), **_inner(kwargs))
        inside = {key: torch.device("cpu") if key == "device" else value for key, value in _inner(kwargs).items()}
        result = function(*_inner(args), **inside)
        if name == "_to_copy" and any(result is tensor for tensor in _inner(tensors)):
            result = result.clone()
        with torch.inference_mode(False):  # else it could not be a view of a parameter
            result = tree_map_only(torch.Tensor, OtherTensor, result)
        return return_and_correct_aliasing(function, args, kwargs, result) if tensors else result

    def _refuse(self, function: Any, name: str, tensors: list[torch.Tensor], kwargs: dict[str, Any]) -> None:
        shown = f"{function} of {[(tensor.device.type, tuple(tensor.shape)) for tensor in tensors]}"
        # Numbers may lie on the CPU, and so may indices, for whose copy the host waits.
        mixed = {tensor.device.type for tensor in tensors if tensor.dim() > 0}
        if len(mixed) > 1 and name not in COPIES | INDEXING:
            raise RuntimeError(f"Expected all tensors to be on the same device: {shown}")
        if name in PRODUCTS and not tensors[0].is_floating_point():
            raise RuntimeError(f"not implemented for integers: {shown}")
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"a generator of the CPU: {shown}")

    def _waits(
        self, name: str, tensors: list[torch.Tensor], args: Any, kwargs: dict[str, Any], is_result_other: bool
    ) -> bool:
        if name in COPIES:
            source = tensors[-1]
            is_asynchronous = kwargs.get("non_blocking", len(args) > 2 and args[2])
            return isinstance(source, OtherTensor) != is_result_other and not is_asynchronous and source.numel() > 0
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            return any(index.dtype == torch.bool or not isinstance(index, OtherTensor) for index in indices)
        return name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def _is_other(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _inner(tree: Any) -> Any:
    return tree_map_only(OtherTensor, lambda tensor: tensor.inner, tree)


@contextmanager
def other_device() -> Iterator[list[str]]:
    """Inside, `.to(DEVICE)` and `device=DEVICE` work. Gives the list of what the host waited for, which grows."""
    if not hasattr(torch._C, "_acc") or not hasattr(backend_registration, "_DummyDeviceGuard"):
        pytest.skip("this torch has no devices written in Python")
    if not hasattr(torch, DEVICE.type):
        # For the life of the process; it makes nothing available that was not asked for by name.
        torch._C._acc.register_python_privateuseone_device_guard(backend_registration._DummyDeviceGuard())
        torch._register_device_module(DEVICE.type, backend_registration._DummyBackendModule())
    mode = _Dispatch()
    with _Construction(), mode:
        yield mode.waits
