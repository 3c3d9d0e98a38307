"""What travels between vLLM's front end and the worker that decodes masks. Nothing here needs vLLM."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature


SIZES = ("original_sizes", "reshaped_input_sizes")


def prompts_of(features: BatchFeature, image_token_id: int) -> list[list[int]]:
    """Token ids of the dialogues of `segmentation_inputs`, with one placeholder for the picture: vLLM puts in as many
    as there are kept tokens."""
    found = []
    for ids, mask in zip(features["input_ids"].tolist(), features["attention_mask"].tolist(), strict=True):
        real = [token for token, is_real in zip(ids, mask) if is_real]
        found.append([t for i, t in enumerate(real) if t != image_token_id or i == 0 or real[i - 1] != image_token_id])
    return found


def pack_picture(features: BatchFeature, key: str) -> dict[str, Any]:
    """What the mask decoder needs of `segmentation_inputs` about one picture; `key` is equal for equal pictures."""
    pixels = features["mask_pixel_values"].float().contiguous()
    sizes = {name: features[name].tolist() for name in SIZES}
    return {"key": key, "shape": list(pixels.shape), "pixels": pixels.numpy().tobytes(), **sizes}


def unpack_pixels(packed: dict[str, Any]) -> torch.Tensor:
    """`mask_pixel_values` of [`pack_picture`]."""
    return torch.frombuffer(bytearray(packed["pixels"]), dtype=torch.float32).view(packed["shape"])


def pack_masks(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Masks (T, H, W) and their scores (T,) as bytes: a line of JSON, and a bit for each pixel."""
    head = json.dumps({"shape": list(masks.shape), "scores": scores.tolist()}).encode() + b"\n"
    bits = np.packbits(masks.cpu().numpy())
    return torch.from_numpy(np.concatenate([np.frombuffer(head, dtype=np.uint8), bits]))


def unpack_masks(data: torch.Tensor) -> tuple[np.ndarray, list[float]]:
    """Masks, bool (T, H, W), and scores of [`pack_masks`]."""
    line, _, bits = data.to(torch.uint8).numpy().tobytes().partition(b"\n")
    head = json.loads(line)
    count = int(np.prod(head["shape"]))
    masks = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count)
    return masks.reshape(head["shape"]).astype(bool), head["scores"]
