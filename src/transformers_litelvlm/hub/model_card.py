"""The model card that a converted checkpoint gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.version import __version__


TEMPLATE = Path(__file__).with_name("converted_card.md.jinja")


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
    writes_masks = config.mask_config is not None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation" if writes_masks else "image-text-to-text",
        license=_licence(sources[0]),
        base_model=[source.path_or_id for source in sources if not source.is_local] or None,
        tags=["visual-token-pruning", "litelvlm", *(["referring-segmentation"] if writes_masks else [])],
    )
    # A fixed number of visual tokens per image, or one that varies with its size.
    grid = processor.visual_token_grid() if hasattr(processor, "visual_token_grid") else None
    num_tokens = None if grid is None else math.prod(grid)
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=_where(sources[0]),
        family={"llava": "LLaVA", "glamm": "GLaMM", "lisa": "LISA", "unipixel": "UniPixel"}.get(family, family),
        sources=[_where(source) for source in sources],
        writes_masks=writes_masks,
        model_class=config.architectures[0],
        num_tokens=num_tokens,
        grid=grid,
        presets=_presets(config, num_tokens),
        questions=processor.question_templates,
        one_by_one=processor.one_expression_per_dialogue,
        version=__version__,
    )
    Path(folder, "README.md").write_text(str(card), encoding="utf-8")


def _presets(config: Any, num_tokens: int | None) -> list[tuple[str, str]]:
    """Name and meaning of every preset that `config` can follow, for images of `num_tokens` visual tokens."""
    described = []
    for name, changes in (PruningConfig().presets or {}).items():
        pruning = PruningConfig().apply_preset(name)
        try:
            config.check_pruning(pruning)
        except ValueError:
            continue
        if num_tokens is None:
            kept = [f"{pruning.retention_ratio:.1%} of the visual tokens"] if pruning.retention_ratio else []
            kept += [f"{pruning.budget} visual tokens"] if pruning.budget else []
        else:
            budget = pruning.resolve(num_tokens)
            kept = [] if budget is None else [f"{budget} of {num_tokens} visual tokens"]
        others = [
            f"{key} = {value}"
            for key, value in changes.items()
            if key not in ("budget", "retention_ratio") and value is not None
        ]
        described.append((name, ", ".join(kept + others)))
    return described


def _licence(source: CheckpointSource) -> str | None:
    file = source.file("README.md")
    return None if file is None else ModelCard.load(file, ignore_metadata_errors=True).data.license


def _where(source: CheckpointSource) -> str:
    """Hub id; of a local folder only its name, since the card is for others."""
    return Path(source.path_or_id).resolve().name if source.is_local else source.path_or_id
