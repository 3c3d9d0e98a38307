"""GLaMM (MBZUAI/GLaMM-RefSeg, also GCG and FullScope) -> a self-contained checkpoint."""

from __future__ import annotations

from transformers_litelvlm.conversion.convert import Conversion
from transformers_litelvlm.conversion.recipes.original_llava import LLAMA_RULES, grounding_conversion
from transformers_litelvlm.conversion.recipes.sam import sam_renames
from transformers_litelvlm.conversion.recipes.shared import Rules
from transformers_litelvlm.conversion.renaming import Drop
from transformers_litelvlm.conversion.source import CheckpointSource


RULES: Rules = [
    *LLAMA_RULES,
    *sam_renames(r"model\.grounding_encoder\.", "mask_model."),
    Drop(r"model\.region_encoder\..+", "reads box prompts, which referring segmentation does not have"),
]


def glamm_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How GLaMM becomes a [`LlavaLiteForReferringSegmentation`]; see [`grounding_conversion`]."""
    return grounding_conversion("glamm", "GLaMM", RULES, source, clip)
