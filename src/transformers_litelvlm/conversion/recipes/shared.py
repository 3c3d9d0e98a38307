"""What the recipes share: reading configs, the CLIP that guides pruning, and all that a checkpoint has but weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPConfig, GenerationConfig, PreTrainedModel, ProcessorMixin

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.conversion.convert import Conversion, MustEqual
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.hub.model_card import CARD_NAME, read_metadata, render_card, write_card
from transformers_litelvlm.models.auto import check_seg_token
from transformers_litelvlm.models.processing.qwen_vl import without_cropping
from transformers_litelvlm.models.remote_code import write_stub


Rules = list[Rename | Drop]

ROTARY = Drop(r".*\.rotary_emb\.inv_freq", "a buffer that the config determines")
POSITION_IDS = Drop(r".*\.position_ids", "a buffer that counts from 0")

# Of a CLIP checkpoint; where its vision tower goes is for each recipe to say.
GUIDANCE_RULES: Rules = [
    POSITION_IDS,
    Drop("logit_scale", "scales CLIP's contrastive loss, which nothing here computes"),
    Rename(r"(text_model|text_projection|visual_projection)\.(.+)", r"model.guidance.\1.\2"),
]

# Of a CLIP beside a Qwen model, which has a vision tower of its own.
SIDE_CLIP_RULES: Rules = [*GUIDANCE_RULES, Rename(r"vision_model\.(.+)", r"model.guidance.vision_model.\1")]


def read_config(source: CheckpointSource, way_out: str = "give the folder or the Hub id of a checkpoint") -> dict:
    """The config.json of a source; `way_out` ends the error if there is none."""
    config = source.read_json("config.json")
    if config is None:
        where = "in that folder" if source.is_local else "on the Hub or in the cache (is there a connection?)"
        raise ConversionError(f"{source} has no config.json {where}; {way_out}.")
    return config


def open_clip(path_or_id: str) -> CheckpointSource:
    """The CLIP of a conversion. Raises ConversionError as [`CheckpointSource`] does; it names the option, since users
    need not have named a CLIP."""
    try:
        return CheckpointSource(path_or_id)
    except ConversionError as error:
        raise ConversionError(f"{error} --clip names the CLIP.") from error


def read_clip_config(source: CheckpointSource) -> CLIPConfig:
    """The config of a CLIP."""
    return CLIPConfig.from_dict(read_config(source, "--clip names the CLIP"))


def read_preprocessor_config(source: CheckpointSource) -> dict[str, Any]:
    """The preprocessor_config.json of a source."""
    config = source.read_json("preprocessor_config.json")
    if config is None:
        raise ConversionError(f"{source} has no preprocessor_config.json: it is part of such a checkpoint.")
    return config


def load_tokenizer(source: CheckpointSource, **options: Any) -> Any:
    """The tokenizer of a source, from the commit that its other files come from."""
    return AutoTokenizer.from_pretrained(source.path_or_id, revision=source.pinned_revision, **options)


def read_chat_template(source: CheckpointSource, tokenizer: Any) -> str:
    """The chat template of a source. Raises ConversionError if there is none."""
    # Older versions of transformers kept it in a file of its own.
    chat_template = tokenizer.chat_template or (source.read_json("chat_template.json") or {}).get("chat_template")
    if chat_template is None:
        raise ConversionError(
            f"{source} has no chat template, which is in tokenizer_config.json, chat_template.jinja or "
            "chat_template.json."
        )
    return chat_template


def generation_config(text_config: Any, published: Mapping[str, Any] | None = None) -> GenerationConfig:
    """Greedy, with the special tokens of `published`, and those of the language model that are not in it."""
    names, published = ("bos_token_id", "eos_token_id", "pad_token_id"), published or {}
    return GenerationConfig(**{name: published.get(name, getattr(text_config, name, None)) for name in names})


def make_conversion(
    title: str,
    model_class: type[PreTrainedModel],
    config: Any,
    processor: ProcessorMixin,
    parts: Sequence[Part],
    generation: GenerationConfig,
    must_equal: Sequence[MustEqual] = (),
) -> Conversion:
    """The conversion of the sources in `parts` into a `model_class`, with all that its folder needs.

    Args:
        title: what the kind of checkpoint is called in the model card.
        config, processor, generation: of the result.
        parts: the sources with their rules; the first one is the published model, and names the kind in the report.
        must_equal: tensors that show whether the sources belong together.
    """
    source = parts[0].source
    if any(name.endswith("lm_head.weight") for name in source.tensors()):
        # A head that is stored is not the table of embeddings, whatever the config says.
        for each in (config, config.text_config):
            if getattr(each, "tie_word_embeddings", False):
                each.tie_word_embeddings = False
    if getattr(config, "seg_token_id", None) is not None:
        check_seg_token(source, config, processor)
    with torch.device("meta"):
        model = model_class(config)
    config.architectures = [model_class.__name__]

    def write_rest(folder: Path, dtype: torch.dtype | None) -> None:
        if dtype is not None:
            config.dtype = dtype
        processor.save_pretrained(folder)
        PruningConfig().save_pretrained(folder)
        generation.save_pretrained(folder)
        _write_card(folder, title, [part.source for part in parts], config, processor)
        config.auto_map = write_stub(folder, config.model_type)
        config.save_pretrained(folder)

    return Conversion(
        family=parts[0].label,
        parts=list(parts),
        targets={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(model.all_tied_weights_keys),
        must_equal=list(must_equal),
        write_rest=write_rest,
    )


def qwen_conversion(
    title: str, model_class: type[PreTrainedModel], config: Any, processor: Any, part: Part, clip: str | None
) -> Conversion:
    """The conversion of a checkpoint with a Qwen model, see [`make_conversion`]. `clip` is the folder or Hub id of a
    CLIP that becomes part of the checkpoint and guides pruning; `None` for none."""
    parts = [part]
    if clip is not None:
        parts.append(_add_side_clip(open_clip(clip), config, processor))
    generation = generation_config(config.text_config, part.source.read_json("generation_config.json"))
    return make_conversion(title, model_class, config, processor, parts, generation)


def _add_side_clip(source: CheckpointSource, config: Any, processor: Any) -> Part:
    """Have config and processor of a Qwen family use a CLIP for guidance; returns its weights."""
    clip_config = read_clip_config(source)
    read_preprocessor_config(source)
    config.guidance, config.guidance_config = "clip", clip_config
    if not source.is_local:
        config.guidance_model = source.path_or_id
    processor.guidance_tokenizer = load_tokenizer(source)
    processor.guidance_image_processor = without_cropping(source.path_or_id)
    return Part("clip", source, SIDE_CLIP_RULES)


def _write_card(
    folder: Path, title: str, sources: Sequence[CheckpointSource], config: Any, processor: ProcessorMixin
) -> None:
    """The model card: licence and base models are those of the sources; what is not known is left out, not guessed."""
    published = sources[0].file(CARD_NAME)
    card = render_card(
        config,
        name=sources[0].public_name,
        template="converted_card.md.jinja",
        license=None if published is None else read_metadata(published).get("license"),
        base_model=[source.path_or_id for source in sources if not source.is_local] or None,
        title=title,
        sources=[source.public_name for source in sources],
        questions=processor.question_templates,
        one_by_one=processor.one_expression_per_dialogue,
    )
    write_card(folder, card)
