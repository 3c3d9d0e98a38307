"""From hidden states at [SEG] to masks at the original size, with a stock [`~transformers.SamModel`]."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from transformers import SamModel
from transformers.utils import ModelOutput

from transformers_litelvlm.models.outputs import RetainedIndices


@dataclass
class ReferringSegmentationOutput(ModelOutput):
    """Masks for every sentence of every image.

    Lists have one entry per image; T_i is its number of sentences, (H_i, W_i) its original size. Tensors have one row
    for each of the B dialogues, usually one per image, and are padded to T, the largest number of sentences.

    Of videos, with F_i frames, `masks` and `mask_logits` are (T_i, F_i, H_i, W_i), `scores` and `object_scores`
    (T_i, F_i), `iou_scores` those of the first frame, and `low_res_masks` is a list of (T_i, F_i, h, w).

    Attributes:
        masks: bool (T_i, H_i, W_i), logits > 0.
        mask_logits: float32 (T_i, H_i, W_i).
        scores: float32 (T_i,), mean probability of the pixels inside the mask; 0 for an empty mask.
        iou_scores: float32 (T_i,), IoU that SAM's own head predicts. LISA and GLaMM do not train that head.
        object_scores: float32 (T_i,), with SAM 2 only: logit that the object is in the picture at all.
        low_res_masks: (B, T, h, w) logits as the decoder gives them.
        seg_embeddings: (B, T, C) projected [SEG] states, the decoder's prompts; (B, T, 2, C) with SAM 2.
        retained_indices: (B, K) visual tokens that were kept; `None` where pruning was off.
        similarity: (B, T, N) and context_scores: (B, N), where the method computed them.
        merge_weights: (B, K, N) how much of each visual token is in each kept one; `None` where nothing was merged.
        sequences: (B, L) generated ids, on the generate route only.
    """

    masks: list[torch.Tensor] | None = None
    mask_logits: list[torch.Tensor] | None = None
    scores: list[torch.Tensor] | None = None
    iou_scores: list[torch.Tensor] | None = None
    object_scores: list[torch.Tensor] | None = None
    low_res_masks: torch.Tensor | list[torch.Tensor] | None = None
    seg_embeddings: torch.Tensor | None = None
    retained_indices: RetainedIndices | None = None
    similarity: torch.Tensor | None = None
    context_scores: torch.Tensor | None = None
    merge_weights: torch.Tensor | list[torch.Tensor] | None = None
    sequences: torch.Tensor | None = None


def require_mask_parts(config: Any, class_name: str, without_masks: str) -> None:
    """Raises ValueError if a config has no mask decoder, but `class_name` needs one; `without_masks` is its parent."""
    if config.mask_config is None or config.seg_token_id is None:
        raise ValueError(
            f"{class_name} needs `mask_config` and `seg_token_id` in its config, got "
            f"mask_config={config.mask_config!r} and seg_token_id={config.seg_token_id!r}. Checkpoints without a "
            f"mask decoder load as {without_masks}."
        )


def count_seg(input_ids: torch.Tensor, seg_token_id: int) -> list[int]:
    """How many masks each row of `input_ids` (B, L) asks for, by a [SEG] behind any other token.

    Raises:
        ValueError: a row asks for none.
    """
    counts = (input_ids[:, 1:] == seg_token_id).sum(dim=1).tolist()
    if not all(counts):
        raise ValueError(
            "Every row of `input_ids` needs a [SEG] that stands for its mask. Use "
            "`processor.segmentation_inputs`, or `generate_masks` to let the model write its answer."
        )
    return counts


def states_before_seg(
    hidden_states: torch.Tensor, input_ids: torch.Tensor, seg_token_id: int, counts: list[int] | None = None
) -> tuple[torch.Tensor, list[int]]:
    """Hidden states (B, T, D) at the positions that predict [SEG], one before it, and how many each row has.

    Args:
        hidden_states: (B, L, D) after the final norm.
        input_ids: (B, L) with `seg_token_id` where masks are asked for.
        counts: of [`count_seg`], where it was asked before; then nothing here asks the device.
    """
    is_seg = input_ids[:, 1:] == seg_token_id
    counts = is_seg.sum(dim=1).tolist() if counts is None else counts
    positions = (~is_seg).byte().argsort(dim=1, stable=True)[:, : max(counts)]
    return hidden_states.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1])), counts


def states_of_new_tokens(generated: Any, num_new: int) -> torch.Tensor:
    """Last of the returned hidden states (B, T, D) that predicted the new tokens: one per decoding step of
    `generate` with `output_hidden_states`, along the chosen beam."""
    states = torch.stack([step[-1][:, -1] for step in generated.hidden_states[:num_new]], dim=1)
    beam_indices = getattr(generated, "beam_indices", None)
    if beam_indices is None:
        return states
    rows = beam_indices[:, : states.shape[1]].clamp(min=0)
    return states[rows, torch.arange(rows.shape[1], device=rows.device)]


def by_image(values: torch.Tensor, counts: list[int], about: list[int]) -> list[torch.Tensor]:
    """Values (B, T, ...) of the [SEG] of B dialogues as one tensor (T_i, ...) per image, dialogue after dialogue.

    Args:
        counts: number of [SEG] of each dialogue.
        about: image of each dialogue, ascending.
    """
    found: list[list[torch.Tensor]] = [[] for _ in range(about[-1] + 1)]
    for image, of_dialogue, count in zip(about, values, counts, strict=True):
        found[image].append(of_dialogue[:count])
    return [torch.cat(of_image) for of_image in found]


def decode_masks(
    mask_model: SamModel, image_embeddings: torch.Tensor, prompts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run SAM's decoder with one text prompt token per mask (the wiring of LISA and GLaMM).

    Args:
        image_embeddings: (B, C, h, w) of SAM's image encoder.
        prompts: (B, T, C).

    Returns:
        Low-resolution logits (B, T, 4h, 4w) and predicted IoU (B, T).
    """
    batch_size, channels, height, width = image_embeddings.shape
    if prompts.shape[1] == 0:  # no answer had a [SEG]
        return image_embeddings.new_zeros(batch_size, 0, 4 * height, 4 * width), prompts.new_zeros(batch_size, 0)
    prompt_encoder, decoder = mask_model.prompt_encoder, mask_model.mask_decoder
    with ExitStack() as stack:
        # These tables are read, not called, so an offloaded model would not bring them in by itself.
        for table in (prompt_encoder.no_mask_embed, decoder.iou_token, decoder.mask_tokens):
            stack.enter_context(align_module_device(table))
        no_mask = prompt_encoder.no_mask_embed.weight.reshape(1, channels, 1, 1)
        masks, iou_scores = decoder(
            image_embeddings=image_embeddings,
            image_positional_embeddings=_positional_encoding(mask_model, image_embeddings),
            sparse_prompt_embeddings=prompts.unsqueeze(2),
            dense_prompt_embeddings=no_mask.expand(batch_size, -1, height, width),
            multimask_output=False,
        )
    return masks[:, :, 0], iou_scores[:, :, 0]


