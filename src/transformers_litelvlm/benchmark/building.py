"""Models with random weights, made on the device in the wanted dtype; whether they fit is said before."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.benchmark.presets import Preset
from transformers_litelvlm.models.upstream import no_init_weights


STD = 0.02  # as Llama and CLIP are initialised; keeps activations finite in half precision


def meta_model(preset: Preset, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return preset.model_class._from_config(preset.build_config(), dtype=dtype)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of parameters and buffers; tied ones count once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def check_memory(model: PreTrainedModel, device: torch.device) -> None:
    """Raises ValueError if the weights of a model need more memory than a device has left."""
    needed, free = weight_bytes(model), free_memory(device)
    if needed > free:
        raise ValueError(
            f"The weights need {needed / 1e9:.1f} GB in {str(model.dtype).removeprefix('torch.')}, but {device} has "
            f"{free / 1e9:.1f} GB left. Choose a smaller model, a dtype of two bytes, or another device."
        )


def random_model(preset: Preset, dtype: torch.dtype, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """The model with the same random weights for the same seed, dtype and device.

    Raises:
        ValueError: the weights alone need more memory than the device has left.
    """
    check_memory(meta_model(preset, dtype), device)
    # Buffers are made by the constructors, one of them at random.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with torch.device(device), no_init_weights():
            model = preset.model_class._from_config(preset.build_config(), dtype=dtype)
    model.tie_weights()
    fill_(model, seed)
    return model.eval()


@torch.no_grad()
def fill_(model: torch.nn.Module, seed: int) -> None:
    """Random values for every parameter, in place; scales of norms are around 1."""
    generator: Any = None
    for parameter in model.parameters():
        if generator is None or generator.device != parameter.device:
            generator = torch.Generator(parameter.device).manual_seed(seed)
        parameter.normal_(0.0, STD, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1.0)


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return math.inf
    import psutil

    return psutil.virtual_memory().available
