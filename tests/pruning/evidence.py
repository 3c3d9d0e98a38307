"""Evidence made of random numbers, for testing methods without a model."""

from __future__ import annotations

import torch

from transformers_litelvlm.pruning import VisualEvidence


class RandomEvidence(VisualEvidence):
    """B images, N tokens, T expressions; `num_real` of them per image are real, the others padding."""

    def __init__(self, num_real: list[int], num_tokens: int = 30, seed: int = 0, width: int = 8, extra: int = 0):
        generator = torch.Generator().manual_seed(seed)
        num_images = len(num_real)
        self.max_expressions = max(num_real) + extra

        def draw(*shape):
            return torch.randn(num_images, *shape, generator=generator)

        self.features = draw(num_tokens, width)
        self.image = draw(num_tokens, width)
        # Drawn for the most expressions ever asked for, so that padding does not change the real ones.
        self.text = draw(8, width)[:, : self.max_expressions].clone()
        self.query, self.keys, self.values = draw(width), draw(num_tokens, width), draw(num_tokens, width)
        self.is_real = torch.arange(self.max_expressions) < torch.tensor(num_real)[:, None]
        self.text[~self.is_real] = 1e3  # what a careless method would trip over
        self.asked: list[str] = []

    def image_embeds(self):
        self.asked.append("image")
        return self.image

    def text_embeds(self):
        self.asked.append("text")
        return self.text, self.is_real

    def class_attention(self):
        self.asked.append("context")
        return self.query, self.keys, self.values

    def _each(self, change):
        for name in ("features", "image", "text", "query", "keys", "values", "is_real"):
            setattr(self, name, change(getattr(self, name)))
        return self

    def only(self, image: int) -> RandomEvidence:
        """One image of the batch, without the padding that its neighbours needed."""
        self._each(lambda tensor: tensor[image : image + 1])
        self.max_expressions = int(self.is_real.sum())
        self.text, self.is_real = self.text[:, : self.max_expressions], self.is_real[:, : self.max_expressions]
        return self

    def to(self, dtype: torch.dtype) -> RandomEvidence:
        return self._each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