def _positional_encoding(mask_model: SamModel, image_embeddings: torch.Tensor) -> torch.Tensor:
    """SAM's encoding of the centre of every cell of its grid, shaped as `image_embeddings` (B, C, h, w)."""
    batch_size, _, height, width = image_embeddings.shape
    rows = torch.arange(height, device=image_embeddings.device, dtype=image_embeddings.dtype) + 0.5
    columns = torch.arange(width, device=image_embeddings.device, dtype=image_embeddings.dtype) + 0.5
    grid = torch.stack(torch.meshgrid(columns / width, rows / height, indexing="xy"), dim=-1)  # (h, w, 2)
    return mask_model.shared_image_embedding(grid).permute(2, 0, 1).expand(batch_size, -1, -1, -1)


def resize_masks(
    low_res_masks: torch.Tensor, input_size: int, resized_size: tuple[int, int], original_size: tuple[int, int]
) -> torch.Tensor:
    """Undo SAM's preprocessing: (T, h, w) logits -> float32 (T, H, W) at the original size.

    Args:
        input_size: side of the padded square that SAM saw.
        resized_size: (height, width) of the picture inside that square.
        original_size: (height, width) of the picture as it was given.
    """
    if len(low_res_masks) == 0:
        return low_res_masks.new_zeros(0, *original_size, dtype=torch.float32)
    masks = low_res_masks.float().unsqueeze(0)
    masks = torch.nn.functional.interpolate(masks, (input_size, input_size), mode="bilinear", align_corners=False)
    masks = masks[..., : resized_size[0], : resized_size[1]]
    return torch.nn.functional.interpolate(masks, original_size, mode="bilinear", align_corners=False)[0]


def foreground_confidence(mask_logits: torch.Tensor) -> torch.Tensor:
    """Mean probability of the pixels of each mask of (T, H, W) that are inside it, (T,); 0 for an empty mask."""
    inside = mask_logits > 0
    total = (mask_logits.sigmoid() * inside).flatten(1).sum(1)
    return total / inside.flatten(1).sum(1).clamp(min=1)
