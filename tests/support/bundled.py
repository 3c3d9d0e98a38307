"""The bundled model as servers and annotation tools have it."""

from typing import Any

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation


def load_bundled() -> tuple[Any, Any]:
    """Model and processor; the model's own setting is the preset "balanced"."""
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")
    return load_for_segmentation(DEFAULT_CHECKPOINT, config)
