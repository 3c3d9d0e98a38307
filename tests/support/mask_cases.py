"""Two pictures with dialogues of every kind, and a tiny model that makes their masks."""

from __future__ import annotations

import pytest

from tests.support.families import picture
from tests.support.matrix import matrix
from tests.support.tiny_llava import tiny_grounding_model, tiny_processor
from transformers_litelvlm import PruningConfig


SENTENCES = [["red mug", "cat", "dog on the left"], ["sky"]]
PICTURES = [picture(60, 40, 0), picture(30, 50, 1)]
KINDS = ["of a picture", "of their own", "that share"]
DIALOGUES = pytest.mark.parametrize("dialogues", KINDS)
# The other kinds are slow.
QUICK_DIALOGUES = pytest.mark.parametrize("dialogues", matrix(KINDS, "that share".__eq__))


def masks_case(dialogues, pruning):
    """A model that makes masks, and what two pictures with dialogues of one kind ask of it."""
    processor, model = tiny_processor(), tiny_grounding_model()
    processor.one_expression_per_dialogue = dialogues != "of a picture"
    model.config.pruning_config = PruningConfig(**pruning)
    return model, processor.segmentation_inputs(PICTURES, SENTENCES, share_selection=dialogues == "that share")
