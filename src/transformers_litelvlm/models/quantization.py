"""Which parts of a model stay as they are when the rest is quantized."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from transformers_litelvlm.models.upstream import quantization_config_of


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
