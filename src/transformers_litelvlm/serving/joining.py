"""What several requests ask of a model, as one call: prompts padded to one length, features one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from transformers_litelvlm.models.masks.segmentation import PER_DIALOGUE
from transformers_litelvlm.models.outputs import MediaFeatures, PrunedImageFeatures, token_lists


# Other inputs have a row for each picture. What a selection reads is left out: it is made for each request alone.
OF_PROMPT, OF_SELECTION, _ = PER_DIALOGUE


def join_inputs(parts: Sequence[dict[str, torch.Tensor]], padding: int) -> dict[str, torch.Tensor]:
    """Inputs of several requests, each about one picture, as those of one call; padding is on the right.

    Args:
        parts: of `processor.segmentation_inputs`, without pixels.
        padding: the id that prompts are padded with.

    Returns:
        The same names without guidance, with `dialogue_images` (B,).
    """
    width = max(part["input_ids"].shape[1] for part in parts)
    names = [name for name in parts[0] if name not in (*OF_SELECTION, "dialogue_images")]
    joined = {}
    for name in names:
        rows = [part[name] for part in parts]
        if name in OF_PROMPT:
            value = padding if name == "input_ids" else 0
            rows = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=value) for row in rows]
        joined[name] = torch.cat(rows)
    about = [place for place, part in enumerate(parts) for _ in part["input_ids"]]
    return {**joined, "dialogue_images": torch.tensor(about)}


def join_features(parts: Sequence[Any]) -> Any:
    """Features of the dialogues of several requests as those of one call, all of them pruned, or none."""
    lists = [[row for rows in of_level for row in rows] for of_level in zip(*map(token_lists, parts), strict=True)]
    if not isinstance(parts[0], PrunedImageFeatures):
        return MediaFeatures.of_lists(lists)
    kept = [row for part in parts for row in part.retained_indices]
    same = len({len(row) for row in kept}) == 1
    return PrunedImageFeatures.of_lists(
        lists,
        retained_indices=torch.stack(kept) if same else kept,
        num_visual_tokens=[count for part in parts for count in part.num_visual_tokens],
    )


def join_mask_features(parts: Sequence[Any]) -> Any:
    """Features of single pictures, of [`~models.masks.decoder.MaskDecoder.encode`], as those of several."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return [torch.cat(list(level)) for level in zip(*parts, strict=True)]
