"""What the language model itself makes of each visual token: attention, gradient times input, leave-one-out.

All of it on the unpruned prompt, for B dialogues about one image of N visual tokens, with one [SEG] each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.decoder.evidence import LayerAttention
from transformers_litelvlm.models.decoder.loop import whole_prompt
from transformers_litelvlm.models.masks.segmentation import PER_DIALOGUE
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.processing.tokens import padded
from transformers_litelvlm.models.prompt.pruned_prompt import placeholder_mask
from transformers_litelvlm.models.settings import PruningSettings


# Dialogues with one visual token less that are run at once.
LEFT_OUT_AT_ONCE = 16


def whole_features(tokens: torch.Tensor) -> BaseModelOutputWithPooling:
    """Projected visual tokens (B, N, D) as features of B dialogues."""
    return BaseModelOutputWithPooling(pooler_output=list(tokens))


def kept_features(tokens: torch.Tensor, indices: torch.Tensor) -> PrunedImageFeatures:
    """Those of the projected visual tokens (N, D) at `indices` (B, K), as features of B dialogues."""
    return PrunedImageFeatures(
        pooler_output=list(tokens[indices]), retained_indices=indices, num_visual_tokens=[len(tokens)] * len(indices)
    )


def settings_of(model: Any, base: PruningConfig, budget: int | None) -> PruningSettings:
    """Settings under which `budget` tokens are kept in the checkpoint's layout, whichever they are; `None` for all."""
    return model.model.settings(base.replace(budget=budget, retention_ratio=None, then=None))


def mask_logits(
    model: Any, part: dict[str, Any], features: Any, settings: PruningSettings, for_masks: Any
) -> torch.Tensor:
    """(B, H, W) logits of the masks of B dialogues, at the size of the image."""
    return model.decode(model.read(part, features, settings), part, for_masks).mask_logits[0]


def attention_to_tokens(
    model: Any, part: dict[str, Any], tokens: torch.Tensor, settings: PruningSettings, asked: list[list[list[int]]]
) -> list[torch.Tensor]:
    """Attention that some columns of each prompt pay to the visual tokens, mean over the columns and the heads.

    Recomputed from queries and keys, so that it does not depend on the attention kernel.

    Args:
        part: inputs of B dialogues.
        tokens: (N, D) projected.
        asked: sets of columns, each with those of every dialogue.

    Returns:
        (layers, B, N) float32 for each set.
    """
    base, batch = model.model, len(part["input_ids"])
    prompt = model.shorten(part, whole_features(tokens.expand(batch, -1, -1)), settings)
    output = base(pruned=prompt, use_cache=False, output_hidden_states=True)
    is_visual = placeholder_mask(base, model.mask_modality, part)
    embeds = output.hidden_states[0]
    positions = base.decoder_positions(prompt, embeds, None)
    if positions is not None and positions.ndim == 3:
        positions = positions[-3:]  # of M-RoPE's rows the first is for masks
    whole = whole_prompt(embeds, is_visual, [len(tokens)] * batch, part.get("attention_mask"), positions)
    rotary = base.language_model.rotary_emb(embeds, position_ids=whole.positions)
    # A row for each dialogue, its sets one after the other; the keys of a layer are computed once for all.
    of_rows = [[column for columns in asked for column in columns[row]] for row in range(batch)]
    places, _ = padded(of_rows, 0)
    places = places.to(embeds.device)
    layers = []
    for layer, states in enumerate(output.hidden_states[: len(base.language_model.layers)]):
        attention = LayerAttention(base.language_model, layer, replace(whole, states=states), rotary, 0)
        rows = attention.probabilities(places).mean(dim=1)  # (B, R, L)
        layers.append(rows.transpose(1, 2)[is_visual].view(batch, len(tokens), -1))
    attended = torch.stack(layers)  # (layers, B, N, R)
    found, starts = [], [0] * batch
    for columns in asked:
        stops = [start + len(own) for start, own in zip(starts, columns, strict=True)]
        means = [attended[:, row, :, start:stop].mean(-1) for row, (start, stop) in enumerate(zip(starts, stops))]
        found.append(torch.stack(means, dim=1))
        starts = stops
    return found


