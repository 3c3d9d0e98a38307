"""Stage 1: a small SAM that segments whatever object a point lies on, without knowing what it is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from refshapes_training.common import mask_iou, mask_loss, normalise
from refshapes_training.scenes import SceneCache
from transformers_litelvlm.data.refshapes_rendering import SCENE_SIZE


PATCH_SIZE = 9  # 16 x 16 patches of a 144 pixel scene
POINTS_PER_SCENE = 4


def build_sam() -> SamModel:
    """A SAM of about 1.2 million parameters for 144 pixel pictures, with low-resolution masks of 64 x 64."""
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=96,
            output_channels=128,
            num_hidden_layers=4,
            num_attention_heads=3,
            image_size=SCENE_SIZE,
            patch_size=PATCH_SIZE,
            mlp_dim=256,
            window_size=0,
            global_attn_indexes=[0, 1, 2, 3],
            use_rel_pos=False,
            num_pos_feats=64,
            initializer_range=0.02,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=128, image_size=SCENE_SIZE, patch_size=PATCH_SIZE),
        # The decoder of the original SAM uses PyTorch's epsilon; transformers' default differs.
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=128, mlp_dim=256, num_attention_heads=4, iou_head_hidden_dim=64, layer_norm_eps=1e-5
        ),
    )
    sam = SamModel(config)
    # transformers draws the Fourier frequencies at a scale of hidden_size / 2, which leaves no smoothness to learn
    # from; SAM's own scale is 1.
    with torch.no_grad():
        sam.shared_image_embedding.positional_embedding.copy_(torch.randn(2, 64))
    sam.tie_weights()
    sam.set_attn_implementation(
        "eager"
    )  # at this size faster on a CPU than the fused kernel, whose backward pass is slow
    return sam


def point_prompts(sam: SamModel, points: torch.Tensor) -> torch.Tensor:
    """The embeddings of foreground points, one token each and no padding token.

    Args:
        sam: the model.
        points: `(..., 2)` columns and rows in pixels.

    Returns:
        `(..., 128)` prompt tokens.
    """
    scaled = (points.float() + 0.5) / sam.prompt_encoder.input_image_size
    # Prompt tokens are what the language model learns to produce: they stay as they were drawn, and so no stage has to
    # wait for another.
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        return sam.shared_image_embedding(scaled) + sam.prompt_encoder.point_embed[1].weight[0]


def decode(sam: SamModel, embeddings: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Masks for prompt tokens.

    Args:
        sam: the model.
        embeddings: `(B, 128, 16, 16)` image embeddings.
        prompts: `(B, P, 128)`, one token per mask.

    Returns:
        `(B, P, 64, 64)` mask logits.
    """
    dense = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(embeddings)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        positions = sam.get_image_wide_positional_embeddings().expand(len(embeddings), -1, -1, -1)
    return sam.mask_decoder(
        image_embeddings=embeddings,
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=prompts[:, :, None],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )[0][:, :, 0]


class SamObjective(nn.Module):
    """The loss of the masks that point prompts give."""

    def __init__(self, sam: SamModel) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss of a batch from `sam_batch`."""
        embeddings = self.sam.vision_encoder(batch["pixel_values"]).last_hidden_state
        logits = decode(self.sam, embeddings, point_prompts(self.sam, batch["points"]))
        targets = F.interpolate(batch["masks"].float(), logits.shape[-2:], mode="area")
        return {"loss": mask_loss(logits.flatten(0, 1), targets.flatten(0, 1))}


def sam_batch(cache: SceneCache, indices: np.ndarray, rng: np.random.Generator, device: torch.device) -> dict:
    """Scenes with points: half of them object centres (also the empty centre of a ring: nothing else fits in there),
    half random visible pixels.

    Args:
        cache: the scenes.
        indices: which of them.
        rng: source of randomness.
        device: where the tensors go.

    Returns:
        `pixel_values`, `points` `(B, P, 2)` and boolean `masks` `(B, P, 144, 144)`.
    """
    points, masks = [], []
    for index in indices:
        objects, id_map = cache.records[index]["objects"], cache.id_maps[index]
        for pick in rng.integers(0, len(objects), size=POINTS_PER_SCENE):
            mask = id_map == objects[pick]["object_id"] + 1
            point = objects[pick]["x"], objects[pick]["y"]
            if rng.random() < 0.5:
                rows, columns = np.nonzero(mask)
                place = rng.integers(len(rows))
                point = columns[place], rows[place]
            points.append(point)
            masks.append(mask)
    shape = (len(indices), POINTS_PER_SCENE)
    return {
        "pixel_values": normalise(cache.images[indices], device),
        "points": torch.tensor(np.asarray(points, dtype=np.float32), device=device).view(*shape, 2),
        "masks": torch.from_numpy(np.stack(masks)).to(device).view(*shape, SCENE_SIZE, SCENE_SIZE),
    }


def evaluate_sam(sam: SamModel, cache: SceneCache, device: torch.device, scenes: int = 200) -> dict[str, float]:
    """Mean intersection over union at 144 pixels of the first `scenes` scenes, points as in training."""
    rng, ious = np.random.default_rng(0), []
    for start in range(0, min(scenes, len(cache)), 40):
        batch = sam_batch(cache, np.arange(start, min(start + 40, len(cache))), rng, device)
        embeddings = sam.vision_encoder(batch["pixel_values"]).last_hidden_state
        logits = decode(sam, embeddings, point_prompts(sam, batch["points"]))
        ious.append(mask_iou(logits.flatten(0, 1), batch["masks"].flatten(0, 1)))
    return {"iou": round(float(torch.cat(ious).mean()), 4)}
