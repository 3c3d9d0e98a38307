"""Pruning settings of a single request, and names that follow vLLM's. Nothing here needs vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.serving.vllm.servable import check_settings
from transformers_litelvlm.utils.messages import quoted


# Name that follows vLLM's `video_pruning_rate` -> keywords of `from_pretrained` that say the same.
VLLM_NAMES = {
    "image_pruning_rate": ("pruning_retention_ratio", "pruning_budget"),
    "image_pruning_method": ("pruning_method",),
}


def is_setting(name: str) -> bool:
    """Whether a keyword is meant as a pruning setting, known or not."""
    return name.startswith(("pruning", "image_pruning"))


def as_ours(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Pruning settings with [`VLLM_NAMES`], by the names of `from_pretrained`. Raises ValueError if the same thing is
    said twice, or the rate is not in [0, 1)."""
    found = dict(keywords)
    for name, (keyword, *further) in VLLM_NAMES.items():
        if name not in keywords:
            continue
        if twice := [each for each in (keyword, *further) if each in keywords]:
            raise ValueError(f"`{name}` and `{twice[0]}` exclude each other: give one of them.")
        value = found.pop(name)
        if name == "image_pruning_rate":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(
                    "`image_pruning_rate`, the part of the visual tokens that is left out, must be a number in "
                    f"[0, 1), got {quoted(value)}."
                )
            value = round(1 - float(value), 12)  # 1 - 0.9 is less than 0.1
        found[keyword] = value
    return found


def requested(config: Any, keywords: Mapping[str, Any]) -> PruningConfig:
    """The server's settings, changed by those of a request.

    Args:
        config: of the model; its settings are those of the server.
        keywords: as of `from_pretrained`, or [`VLLM_NAMES`]; a dict as `pruning_config` changes the fields it has.

    Raises:
        ValueError: as `change_pruning` and `check_settings` do, and for what the server was not started for.
    """
    pruning = config.pruning_config
    if not keywords:
        return pruning
    server, changes = PruningSettings.of(config), as_ours(keywords)
    if not server.is_on:
        raise ValueError(
            "This server was started without pruning, so requests cannot have pruning settings: start it with the "
            "largest `pruning_budget` that a request may ask for."
        )
    pruning = change_pruning(pruning, changes)
    asked = check_settings(config, pruning)
    if asked.is_on and asked.keeps_positions != server.keeps_positions:
        wanted, has = ("original" if each.keeps_positions else "compact" for each in (asked, server))
        raise ValueError(
            f"These settings need `pruning_position_ids` {wanted!r}, and the server was started with {has!r}, which a "
            f"request cannot change: give {has!r} in the request, or start the server with {wanted!r}."
        )
    return pruning


def as_key(pruning: PruningConfig) -> str:
    """Settings as a text, equal for equal ones."""
    return json.dumps({k: v for k, v in pruning.to_dict().items() if k != "presets"}, sort_keys=True)


def of_key(key: str) -> PruningConfig:
    """The settings of [`as_key`]."""
    return PruningConfig.of(json.loads(key))


def pack(key: str) -> torch.Tensor:
    """A text as bytes, which travel with a picture."""
    return torch.frombuffer(bytearray(key.encode()), dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> str:
    """The text of [`pack`]."""
    return packed.cpu().numpy().tobytes().decode()
