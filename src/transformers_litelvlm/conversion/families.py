"""The kinds of checkpoints that `litelvlm convert` knows."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers_litelvlm.conversion.convert import Conversion
    from transformers_litelvlm.conversion.source import CheckpointSource


# Name -> "module:function". A function takes the source and what `--clip` says (`None` where it is left out), and
# returns the `Conversion`. Modules are imported when used: they bring the models with them.
FAMILIES: dict[str, str] = {
    "llava": "transformers_litelvlm.conversion.recipes.llava:llava_conversion",
    "glamm": "transformers_litelvlm.conversion.recipes.llava:glamm_conversion",
    "lisa": "transformers_litelvlm.conversion.recipes.llava:lisa_conversion",
    "unipixel": "transformers_litelvlm.conversion.recipes.unipixel:unipixel_conversion",
}


def load_family(name: str) -> Callable[[CheckpointSource, str | None], Conversion]:
    """The function of a family."""
    module, _, function = FAMILIES[name].partition(":")
    return getattr(importlib.import_module(module), function)
