"""The inputs of a language model after pruning: features of the kept visual tokens and the prompt that fits them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.prompt.compaction import CompactionPlan, PromptCounts, count_prompt, plan_compaction
from transformers_litelvlm.pruning.base import Selection, VisualEvidence
from transformers_litelvlm.pruning.selection import gather_tokens


# Modality -> the argument of `forward` that holds its pixels. In the order in which `generate` encodes them.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class PrunedInputs(NamedTuple):
    """What to call the upstream model with, and what was done to get there."""

    model_inputs: dict[str, Any]
    features: PrunedImageFeatures | None = None
    plan: CompactionPlan | None = None
    video_features: PrunedImageFeatures | None = None
    full_position_ids: torch.Tensor | None = None  # of the unpruned prompt, where they were needed
    is_visual: torch.Tensor | None = None  # (B, L') bool, places of the images' tokens, where there is a plan
    counts: dict[str, PromptCounts] | None = None  # of the prompt as it came, by modality, where it was asked

    def completed_by(self, output: Any) -> PrunedInputs:
        """The same with what a model's output says was kept, which is known only then for methods inside the language
        model."""
        kept = (getattr(output, f"{modality}_outputs", None) for modality in PIXELS)
        features, videos = (each if isinstance(each, PrunedImageFeatures) else None for each in kept)
        return self._replace(features=features, video_features=videos)


def project_selection(
    selection: Selection | list[Selection], evidence: VisualEvidence, projector: nn.Module, *, in_raster_order: bool
) -> PrunedImageFeatures:
    """Gather or take the tokens that a method retained, order them, and project them.

    Args:
        selection: of all images, or a list with one of each.
        evidence: what the method selected from.
        projector: (M, K, C) to (M, K, D).
        in_raster_order: by position in the image, else as the method put them.
    """
    is_ragged = isinstance(selection, list)
    parts = selection if isinstance(selection, list) else [selection]
    if in_raster_order:
        parts = [part.in_raster_order() for part in parts]
    projected: list[torch.Tensor] = []
    for image, part in enumerate(parts):
        tokens = part.features
        if tokens is None:
            tokens = gather_tokens(
                evidence.features[image : image + 1] if is_ragged else evidence.features, part.indices
            )
        projected.extend(projector(tokens))

    def joined(name: str, join: Callable[[list[torch.Tensor]], Any]) -> Any:
        values = [getattr(part, name) for part in parts]
        return join(values) if is_ragged and values[0] is not None else values[0]

    def unbatched(values: list[torch.Tensor]) -> list[torch.Tensor]:
        return [value[0] for value in values]

    rows, columns = evidence.grid
    return PrunedImageFeatures(
        pooler_output=projected,
        retained_indices=joined("indices", unbatched),
        similarity=joined("similarity", torch.cat),
        context_scores=joined("context", torch.cat),
        merge_weights=joined("weights", unbatched),
        num_visual_tokens=[rows * columns] * len(projected),
    )


def prune_inputs(
    model: PreTrainedModel,
    *,
    input_ids: torch.Tensor | None,
    pixel_values: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    cache: Any = None,
    mm_encoder_outputs: dict[str, Any] | None = None,
    image_kwargs: dict[str, Any],
    pixel_values_videos: torch.Tensor | None = None,
    video_kwargs: dict[str, Any] | None = None,
    mm_token_type_ids: torch.Tensor | None = None,
    full_positions: Callable[[], torch.Tensor | None] | None = None,
    counts: dict[str, PromptCounts] | None = None,
) -> PrunedInputs:
    """Encode and prune the images and videos, and shorten the prompt to the visual tokens that are kept.

    Args:
        model: the base model, with `get_image_features` (and `get_video_features`) and a config with pruning settings.
        image_kwargs, video_kwargs: further arguments of `get_image_features` and `get_video_features`.
        full_positions: computes upstream's positions of the full prompt, where they are needed and not given; default:
            one after the other.
        counts: of [`count_prompt`] by modality, from a caller that asked the device before it encoded.
        The rest as in the model's `forward`.

    Returns:
        [`PrunedInputs`]; the inputs as they came, pixels included, where pruning is off. Where tokens leave inside the
        language model, the prompt as it came, and the encoded images.
    """
    pixels = {"image": pixel_values, "video": pixel_values_videos}
    pixels = {modality: values for modality, values in pixels.items() if values is not None}
    encoder_kwargs = {"image": image_kwargs, "video": video_kwargs or {}}
    text_inputs = {"labels": labels, "mm_token_type_ids": mm_token_type_ids}
    inputs: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
        "mm_encoder_outputs": mm_encoder_outputs,
        "pixel_values": pixel_values,
        **{PIXELS[modality]: values for modality, values in pixels.items()},
        **{name: value for name, value in text_inputs.items() if value is not None},
        # Arguments of upstream's own encoding, which it gets back where it is to encode.
        **{
            name: value
            for kwargs in encoder_kwargs.values()
            for name, value in kwargs.items()
            if not name.startswith("guidance_")
        },
    }
    encoded = dict(mm_encoder_outputs or {})
    if pixels and (encoded or not model.config.pruning_config.is_on):  # a contradiction that upstream reports, or off
        return PrunedInputs(inputs)
    # What shapes depend on is asked of the device now: later, it would have to finish the vision tower first.
    modalities = list(pixels) or [name for name, output in encoded.items() if isinstance(output, PrunedImageFeatures)]
    if modalities and attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"Pruning needs an `attention_mask` of shape (batch, length), got {tuple(attention_mask.shape)}: it gets "
            "shorter with the prompt. Pass that of the processor, or switch pruning off "
            "(`model.config.pruning_budget = None`)."
        )
    masks = {name: placeholder_mask(model, name, input_ids, inputs_embeds) for name in modalities}
    if counts is None:
        counts = {name: count_prompt(mask, attention_mask) for name, mask in masks.items()}
    for modality, values in pixels.items():
        encode = getattr(model, f"get_{modality}_features")
        encoded[modality] = encode(values, return_dict=True, **encoder_kwargs[modality])
    pruned = {name: output for name, output in encoded.items() if isinstance(output, PrunedImageFeatures)}
    if pixels or pruned:
        # Plain outputs: `generate` expands and slices them, and only knows upstream's fields.
        plain = {n: BaseModelOutputWithPooling(pooler_output=output.pooler_output) for n, output in pruned.items()}
        inputs.update({PIXELS[modality]: None for modality in pixels}, mm_encoder_outputs={**encoded, **plain})

    plan = _plan(pruned, masks, counts, attention_mask)
    if plan is not None:
        if position_ids is None and full_positions is not None and model.config.resolved_position_ids == "original":
            position_ids = full_positions()
        mask = plan.attention_mask(attention_mask)
        if mask is None and model.config.resolved_position_ids == "original":
            # Without a mask, upstream takes gaps in the positions for borders between packed sequences.
            mask = plan.is_real.long()
        inputs.update(
            input_ids=None if input_ids is None else plan.apply(input_ids, _pad_token_id(model)),
            inputs_embeds=None if inputs_embeds is None else plan.apply_to_embeddings(inputs_embeds),
            attention_mask=mask,
            position_ids=_positions(model, position_ids, plan, attention_mask, cache),
        )
        if labels is not None:
            inputs["labels"] = plan.apply(labels, -100)
        if mm_token_type_ids is not None:
            inputs["mm_token_type_ids"] = plan.apply(mm_token_type_ids, 0)
    is_visual = None if plan is None or "image" not in masks else plan.apply(masks["image"], False)
    return PrunedInputs(inputs, pruned.get("image"), plan, pruned.get("video"), position_ids, is_visual, counts)


def _plan(
    pruned: dict[str, PrunedImageFeatures],
    masks: dict[str, torch.Tensor],
    counts: dict[str, PromptCounts],
    attention_mask: torch.Tensor | None,
) -> CompactionPlan | None:
    """One plan for all modalities: each is planned on the prompt that the one before it left."""
    plan = None
    for modality, features in pruned.items():
        mask, attended, counted = masks[modality], attention_mask, counts[modality]
        if plan is not None:
            mask, attended = plan.apply(mask, False), plan.attention_mask(attention_mask)
            counted = plan.counts(counted)._replace(placeholders=counted.placeholders)
        step = plan_compaction(
            mask, features.retained_indices, features.num_visual_tokens, attended, modality, counted
        )
        if step is not None:
            plan = step if plan is None else plan.then(step)
    return plan


def placeholder_mask(
    model: PreTrainedModel, modality: str, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
) -> torch.Tensor:
    """Placeholders of a modality in the prompt, bool (B, L)."""
    token_id = getattr(model.config, f"{modality}_token_id")
    if input_ids is not None:
        return input_ids == token_id
    if inputs_embeds is None:
        raise ValueError("You must specify exactly one of `input_ids` or `inputs_embeds`.")
    # As upstream: a placeholder is recognised by its embedding.
    token = torch.full((), token_id, dtype=torch.long, device=inputs_embeds.device)
    return (inputs_embeds == model.get_input_embeddings()(token)).all(-1)


def _pad_token_id(model: PreTrainedModel) -> int:
    """Any id will do, since padding is masked; the configured one keeps `input_ids` readable."""
    pad_token_id = model.config.get_text_config().pad_token_id
    return 0 if pad_token_id is None else pad_token_id


def _positions(
    model: PreTrainedModel,
    position_ids: torch.Tensor | None,
    plan: CompactionPlan,
    attention_mask: torch.Tensor | None,
    cache: Any,
) -> torch.Tensor | None:
    """Position ids of the shortened prompt; `None` leaves them to upstream."""
    if model.config.resolved_position_ids == "original":
        if position_ids is None:
            past = 0 if cache is None else cache.get_seq_length()
            length = plan.full_length
            position_ids = torch.arange(past, past + length, device=plan.index.device).expand(len(plan.index), -1)
        return plan.apply(position_ids, 0)
    if position_ids is None:
        return None
    # Renumbered without gaps from where the prompt began.
    first = position_ids.amin(dim=-1, keepdim=True)
    return first + (plan.is_real.long().cumsum(-1) - 1).clamp(min=0)
