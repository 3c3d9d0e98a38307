"""The projector of LLaVA-1.0 and of LISA."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaConfig


class LinearProjector(nn.Module):
    """One linear layer from the vision tower's features (..., C) to the language model's embeddings (..., D).

    The layer has the name of the first of upstream's two.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(
            config.vision_config.hidden_size, config.text_config.hidden_size, bias=config.multimodal_projector_bias
        )

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_1(image_features)
