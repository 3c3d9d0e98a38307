"""LISA (xinlai/LISA-7B-v1) -> a self-contained checkpoint."""

from __future__ import annotations

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.recipes.original_llava import LLAMA_RULES, grounding_conversion
from transformers_litelvlm.conversion.recipes.sam import sam_renames
from transformers_litelvlm.conversion.recipes.shared import Rules
from transformers_litelvlm.conversion.source import CheckpointSource


RULES: Rules = [*LLAMA_RULES, *sam_renames(r"model\.visual_model\.", "mask_model.")]


def lisa_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How LISA becomes a [`LlavaLiteForReferringSegmentation`]; see [`grounding_conversion`]."""
    return grounding_conversion("lisa", "LISA", RULES, source, clip)
