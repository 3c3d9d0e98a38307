"""The inputs of a language model after pruning: features of the kept visual tokens and the prompt that fits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.models.prompt_compaction import CompactionPlan, plan_compaction
from transformers_litelvlm.pruning.base import Selection, VisualEvidence
from transformers_litelvlm.pruning.selection import gather_tokens


# (M, K) where every image keeps as many tokens, else one tensor (K_i,) for each of the M images.
RetainedIndices = torch.Tensor | Sequence[torch.Tensor]


@dataclass
class PrunedImageFeatures(BaseModelOutputWithPooling):
    """Output of `get_image_features` where pruning is on, for M images of N visual tokens each.

    Attributes:
        last_hidden_state: (M, 1+N, C) features of the vision tower, before selection; `None` where tokens were merged
            inside the tower.
        pooler_output: list of M tensors (K, D), projected kept tokens.
        retained_indices: (M, K) long, 0-based raster indices, in the order of `pooler_output`; a list of M tensors
            (K_i,) where the image decides how many tokens stay.
        similarity: (M, T, N) and context_scores: (M, N), float32, where the method computed them.
        merge_weights: (M, K, N) float32, or a list of (K_i, N): how much of each visual token is in each kept one;
            `None` where nothing was merged.
        num_visual_tokens: N of every image.
    """

    retained_indices: RetainedIndices | None = None
    similarity: torch.Tensor | None = None
    context_scores: torch.Tensor | None = None
    merge_weights: torch.Tensor | list[torch.Tensor] | None = None
    num_visual_tokens: list[int] | None = None


class PrunedInputs(NamedTuple):
    """What to call the upstream model with, and what was done to get there."""

    model_inputs: dict[str, Any]
    features: PrunedImageFeatures | None = None
    plan: CompactionPlan | None = None

    def what_stayed(self, stages: Sequence[Selection] = ()) -> dict[str, Any]:
        """Fields of the models' outputs about the visual tokens that stayed.

        Args:
            stages: in terms of the N tokens of an image, what each layer of the language model left that pruned.
        """
        last = stages[-1] if stages else None
        return {
            "retained_indices": getattr(self.features, "retained_indices", None) if last is None else last.indices,
            "merge_weights": getattr(self.features, "merge_weights", None) if last is None else last.weights,
            "retained_stages": tuple(stage.indices for stage in stages) or None,
        }


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
    past_key_values: Any = None,
    mm_encoder_outputs: dict[str, Any] | None = None,
    image_kwargs: dict[str, Any],
) -> PrunedInputs:
    """Encode and prune the images, and shorten the prompt to the visual tokens that are kept.

    Args:
        model: the base model, with `get_image_features` and `config.pruning_config`.
        image_kwargs: further arguments of `get_image_features`.
        The rest as in the model's `forward`.

    Returns:
        [`PrunedInputs`]; the inputs as they came, `pixel_values` included, where there is nothing to prune. Where
        tokens leave inside the language model, the prompt as it came, and the encoded images.
    """
    features = (mm_encoder_outputs or {}).get("image")
    unchanged = {
        "input_ids": input_ids,
        "pixel_values": pixel_values,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
        "mm_encoder_outputs": mm_encoder_outputs,
        # Arguments of upstream's own encoding, which it gets back where it is to encode.
        **{name: value for name, value in image_kwargs.items() if not name.startswith("guidance_")},
        **({} if labels is None else {"labels": labels}),
    }
    if pixel_values is not None:
        budget = model.config.pruning_config.resolve(model.num_visual_tokens(pixel_values))
        if budget is None or features is not None:  # off, or a contradiction that upstream reports
            return PrunedInputs(unchanged)
        features = model.get_image_features(pixel_values, return_dict=True, **image_kwargs)
        unchanged.update(pixel_values=None, mm_encoder_outputs=_encoded(mm_encoder_outputs, features))
    if not isinstance(features, PrunedImageFeatures):
        return PrunedInputs(unchanged)

    plan = plan_compaction(
        _placeholder_mask(model, input_ids, inputs_embeds),
        features.retained_indices,
        features.num_visual_tokens,
        attention_mask,
    )
    inputs = {**unchanged, "mm_encoder_outputs": _encoded(mm_encoder_outputs, features)}
    if plan is not None:
        positions = _positions(model, position_ids, plan, attention_mask, past_key_values)
        short_mask = plan.attention_mask(attention_mask)
        if short_mask is None and positions is not None:
            # Without a mask upstream takes gaps in the positions for several sequences packed into a row.
            short_mask = plan.is_real.long()
        inputs.update(
            input_ids=None if input_ids is None else plan.apply(input_ids, _pad_token_id(model)),
            inputs_embeds=None if inputs_embeds is None else plan.apply_to_embeddings(inputs_embeds),
            attention_mask=short_mask,
            position_ids=positions,
        )
        if labels is not None:
            inputs["labels"] = plan.apply(labels, -100)
    return PrunedInputs(inputs, features, plan)


def _encoded(mm_encoder_outputs: dict[str, Any] | None, features: BaseModelOutputWithPooling) -> dict[str, Any]:
    """With a plain output for the images: `generate` expands and slices it, and only knows upstream's fields."""
    return {**(mm_encoder_outputs or {}), "image": BaseModelOutputWithPooling(pooler_output=features.pooler_output)}


def _placeholder_mask(
    model: PreTrainedModel, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None
) -> torch.Tensor:
    """Image placeholders of the prompt, bool (B, L)."""
    image_token_id = model.config.image_token_id
    if input_ids is not None:
        return input_ids == image_token_id
    if inputs_embeds is None:
        raise ValueError("You must specify exactly one of `input_ids` or `inputs_embeds`.")
    # As upstream: a placeholder is recognised by its embedding.
    token = torch.full((), image_token_id, dtype=torch.long, device=inputs_embeds.device)
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
    past_key_values: Any,
) -> torch.Tensor | None:
    """Position ids of the shortened prompt; `None` leaves them to upstream."""
    if model.config.pruning_config.resolved_position_ids == "original":
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            length = plan.full_length
            position_ids = torch.arange(past, past + length, device=plan.index.device).expand(len(plan.index), -1)
        return plan.apply(position_ids, 0)
    if position_ids is None:
        return None
    # Renumbered without gaps from where the prompt began.
    first = position_ids.amin(dim=-1, keepdim=True)
    return first + (plan.is_real.long().cumsum(-1) - 1).clamp(min=0)
