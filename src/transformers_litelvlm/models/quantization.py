"""Quantization by name, and which parts of a model stay as they are when the rest is quantized."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from transformers_litelvlm.models.upstream import quantization_config_of
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.messages import quoted


QUANTIZATIONS = ("none", "int8", "int4")

# The lists of modules to leave alone have a name per library: bitsandbytes; torchao and most others; HQQ.
_SKIP_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules")

# Upstream leaves the output layer alone, but only while nobody else says what to skip.
_UPSTREAM_SKIPS = ["lm_head"]


def keep_unquantized(quantization_config: Any, parts: Iterable[str]) -> Any:
    """A copy of `quantization_config` that also leaves the named `parts` of the model alone, wherever they are in it.

    Args:
        quantization_config: one of Transformers' quantization configs, or a dict of it.
        parts: attribute names of modules, such as `"guidance"`.

    Raises:
        ValueError: if that kind of quantization cannot leave modules out.
    """
    if isinstance(quantization_config, dict):
        quantization_config = quantization_config_of(dict(quantization_config))
    quantization_config = copy.deepcopy(quantization_config)
    for name in _SKIP_LISTS:
        if hasattr(quantization_config, name):
            skipped = getattr(quantization_config, name) or _UPSTREAM_SKIPS
            setattr(quantization_config, name, [*skipped, *(rf"(?:.*\.)?{part}" for part in parts)])
            return quantization_config
    raise ValueError(
        f"`quantization_config` of type {type(quantization_config).__name__} cannot leave {', '.join(parts)} "
        "unquantized. Use bitsandbytes or torchao, or quantize `model.language_model` after loading."
    )


def quantization_config(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The quantization config of Transformers for one of `QUANTIZATIONS`; `None` for `"none"`.

    Weights alone are quantized: `"int8"` is LLM.int8() of bitsandbytes on CUDA and weight-only int8 of torchao on a
    CPU; `"int4"` is NF4 of bitsandbytes on both, because the int4 of torchao has no kernel for CPUs.

    Args:
        name: of the kind.
        device: where the model will be.
        dtype: in which it computes.

    Raises:
        ValueError: an unknown name, or a device that has none of them.
        ImportError: the library is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)}, got {quoted(name)}.")
    if name == "none":
        return None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"`quantization` {name!r} is for CPUs and CUDA, the device is {device.type!r}. Use 'none'.")
    with needs_extra("quantization", f"`quantization` {name!r} on {device.type}"):
        if name == "int8" and device.type == "cpu":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(Int8WeightOnlyConfig())
        from bitsandbytes import nn  # noqa: F401
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def quantized_loading(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Keywords of `from_pretrained` for a model on `device` with quantized weights; none for `"none"`."""
    config = quantization_config(name, device, dtype)
    # Some weights are quantized where they will be, and cannot move later.
    return {} if config is None else {"quantization_config": config, "device_map": {"": device}}


def quantize(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """`model` with the weights quantized that `from_pretrained` would quantize; itself for `"none"`.

    The model that is given does not change: there is memory for both until it is dropped.

    Args:
        model: one of ours, unquantized.
        name: one of `QUANTIZATIONS`.

    Raises:
        ValueError, ImportError: as [`quantization_config`].
    """
    loading = quantized_loading(name, model.device, model.dtype)
    if not loading:
        return model
    quantized = type(model).from_pretrained(
        None, config=copy.deepcopy(model.config), state_dict=model.state_dict(), dtype=model.dtype, **loading
    )
    quantized.generation_config = copy.deepcopy(model.generation_config)
    return quantized.eval()


def stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a tensor keeps in memory: itself, or the parts of a quantized one that stands for what it was before."""
    if not hasattr(tensor, "__tensor_flatten__"):  # torch's protocol for such tensors
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in stored_tensors(getattr(tensor, name))]


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, with the scales of quantized ones; tied ones count once."""
    # Only the state of a module has what bitsandbytes keeps beside a weight, and only `buffers` what is not saved.
    tensors = [*model.state_dict(keep_vars=True).values(), *model.buffers()]
    different = {id(tensor): tensor for tensor in tensors}.values()
    return sum(part.nbytes for tensor in different for part in stored_tensors(tensor))
