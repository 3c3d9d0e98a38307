"""The bundled model with the preset that annotation tools get."""

import pytest

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation


@pytest.fixture(scope="session")
def bundled():
    """Model and processor."""
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")
    return load_for_segmentation(DEFAULT_CHECKPOINT, config)
