"""The parts of our own models that vLLM does not have: tower, guidance, projector, and what writes masks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from transformers_litelvlm.models.outputs import token_lists
from transformers_litelvlm.models.upstream import no_init_weights


# Beginnings of names of weights: in our checkpoints, in stock ones, and in stock ones from before transformers 4.52.
# The first that fits says whose weight it is; what none fits belongs to the language model.
_LANGUAGE_MODEL = {
    "model.language_model.": "language_model.model.",
    "language_model.": "language_model.",
    "lm_head.": "language_model.lm_head.",
}
_MEDIA = {
    "mask_model.": "media.mask_model.",
    "text_hidden_fcs.": "media.text_hidden_fcs.",
    "vision_tower.vision_model.": "media.model.vision_tower.",
    "vision_tower.": "media.model.vision_tower.",
    "multi_modal_projector.": "media.model.multi_modal_projector.",
    "visual.": "media.model.visual.",
    "model.vision_tower.": "media.model.vision_tower.",
    "model.multi_modal_projector.": "media.model.multi_modal_projector.",
    "model.visual.": "media.model.visual.",
    "model.guidance.": "media.model.guidance.",
    "model.": "language_model.model.",
}


def renamed(name: str) -> str:
    """The name of a checkpoint's weight in a vLLM model with [`media_model`] as `media`."""
    for old, new in (_LANGUAGE_MODEL | _MEDIA).items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def media_model(model_class: type[PreTrainedModel], config: Any) -> Any:
    """A model of ours, with a head, without its language model, for its weights to be loaded into; `config` is of the
    whole model."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    # Upstream's constructors build a language model, so they get a very small one, to be thrown away.
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 0, 1, None
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = []
    with no_init_weights():
        model: Any = model_class._from_config(config, dtype=torch.get_default_dtype())
    del model.lm_head, model.model.language_model
    return model.eval()


def lend_embeddings(media: Any, embed_tokens: nn.Module) -> None:
    """Let guidance read the token embeddings of vLLM's language model, which stay a part of that alone."""
    media.model.__dict__["embed_tokens"] = embed_tokens


def finish_loading(media: Any, loaded: set[str]) -> set[str]:
    """What `from_pretrained` does after reading a checkpoint: weights that are others, and guidance from the CLIP that
    the config names, if the checkpoint had none.

    Args:
        loaded: names of weights of `media` that came from the checkpoint.

    Returns:
        Names of weights that have their values now without being in the checkpoint.

    Raises:
        ValueError: if that CLIP cannot be loaded, or is not the one that the vision tower comes from.
    """
    media.model.misses_guidance = any(
        name.startswith("model.guidance.") and name not in loaded for name, _ in media.named_parameters()
    )
    media.model.load_missing_guidance()
    found = {name for name, _ in media.named_parameters() if name.startswith("model.guidance.")}
    if hasattr(media, "mask_model"):
        media.mask_model.tie_weights()
        found |= {f"mask_model.{name}" for name in media.mask_model.all_tied_weights_keys}
    return found


def embed_images(media: Any, arguments: dict[str, Any]) -> tuple[list[torch.Tensor], Any]:
    """Visual tokens of M pictures as the language model reads them.

    Args:
        arguments: of `get_image_features`; without `pruning_config` among them, the settings of the config hold.

    Returns:
        (K_i, D) of each picture, in families with DeepStack (K_i, D + layers * D) with what later layers get; and the
        indices of the kept tokens, `None` if nothing was cut.
    """
    features = media.model.get_image_features(**arguments, return_dict=True)
    embeds = [torch.cat(of_image, dim=-1) for of_image in zip(*token_lists(features), strict=True)]
    return embeds, getattr(features, "retained_indices", None)


def stacked(rows: Any) -> torch.Tensor:
    """Tokens or masks of the sentences about M pictures, (T_i, L_i) each, as (M, T, L), with zeros where there is
    nothing: what a mask leaves out, and what comes after the end of a sentence, no guidance reads. vLLM stacks them
    itself where they are alike."""
    if isinstance(rows, torch.Tensor):
        return rows
    shape = [max(row.shape[axis] for row in rows) for axis in (0, 1)]
    result = rows[0].new_zeros(len(rows), *shape)
    for place, row in zip(result, rows):
        place[: row.shape[0], : row.shape[1]] = row
    return result
