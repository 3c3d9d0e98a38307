"""The model card of a checkpoint: one template, for converted and for saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import logging

from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.hub.measured import TEMPLATES, render_measured
from transformers_litelvlm.utils.files import write_atomically
from transformers_litelvlm.version import __version__


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
_FAMILIES = {
    "llava": "LLaVA",
    "glamm": "GLaMM",
    "lisa": "LISA",
    "unipixel": "UniPixel",
    "llava_lite": "A LLaVA-style model",
    "qwen2_5_vl_lite": "Qwen2.5-VL",
}
_QUESTION = (
    'text=[{"role": "user", "content": [{"type": "image", "image": "photo.jpg"},'
    ' {"type": "text", "text": "What is this?"}]}]'
)
# LLaVA checkpoints often come without a chat template.
_LLAVA_QUESTION = '"photo.jpg", text="USER: <image>\\nWhat is this? ASSISTANT:"'


def write_card(folder: Path, card: str) -> None:
    """Put README.md into `folder`, all of it or nothing."""
    with write_atomically(folder) as staging:
        Path(staging, CARD_NAME).write_text(card, encoding="utf-8")


def write_converted_card(
    folder: Path, family: str, sources: Sequence[CheckpointSource], config: Any, processor: Any
) -> None:
    """Write README.md: where the weights come from, how to use them, the presets in tokens, limits, citation.

    The licence and the base models are those of the sources; what is not known is left out, not guessed.

    Args:
        folder: of the converted checkpoint.
        family: `"llava"`, `"glamm"`, `"lisa"` or `"unipixel"`.
        sources: the checkpoints it was made from, the main one first.
        config, processor: of the result.
    """
    file = sources[0].file(CARD_NAME)
    card = render_card(
        config,
        name=_where(sources[0]),
        template="converted_card.md.jinja",
        license=None if file is None else _metadata(file).get("license"),
        base_model=[source.path_or_id for source in sources if not source.is_local] or None,
        family=family,
        sources=[_where(source) for source in sources],
        questions=processor.question_templates,
        one_by_one=processor.one_expression_per_dialogue,
    )
    write_card(folder, card)


def write_missing_card(folder: Path, config: Any) -> None:
    """Write the README.md of a saved model, where the folder has none."""
    if not Path(folder, CARD_NAME).exists():
        write_card(folder, render_saved_card(config))


def render_saved_card(config: Any, name: str | None = None) -> str:
    """
    The card of a model of this package that was saved.

    The base model is the one on the Hub that it was loaded from. If it was loaded from a folder, licence and base
    model are those of that folder's card. What is not known is left out.

    Args:
        config: of the model, with `architectures`.
        name: of the model; that of the folder or repository it was loaded from by default.
    """
    source = config.name_or_path or ""
    known = _metadata(Path(source, CARD_NAME)) if source and Path(source, CARD_NAME).is_file() else {}
    base_model = source if _is_from_hub(source) else known.get("base_model")
    name = name or Path(source).name or config.architectures[0]
    return render_card(config, name=name, license=known.get("license"), base_model=base_model)


def render_card(
    config: Any,
    name: str,
    template: str = "card.md.jinja",
    license: str | None = None,
    base_model: str | list[str] | None = None,
    family: str | None = None,
    **more: Any,
) -> str:
    """A whole card, in which nothing is measured yet; `more` is for the template."""
    model_class = config.architectures[0]
    writes_masks, answers = model_class.endswith("Segmentation"), model_class.endswith("Generation")
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if writes_masks else "image-text-to-text" if answers else None,
        license=license,
        base_model=base_model,
        tags=["visual-token-pruning", "litelvlm", *(["referring-segmentation"] if writes_masks else [])],
    )
    num_tokens = num_visual_tokens(config)
    own_type = type(config).model_type  # a config that was read from a stock checkpoint says the stock type itself
    family = family or own_type
    return TEMPLATES.get_template(template).render(
        card_data=data.to_yaml(),
        name=name,
        family=_FAMILIES.get(family, family),
        base_model=base_model,
        writes_masks=writes_masks,
        answers=answers,
        model_class=model_class,
        question=_LLAVA_QUESTION if own_type == "llava_lite" else _QUESTION,
        num_tokens=num_tokens,
        presets=_presets(config, num_tokens),
        pruning=config.pruning_config,
        measured=render_measured([], config.pruning_config, num_tokens),
        version=__version__,
        **more,
    )


def num_visual_tokens(config: Any) -> int | None:
    """Visual tokens of an image before pruning; `None` where its size decides."""
    size = getattr(config.vision_config, "image_size", None)
    return None if size is None else (size // config.vision_config.patch_size) ** 2


def _presets(config: Any, num_tokens: int | None) -> list[tuple[str, str]]:
    """Name and meaning of every preset that `config` can follow, for images of `num_tokens` visual tokens."""
    described, pruning = [], config.pruning_config
    for name, changes in pruning.presets.items():
        try:
            config.check_pruning(pruning.apply_preset(name))
        except ValueError:
            continue
        kept = []
        ratio, budget = changes.get("retention_ratio"), changes.get("budget")
        if ratio is not None or budget is not None:
            if num_tokens is not None:
                budget = pruning.apply_preset(name).resolve(num_tokens) or num_tokens
                kept = [f"{budget} of {num_tokens} visual tokens"]
            else:
                kept = [f"{budget} visual tokens" if budget is not None else f"{ratio:.3g} of the visual tokens"]
        others = [
            f"{key} = {value}"
            for key, value in changes.items()
            if key not in ("budget", "retention_ratio") and value is not None
        ]
        described.append((name, ", ".join(kept + others)))
    return described


def _metadata(file: Path) -> dict[str, Any]:
    """Metadata of somebody's card; none where they cannot be read, which is no reason to lose a checkpoint."""
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:
        logger.warning(f"The metadata of {file} cannot be read ({error}): licence and base model are left out.")
        return {}


def _is_from_hub(source: str) -> bool:
    """Whether a config's `name_or_path` is an id: what was loaded from the Hub is in its cache, no folder is."""
    if not source or Path(source).exists():
        return False
    try:
        return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type="model")).is_dir()
    except HFValidationError:
        return False


def _where(source: CheckpointSource) -> str:
    """Hub id; of a local folder only its name, since the card is for others."""
    return Path(source.path_or_id).resolve().name if source.is_local else source.path_or_id
