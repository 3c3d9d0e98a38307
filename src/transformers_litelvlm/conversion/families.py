"""The kinds of checkpoints that `litelvlm convert` knows."""

from __future__ import annotations

from collections.abc import Callable

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.recipes.glamm import glamm_conversion
from transformers_litelvlm.conversion.recipes.lisa import lisa_conversion
from transformers_litelvlm.conversion.recipes.llava import llava_conversion
from transformers_litelvlm.conversion.recipes.sa2va import sa2va_conversion
from transformers_litelvlm.conversion.recipes.unipixel import unipixel_conversion
from transformers_litelvlm.conversion.source import CheckpointSource


# Name -> function of the source and of what `--clip` says, `None` if it is left out.
RECIPES: dict[str, Callable[[CheckpointSource, str | None], Conversion]] = {
    "llava": llava_conversion,
    "glamm": glamm_conversion,
    "lisa": lisa_conversion,
    "sa2va": sa2va_conversion,
    "unipixel": unipixel_conversion,
}
