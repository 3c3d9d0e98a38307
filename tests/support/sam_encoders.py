"""Tiny image encoders of SAM: the stock one and ours that runs in chunks."""

from __future__ import annotations

import torch
from transformers import SamModel

from tests.support.tiny_llava import tiny_sam_config
from transformers_litelvlm.models.masks.sam_in_chunks import run_in_chunks


def encoders(**changes):
    """A stock encoder with random relative positions, and ours with the same weights."""
    torch.manual_seed(0)
    config = tiny_sam_config()
    config.vision_config.update(changes)
    stock, ours = SamModel(config).vision_encoder.eval(), SamModel(config).vision_encoder.eval()
    for name, parameter in stock.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    run_in_chunks(ours)
    ours.load_state_dict(stock.state_dict())
    return stock, ours.eval()
