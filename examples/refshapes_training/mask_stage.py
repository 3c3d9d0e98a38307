"""Stages 4 and 5: masks through the real decoder, and a last contrastive polish of the parts of CLIP that the language
model never reads.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from refshapes_training.clip_stage import contrastive_loss
from refshapes_training.common import mask_iou, mask_loss
from refshapes_training.ground_stage import GroundObjective, mean_over
from refshapes_training.scenes import SceneCache
from transformers_litelvlm.models.masks.sam import decode_masks


MASKS_PER_SCENE = 3


class MaskObjective(nn.Module):
    """The loss of the masks that dialogues give, beside the location and language losses of the stage before.

    The vision tower and SAM's prompt encoder stay as they are; language model, projections and the rest of SAM train.

    Args:
        ground: the model and its location grid.
    """

    def __init__(self, ground: GroundObjective) -> None:
        super().__init__()
        self.ground = ground
        model = ground.model
        model.requires_grad_(True)
        for frozen in (model.model.vision_tower, model.model.guidance, model.mask_model):
            frozen.requires_grad_(False)
        for trained in (model.mask_model.vision_encoder, model.mask_model.mask_decoder):
            trained.requires_grad_(True)

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss of a batch from `dialogue_batch`, with the `masks` of `mask_targets`."""
        ground, model = self.ground, self.ground.model
        states, visual, _, layers = ground.states(batch)
        prompts = ground.prompts(states, batch)
        losses = ground.losses(batch, states, visual, layers, prompts)
        embeddings = model.mask_model.vision_encoder(batch["pixel_values"]).last_hidden_state
        logits, scores = decode_masks(model.mask_model, embeddings, prompts[:, :MASKS_PER_SCENE].unsqueeze(2))
        present = batch["present"][:, :MASKS_PER_SCENE].flatten()
        logits, masks = logits.flatten(0, 1), batch["masks"].flatten(0, 1)
        targets = F.interpolate(masks[:, None].float(), logits.shape[-2:], mode="area")[:, 0]
        mask = mask_loss(logits, targets, present)
        iou = mask_iou(logits.detach(), masks)
        score = mean_over((scores.flatten().float() - iou).square(), present)
        loss = losses["loss"] + mask + 0.1 * score
        return losses | {"loss": loss, "mask": mask, "score": score, "iou": mean_over(iou, present)}


def mask_targets(cache: SceneCache, indices: np.ndarray, targets: torch.Tensor) -> torch.Tensor:
    """Boolean masks `(B, MASKS_PER_SCENE, 144, 144)` of the first targets `(B, T)` of each row."""
    id_maps = torch.from_numpy(np.ascontiguousarray(cache.id_maps[indices])).to(targets.device)
    return id_maps[:, None] == targets[:, :MASKS_PER_SCENE, None, None] + 1


@torch.no_grad()
def evaluate_masks(ground: GroundObjective, batches: list[dict]) -> dict[str, float]:
    """Mean intersection over union at 144 pixels, of the first turns of every row and of the control with zeroed
    visual tokens.
    """
    found = {"val_iou": [], "val_zero_iou": []}
    for batch in batches:
        embeddings = ground.model.mask_model.vision_encoder(batch["pixel_values"]).last_hidden_state
        for name, zero in (("val_iou", False), ("val_zero_iou", True)):
            prompts = ground.prompts(ground.states(batch, zero_visual=zero)[0], batch)
            logits, _ = decode_masks(ground.model.mask_model, embeddings, prompts[:, :MASKS_PER_SCENE].unsqueeze(2))
            present = batch["present"][:, :MASKS_PER_SCENE].flatten()
            found[name].append(mask_iou(logits.flatten(0, 1)[present], batch["masks"].flatten(0, 1)[present]))
    return {name: round(float(torch.cat(values).mean()), 4) for name, values in found.items()}


class GuidanceObjective(nn.Module):
    """The contrastive loss, for the last layer of the vision tower, both projections and the text tower.

    Whatever the language model reads comes from the layers before and does not change.

    Args:
        ground: the model and the temperature.
    """

    def __init__(self, ground: GroundObjective) -> None:
        super().__init__()
        self.parts, self.logit_scale = ground.model.model, ground.logit_scale
        ground.model.requires_grad_(False)
        self.parts.guidance.requires_grad_(True)
        for trained in (self.parts.vision_tower.encoder.layers[-1], self.parts.vision_tower.post_layernorm):
            trained.requires_grad_(True)

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss of a batch from `clip_batch`."""
        guidance = self.parts.guidance
        image = guidance.visual_projection(self.parts.vision_tower(batch["pixel_values"]).pooler_output)
        text = guidance.text_model(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        return contrastive_loss(image, guidance.text_projection(text), self.logit_scale)
