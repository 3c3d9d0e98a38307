"""Stock LLaVA (llava-hf/llava-1.5-7b-hf and others in the format of Transformers) -> a self-contained checkpoint.

It lacks the CLIP text tower and the projections that guide pruning: these come from the CLIP checkpoint.
"""

from __future__ import annotations

from transformers import CLIPConfig

from transformers_litelvlm.conversion.convert import Conversion, MustEqual
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.shared import (
    GUIDANCE_RULES,
    POSITION_IDS,
    ROTARY,
    Rules,
    generation_config,
    make_conversion,
    open_clip,
    read_clip_config,
    read_config,
)
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
from transformers_litelvlm.models.llava_lite.modeling_llava_lite import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.llava_lite.processing_llava_lite import LlavaLiteProcessor


# Both the names that transformers writes today and those of the published llava-hf checkpoints.
RULES: Rules = [
    ROTARY,
    POSITION_IDS,
    Rename(r"(?:language_model\.)?lm_head\.weight", "lm_head.weight"),
    Rename(r"(?:language_model\.model|model\.language_model)\.(.+)", r"model.language_model.\1"),
    Rename(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)", r"model.vision_tower.\1"),
    Rename(r"(?:model\.)?multi_modal_projector\.(.+)", r"model.multi_modal_projector.\1"),
]
CLIP_RULES: Rules = [*GUIDANCE_RULES, Drop(r"vision_model\..+", "the checkpoint brings its own vision tower")]


def llava_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """How a stock LLaVA checkpoint becomes a [`LlavaLiteForConditionalGeneration`].

    Args:
        clip: folder or Hub id of the CLIP that its vision tower comes from; default: `guidance_model` of
            [`LlavaLiteConfig`].

    Raises:
        ConversionError: if a file is missing, or the config is not one of LLaVA.
    """
    published = read_config(source)
    if "text_config" not in published or published.get("model_type") not in ("llava", "llava_lite"):
        raise ConversionError(
            f"{source}/config.json is no LLaVA of Transformers (model_type {published.get('model_type')!r}). "
            "For the original GLaMM and LISA use `convert glamm` and `convert lisa`."
        )
    clip_source = open_clip(clip or LlavaLiteConfig.guidance_model)
    clip_config = read_clip_config(clip_source)
    config = LlavaLiteConfig.from_dict({**published, "model_type": LlavaLiteConfig.model_type, "architectures": None})
    set_guidance(config, clip_source, clip_config)
    processor = LlavaLiteProcessor.from_pretrained(
        source.path_or_id, revision=source.pinned_revision, guidance_tokenizer=clip_source.path_or_id
    )
    return make_conversion(
        "LLaVA",
        LlavaLiteForConditionalGeneration,
        config,
        processor,
        [Part("llava", source, RULES), Part("clip", clip_source, CLIP_RULES)],
        generation_config(config.text_config),
        _same_tower(source, clip_source, config.vision_config.num_hidden_layers - 1),
    )


def set_guidance(config: LlavaLiteConfig, source: CheckpointSource, clip_config: CLIPConfig) -> None:
    """Have `config` describe the text tower and the projections of a CLIP."""
    config.guidance_text_config = clip_config.text_config
    config.guidance_projection_dim = clip_config.projection_dim
    if not source.is_local:
        config.guidance_model = source.path_or_id


def _same_tower(source: CheckpointSource, clip: CheckpointSource, last: int) -> list[MustEqual]:
    """Two tensors of the vision tower, which the CLIP must have too."""
    names = ("embeddings.patch_embedding.weight", f"encoder.layers.{last}.self_attn.q_proj.weight")
    way_out = f"{clip} is not the CLIP that the vision tower comes from; name the right one with --clip"
    return [
        MustEqual(("llava", key), ("clip", f"vision_model.{name}"), way_out)
        for name in names
        for key in source.tensors()
        if key.endswith((f"vision_tower.vision_model.{name}", f"vision_tower.{name}"))
    ]
