"""The kinds of checkpoints that `litelvlm convert` knows. Recipes are imported when used: they need the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers_litelvlm.conversion.convert import Conversion
    from transformers_litelvlm.conversion.source import CheckpointSource


def _llava(source: CheckpointSource, clip: str | None) -> Conversion:
    from transformers_litelvlm.conversion.recipes.llava import llava_conversion

    return llava_conversion(source, clip)


def _glamm(source: CheckpointSource, clip: str | None) -> Conversion:
    from transformers_litelvlm.conversion.recipes.glamm import glamm_conversion

    return glamm_conversion(source, clip)


def _lisa(source: CheckpointSource, clip: str | None) -> Conversion:
    from transformers_litelvlm.conversion.recipes.lisa import lisa_conversion

    return lisa_conversion(source, clip)


def _unipixel(source: CheckpointSource, clip: str | None) -> Conversion:
    from transformers_litelvlm.conversion.recipes.unipixel import unipixel_conversion

    return unipixel_conversion(source, clip)


# Name -> function of the source and of what `--clip` says, `None` if it is left out.
RECIPES: dict[str, Callable[[CheckpointSource, str | None], Conversion]] = {
    "llava": _llava,
    "glamm": _glamm,
    "lisa": _lisa,
    "unipixel": _unipixel,
}