def seg_columns(model: Any, input_ids: torch.Tensor) -> list[list[int]]:
    """The column of each row (B, L) whose state makes the mask of its first [SEG]."""
    is_seg = input_ids[:, 0 if model.reads_at_seg else 1 :] == model.config.seg_token_id
    return [[int(column)] for column in is_seg.long().argmax(dim=1)]


def words_columns(tokenizer: Any, input_ids: torch.Tensor, expressions: list[str], ends: list[int]) -> list[list[int]]:
    """The columns of each row (B, L) that hold its expression: the fewest whose text has it. Raises ValueError if
    there are none.

    At its last occurrence before the column in `ends`: the system prompt may have the same words.
    """
    columns = []
    for row, expression, last in zip(input_ids.tolist(), expressions, ends, strict=True):

        def has(start: int, end: int, ids: list[int] = row, wanted: str = _letters(expression)) -> bool:
            return wanted in _letters(tokenizer.decode(ids[start:end]))

        start = next((start for start in range(last, -1, -1) if has(start, last)), None)
        if start is None:
            raise ValueError(f"The prompt does not have the expression {expression!r:.80}.")
        columns.append(list(range(start, next(end for end in range(start, last + 1) if has(start, end)))))
    return columns


def _letters(text: str) -> str:
    """Without spaces and capitals: tokenizers differ in what they make of these."""
    return "".join(text.lower().split())


def gradient_times_input(
    model: Any,
    part: dict[str, Any],
    tokens: torch.Tensor,
    settings: PruningSettings,
    for_masks: Any,
    masks: torch.Tensor,
) -> torch.Tensor:
    """How much each visual token adds to the mask, to first order: gradient times input, absolute value.

    The gradient is that of the mean of a mask's logits over the pixels of the target, with respect to the
    projected tokens.

    Args:
        masks: (B, H, W) bool, the targets, none empty.

    Returns:
        (B, N) float32.
    """
    with torch.enable_grad():
        leaves = tokens.detach().expand(len(masks), -1, -1).clone().requires_grad_()
        logits = mask_logits(model, part, whole_features(leaves), settings, for_masks).float()
        value = sum(row[mask].mean() for row, mask in zip(logits, masks, strict=True))
        [gradient] = torch.autograd.grad(value, leaves)
    return (gradient * leaves.detach()).float().sum(dim=-1).abs()


def leave_one_out(
    model: Any, part: dict[str, Any], tokens: torch.Tensor, settings: PruningSettings, for_masks: Any, row: int
) -> Iterator[torch.Tensor]:
    """Mask logits (n, H, W) of a dialogue without one visual token, for all N tokens in order, in portions.

    Args:
        settings: of a budget of N - 1 tokens, see [`settings_of`].
        row: of the dialogue.
    """
    num_tokens = len(tokens)
    others = torch.arange(num_tokens - 1, device=tokens.device).expand(num_tokens, -1)
    others = others + (others >= torch.arange(num_tokens, device=tokens.device)[:, None])
    for indices in others.split(LEFT_OUT_AT_ONCE):
        repeated = repeat_dialogue(part, row, len(indices))
        yield mask_logits(model, repeated, kept_features(tokens, indices), settings, for_masks)


def repeat_dialogue(part: dict[str, Any], row: int, times: int) -> dict[str, Any]:
    """Inputs of one of the dialogues about an image, repeated; what belongs to the image stays."""
    of_dialogues = {name for names in PER_DIALOGUE for name in names}
    repeated = {name: value[[row] * times] if name in of_dialogues else value for name, value in part.items()}
    return {**repeated, "dialogue_images": torch.zeros(times, dtype=torch.long)}
