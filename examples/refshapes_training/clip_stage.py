"""Stage 2: a small CLIP, trained on nothing but the contrastive loss between scenes and sentences about them."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BatchEncoding, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from refshapes_training.common import normalise
from refshapes_training.scenes import SceneCache
from refshapes_training.vocabulary import QUESTION
from transformers_litelvlm.data.refshapes_rendering import SCENE_SIZE


POSITION_SCALE = 0.4
TEXT_LENGTH = 48  # one shape for the compiler; longer captions lose their end


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of about 1.2 million parameters with 12 x 12 patches."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SCENE_SIZE,
        patch_size=12,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    _draw_positions(clip)
    clip.set_attn_implementation(
        "eager"
    )  # at this size faster on a CPU than the fused kernel, whose backward pass is slow
    return clip


@torch.no_grad()
def _draw_positions(clip: CLIPModel) -> None:
    """Starts the position embeddings of the patches as random Fourier features of their places, as strong as what the
    patches show.

    Upstream's start is so weak beside the patch embeddings that places take very long to be learned from the
    contrastive loss alone.
    """
    embeddings = clip.vision_model.embeddings
    side = clip.config.vision_config.image_size // clip.config.vision_config.patch_size
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    columns_and_rows = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).view(-1, 2)
    phases = 2 * math.pi * columns_and_rows @ torch.randn(2, embeddings.embed_dim // 2)
    embeddings.position_embedding.weight[1:] = POSITION_SCALE * torch.cat((phases.sin(), phases.cos()), dim=-1)


def caption(record: dict, rng: np.random.Generator) -> str:
    """A text about a scene: a bare expression, a question about one, several expressions joined, or a list of the
    objects.

    Args:
        record: a record of a `SceneCache`.
        rng: source of randomness.

    Returns:
        The text.
    """
    draw, expressions = rng.random(), record["expressions"]
    order = rng.permutation(len(expressions))
    if draw < 0.15:
        return expressions[order[0]]["sentence"]
    if draw < 0.35:
        return QUESTION.format(expressions[order[0]]["sentence"])
    if draw < 0.65:
        return " and ".join(expressions[place]["sentence"] for place in order[: rng.integers(2, 5)])
    names = []
    for place in rng.permutation(len(record["objects"])):
        item = record["objects"][place]
        words = [item["size"]] * (item["size"] != "medium" and rng.random() < 0.5)
        words += [item["texture"]] * (rng.random() < 0.6) + [item["colour"]] * (rng.random() < 0.9)
        names.append(" ".join(["a", *words, item["shape"]]))
    return " and ".join(names[: max(2, int(rng.integers(2, 8)))])


def contrastive_loss(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Symmetric InfoNCE of `(B, P)` embeddings, and how often a text ranks its own picture first."""
    image_embeds, text_embeds = F.normalize(image_embeds.float(), dim=-1), F.normalize(text_embeds.float(), dim=-1)
    logits = scale.exp().clamp(max=100) * text_embeds @ image_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return {"loss": loss, "top1": (logits.argmax(1) == labels).float().mean()}


class ClipObjective(nn.Module):
    """The contrastive loss of a batch."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss of a batch from `clip_batch`."""
        image = self.clip.visual_projection(self.clip.vision_model(batch["pixel_values"]).pooler_output)
        text = self.clip.text_model(batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        return contrastive_loss(image, self.clip.text_projection(text), self.clip.logit_scale)


def tokenise_captions(cache: SceneCache, indices: np.ndarray, tokenizer: CLIPTokenizer, rng, device) -> BatchEncoding:
    """One text per scene, as `input_ids` and `attention_mask`."""
    texts = [caption(cache.records[index], rng) for index in indices]
    padded = tokenizer(texts, padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return padded.to(device)


def clip_batch(
    cache: SceneCache, indices: np.ndarray, tokenizer: CLIPTokenizer, rng: np.random.Generator, device: torch.device
) -> dict:
    """Scenes with one text each: `pixel_values`, `input_ids` and `attention_mask`."""
    tokens = tokenise_captions(cache, indices, tokenizer, rng, device)
    return {
        "pixel_values": normalise(cache.images[indices], device),
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
    }


def evaluate_clip(objective: nn.Module, batch: dict) -> dict[str, float]:
    """Loss and text-to-picture retrieval among the scenes of one batch."""
    return {f"val_{name}": round(float(value), 4) for name, value in objective(batch).items()}
