"""Evidence at a decoder layer made of random numbers, for testing methods without a model."""

from __future__ import annotations

import torch

from transformers_litelvlm.pruning import LayerEvidence


class RandomLayerEvidence(LayerEvidence):
    """M images with n visual tokens left of N, and `num_text` text tokens behind each, padded."""

    def __init__(
        self,
        num_text: list[int],
        num_tokens: int,
        num_left: int | None = None,
        *,
        layer: int = 0,
        num_layers: int = 4,
        width: int = 8,
        extra: int = 0,
        seed: int = 0,
    ):
        generator = torch.Generator().manual_seed(seed)
        num_images, num_left = len(num_text), num_tokens if num_left is None else num_left
        self.layer, self.num_layers, self.num_tokens = layer, num_layers, num_tokens
        longest = max(num_text) + extra

        def draw(*shape):
            return torch.randn(num_images, *shape, generator=generator)

        self.features = draw(num_left, width)
        self.visual = draw(num_tokens, width)
        # Drawn for the longest text ever asked for, so that padding does not change what is real.
        self.text = draw(16, width)[:, :longest].clone()
        self.attention = (2 * draw(3, 16, num_left)).softmax(dim=-1)[:, :, :longest].clone()
        self.last = draw(3, num_left).softmax(dim=-1)
        self.of_text = (2 * draw(2, 16, num_left)).softmax(dim=-1)[:, :, :longest].clone()
        self.of_visual = (2 * draw(2, num_left, num_left)).softmax(dim=-1)
        self.cos, self.sin = draw(num_left, 6), draw(num_left, 6)
        self.is_text = torch.arange(longest) < torch.tensor(num_text)[:, None]
        self.text[~self.is_text] = 1e3  # what a careless method would trip over
        self.attention.transpose(1, 2)[~self.is_text] = 1e3
        self.of_text.transpose(1, 2)[~self.is_text] = 1e3

    def last_token_attention(self):
        return self.last

    def text_attention(self):
        return self.attention

    def value_attention(self, visual=None):
        if visual is None:
            return self.of_text
        return self.of_visual.gather(
            2, visual[:, None, :, None].expand(-1, self.of_visual.shape[1], -1, self.of_visual.shape[-1])
        )

    def rotary_tables(self):
        return self.cos, self.sin

    def input_embeds(self):
        return self.visual, self.text

    def change(self, change) -> RandomLayerEvidence:
        """`change` applied to every tensor."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, change(value))
        return self

    def only(self, image: int) -> RandomLayerEvidence:
        return self.change(lambda tensor: tensor[image : image + 1])
