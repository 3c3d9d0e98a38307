"""The pruned prompt: encoded once, shortened once, and handed from the head to the base model as one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from transformers_litelvlm.models.decoder.cache import ShortenedPrompt, check_rows, note_shortened, positions_left_out
from transformers_litelvlm.models.devices import check_ids
from transformers_litelvlm.models.outputs import MediaFeatures, PrunedImageFeatures, token_lists
from transformers_litelvlm.models.prompt.compaction import CompactionPlan, PromptCounts, count_prompt, plan_compaction
from transformers_litelvlm.models.settings import PruningSettings


Positions = Callable[[], torch.Tensor | None]


@dataclass
class PrunedPrompt:
    """What upstream is called with, and what was done to get there.

    Attributes:
        inputs: arguments of upstream's `forward`; without pixels if they were encoded.
        settings: of this call.
        encoded: features of each modality; [`PrunedImageFeatures`] if tokens were cut before the language model.
        plan: what was taken out of the prompt; `None` for a prompt as it came.
        is_visual: (B, L') bool of each modality, where its tokens are, if there is a plan.
        counts: of the prompt as it came, by modality, if the device was asked.
        wanted: columns of the full prompt whose states the head needs; `None` for all.
    """

    inputs: dict[str, Any]
    settings: PruningSettings
    encoded: dict[str, Any] = field(default_factory=dict)
    plan: CompactionPlan | None = None
    is_visual: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: dict[str, PromptCounts] = field(default_factory=dict)
    wanted: torch.Tensor | None = None

    def kept(self, modality: str) -> PrunedImageFeatures | None:
        """What was kept of a modality; `None` if nothing was cut."""
        features = self.encoded.get(modality)
        return features if isinstance(features, PrunedImageFeatures) else None

    def note_in(self, cache: Cache, past: int, counts_positions: bool, is_numbered: bool) -> None:
        """Write down in a cache of `past` tokens and this prompt that it was shortened.

        Args:
            counts_positions: of the base model.
            is_numbered: whether positions count the tokens of a row, without its padding.
        """
        keeps, plan = self.settings.keeps_positions, self.plan
        left_out = plan.num_left_out if counts_positions and keeps else 0
        if counts_positions and keeps:  # `left_out` counts padding that is gone, too
            needs_positions = is_numbered and any(any(counts.masked) for counts in self.counts.values())
        else:
            needs_positions = plan.is_ragged and (is_numbered or not counts_positions)
        end = past + plan.index.shape[1]
        note_shortened(cache, past, ShortenedPrompt(end, left_out, plan.is_ragged, needs_positions, plan.index))

    def plain_inputs(self) -> dict[str, Any]:
        """The inputs for upstream's `generate`, which expands and slices features and only knows upstream's fields."""
        return self._with_features(list)

    def inputs_with_one_tensor(self) -> dict[str, Any]:
        """The inputs for a `forward` of upstream's that takes the visual tokens as one tensor, (1, all of them, D)."""
        return self._with_features(lambda tokens: torch.cat(list(tokens)).unsqueeze(0))

    def _with_features(self, joined: Callable[[Any], Any]) -> dict[str, Any]:
        plain = {}
        for name, output in self.encoded.items():
            if output is not None:
                tokens, *layers = token_lists(output)
                plain[name] = MediaFeatures.of_lists([joined(tokens), *layers])
        return {**self.inputs, "mm_encoder_outputs": plain or self.inputs.get("mm_encoder_outputs")}


def prune_prompt(
    model: PreTrainedModel,
    arguments: dict[str, Any],
    settings: PruningSettings,
    positions: Positions | None = None,
    counts: dict[str, PromptCounts] | None = None,
    after: Cache | None = None,
) -> PrunedPrompt:
    """Encode and prune images and videos, and shorten the prompt to the visual tokens that are kept.

    Args:
        model: a base model with the contract of a family.
        arguments: of its `forward`, ours among them.
        settings: of this call.
        positions: upstream's positions of the full prompt, computed if they are needed and not given; default: those
            of the family.
        counts: of [`count_prompt`] by modality, from a caller that asked the device before it encoded.
        after: a cache whose tokens come before the prompt. A mask covers them, too.

    Returns:
        [`PrunedPrompt`]; with the inputs as they came, pixels included, if pruning is off. If tokens leave inside the
        language model, the prompt as it came, and encoded media.
    """
    media = {n: value for n, value in arguments.items() if n in model.prompt_arguments or n.startswith("guidance_")}
    upstreams = set(model.prompt_arguments).difference(model.own_media_arguments)
    inputs = {name: value for name, value in media.items() if name in upstreams}
    given = (inputs.get("mm_encoder_outputs") or {}).items()
    encoded = {name: model.features_by_medium(output, name, media) for name, output in given}
    with_pixels = [modality for modality in model.modalities if inputs.get(model.pixels_of[modality]) is not None]
    # Pixels and their features at once are a contradiction that upstream reports.
    if with_pixels and (encoded or not (settings.is_on or model.config.pruning_config.is_on)):
        return PrunedPrompt(inputs, settings)
    if with_pixels and not settings.is_on:  # for this call alone: upstream's own `forward` would ask the config
        for modality in with_pixels:
            encoded[modality] = model.media_features(modality, media, settings)
            inputs[model.pixels_of[modality]] = None
        return PrunedPrompt({**inputs, "mm_encoder_outputs": encoded}, settings, encoded)
    pruned = with_pixels or [name for name, output in encoded.items() if isinstance(output, PrunedImageFeatures)]
    if not pruned:
        return PrunedPrompt(inputs, settings, encoded, counts=counts or {})

    # A method inside the language model refuses a cache with anything in it, later.
    after = None if settings.inside_language_model is not None else after
    past = 0 if after is None else int(after.get_seq_length())
    if after is not None:
        check_rows(after, inputs)
    _check_shapes(model, inputs, with_pixels, past)
    mask = inputs.get("attention_mask")
    mask = mask if mask is None else mask[:, past:]
    # What shapes depend on is asked of the device now: later, the vision tower would have to finish first.
    names = list(dict.fromkeys([*pruned, *(name for name, output in encoded.items() if output is not None)]))
    masks = {name: placeholder_mask(model, name, inputs) for name in names}
    is_media = torch.stack(list(masks.values())).any(dim=0)
    if counts is None:
        counts = {name: count_prompt(each, mask, is_media) for name, each in masks.items()}
    for modality in with_pixels:
        encoded[modality] = model.media_features(modality, media, settings)
        inputs[model.pixels_of[modality]] = None
    inputs["mm_encoder_outputs"] = encoded
    prompt = PrunedPrompt(inputs, settings, encoded, counts=counts)
    prompt.plan = _plan(prompt, masks, is_media, mask)
    if prompt.plan is None:
        model.check_short_prompt(prompt)
        return prompt
    prompt.is_visual = {name: prompt.plan.apply(each, False) for name, each in masks.items()}
    _shorten(model, prompt, positions or (lambda: model.full_positions(arguments)), after)
    return prompt


def plan_of_kept(
    model: PreTrainedModel, arguments: dict[str, Any], encoded: dict[str, Any], settings: PruningSettings
) -> CompactionPlan | None:
    """What is left of a prompt in the end, of which tokens also left inside the language model.

    Args:
        arguments: of `forward`.
        encoded: what it returned of each modality.
    """
    mask = arguments.get("attention_mask")
    masks = {modality: placeholder_mask(model, modality, arguments) for modality in encoded}
    if not masks:
        return None
    is_media = torch.stack(list(masks.values())).any(dim=0)
    counts = {modality: count_prompt(each, mask, is_media) for modality, each in masks.items()}
    return _plan(PrunedPrompt({}, settings, encoded, counts=counts), masks, is_media, mask)


def _check_shapes(model: PreTrainedModel, inputs: dict[str, Any], with_pixels: list[str], past: int) -> None:
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    ids = inputs.get("inputs_embeds") if ids is None else ids
    needed = None if ids is None else (len(ids), past + ids.shape[1])
    if mask is not None and needed is not None and mask.shape != needed:
        raise ValueError(
            f"Pruning needs an `attention_mask` of shape (batch, length), {needed}{' with the cache' * bool(past)}, "
            f"got {tuple(mask.shape)}: it gets shorter with the prompt. Pass that of the processor"
            f"{', after ones for the cache' * bool(past)}, or switch pruning off "
            "(`model.config.pruning_budget = None`)."
        )
    if inputs.get("input_ids") is not None:
        placeholders = [getattr(model.config, f"{modality}_token_id", None) for modality in model.modalities]
        check_ids("input_ids", ids, model.config.get_text_config().vocab_size, placeholders)
    positions = inputs.get("position_ids")
    if positions is not None and needed is not None:
        check_columns("position_ids", positions, ids.shape[1])
    if positions is not None and positions.ndim == 3:  # of M-RoPE: with four rows, the first is for the mask
        positions = positions[0] if len(positions) == 4 else None
    if with_pixels and mask is None and positions is not None and (positions.diff() < 0).any():
        raise ValueError(
            "`position_ids` start again within a row, which without `attention_mask` means several sequences packed "
            "into it, and pruning cannot keep these apart. Give each sequence a row, or switch pruning off "
            "(`model.config.pruning_budget = None`)."
        )
    for name in (model.pixels_of[modality] for modality in with_pixels):
        if len(inputs[name]) == 0:
            raise ValueError(
                f"`{name}` is empty, {tuple(inputs[name].shape)}: leave it out if there is nothing to see."
            )


def check_columns(name: str, value: torch.Tensor, length: int) -> None:
    """Raises ValueError if `value` (..., L) has not one column for each token of a prompt of this length."""
    if value.shape[-1] != length:
        raise ValueError(
            f"`{name}` has {value.shape[-1]} columns, the prompt {length}. Pruning shortens both together: pass one "
            "for each token of the prompt, or switch pruning off (`model.config.pruning_budget = None`)."
        )


def _plan(
    prompt: PrunedPrompt,
    masks: dict[str, torch.Tensor],
    is_media: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> CompactionPlan | None:
    """One plan for all modalities: each is planned on the prompt that the one before it left."""
    plan = None
    for modality, mask in masks.items():
        features, counts, attended, of_any = prompt.kept(modality), prompt.counts[modality], attention_mask, is_media
        if features is None:  # nothing of it was cut
            num_tokens = sum(map(len, prompt.encoded[modality].pooler_output))
            if sum(counts.placeholders) != num_tokens:
                raise ValueError(
                    f"{modality.capitalize()} placeholders and visual tokens do not match: the prompt has "
                    f"{counts.placeholders} per row, and there are {num_tokens} visual tokens."
                )
            continue
        if plan is not None:
            mask, of_any = plan.apply(mask, False), plan.apply(is_media, False)
            attended = plan.attention_mask(attention_mask)
            counts = plan.counts(counts)._replace(placeholders=counts.placeholders)
        sizes = features.num_visual_tokens
        step = plan_compaction(mask, features.retained_indices, sizes, attended, modality, counts, of_any)
        if step is not None:
            plan = step if plan is None else plan.then(step)
    return plan


def _shorten(model: PreTrainedModel, prompt: PrunedPrompt, positions: Positions, after: Cache | None) -> None:
    """Apply the plan to everything in the inputs that has a column for each token of the prompt."""
    inputs, plan, settings = prompt.inputs, prompt.plan, prompt.settings
    if inputs.get("mm_token_type_ids") is not None:
        check_columns("mm_token_type_ids", inputs["mm_token_type_ids"], plan.full_length)
    full_positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    past = 0 if after is None else int(after.get_seq_length())
    start = 0 if after is None else past + positions_left_out(after)
    if full_positions is None and settings.keeps_positions:
        full_positions = positions()
    # Numbers count what earlier prompts left out, and not the padding of ragged rows after what the cache holds.
    if full_positions is None and (settings.keeps_positions or start > past or (past and plan.is_ragged)):
        full_positions = start + torch.arange(plan.full_length, device=plan.index.device).expand(len(plan.index), -1)
    own = mask if mask is None else mask[:, past:]
    short_mask = plan.attention_mask(own)
    if short_mask is None and settings.keeps_positions:
        # Without a mask, upstream takes gaps in the positions for borders between packed sequences.
        short_mask = plan.is_real.long()
    if short_mask is not None and past:
        before = short_mask.new_ones(len(short_mask), past) if mask is None else mask[:, :past]
        short_mask = torch.cat((before, short_mask), dim=1)
    # Any id will do for padding, since it is masked; the configured one keeps `input_ids` readable.
    padding = {"input_ids": model.config.get_text_config().pad_token_id or 0, "mm_token_type_ids": 0}
    for name, value in padding.items():
        if inputs.get(name) is not None:
            inputs[name] = plan.apply(inputs[name], value)
    if inputs.get("inputs_embeds") is not None:
        inputs["inputs_embeds"] = plan.apply_to_embeddings(inputs["inputs_embeds"])
    inputs["attention_mask"] = short_mask
    if settings.keeps_positions:
        inputs["position_ids"] = plan.apply(full_positions, 0)
        model.continue_after(prompt, full_positions)
    elif full_positions is not None:  # renumbered without gaps from where the prompt began
        # Padding has some number that means nothing, such as 0 or 1.
        numbers = full_positions if own is None else full_positions.masked_fill(own == 0, torch.iinfo(torch.int32).max)
        first = numbers.amin(dim=-1, keepdim=True)
        inputs["position_ids"] = first + (plan.is_real.long().cumsum(-1) - 1).clamp(min=0)


def placeholder_mask(model: PreTrainedModel, modality: str, inputs: dict[str, Any]) -> torch.Tensor:
    """Placeholders of a modality in the prompt, bool (B, L)."""
    token_id = getattr(model.config, f"{modality}_token_id")
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"] == token_id
    if inputs.get("inputs_embeds") is None:
        raise ValueError("You must specify exactly one of `input_ids` or `inputs_embeds`.")
    # As upstream: a placeholder is recognised by its embedding.
    token = torch.full((), token_id, dtype=torch.long, device=inputs["inputs_embeds"].device)
    return (inputs["inputs_embeds"] == model.get_input_embeddings()(token)).all(-1)
