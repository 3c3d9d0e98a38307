"""Evidence made of random numbers, for testing methods without a model."""

from __future__ import annotations

import torch

from transformers_litelvlm.pruning import VisualEvidence
from transformers_litelvlm.pruning.selection import product


GRID = (5, 6)
OF_EACH_IMAGE = (
    "features",
    "class_features",
    "image",
    "text",
    "projected",
    "query",
    "keys",
    "values",
    "head_query",
    "head_keys",
    "embeddings",
    "corrected",
    "empty",
    "is_real",
)


class RandomEvidence(VisualEvidence):
    """B images, N tokens, T expressions; `num_real` of them per image are real, the others padding."""

    def __init__(
        self,
        num_real: list[int],
        grid: tuple[int, int] = GRID,
        seed: int = 0,
        width: int = 8,
        extra: int = 0,
        num_layers: int = 6,
    ):
        generator = torch.Generator().manual_seed(seed)
        num_images = len(num_real)
        self.grid, num_tokens = grid, grid[0] * grid[1]
        self.num_layers = num_layers
        self.max_expressions = max(num_real) + extra

        def draw(*shape):
            return torch.randn(num_images, *shape, generator=generator)

        self.features, self.class_features = draw(num_tokens, width), draw(width)
        self.image = draw(num_tokens, width)
        # Drawn for the most expressions ever asked for, so that padding does not change the real ones.
        self.text = draw(8, width)[:, : self.max_expressions].clone()
        self.query, self.keys, self.values = draw(width), draw(num_tokens, width), draw(num_tokens, width)
        self.projected = draw(num_tokens, 2 * width)
        self.head_query, self.head_keys = draw(2, 2, width), draw(2, 2, 1 + num_tokens, width)  # layers -1 and 0
        self.embeddings = draw(1 + num_tokens, width)
        self.layers = torch.randn(num_layers, width, width, generator=generator) / width**0.5
        self.corrected, self.empty = draw(num_tokens, width), draw(8, width)[:, : self.max_expressions].clone()
        self.is_real = torch.arange(self.max_expressions) < torch.tensor(num_real)[:, None]
        self.text[~self.is_real] = 1e3  # what a careless method would trip over
        self.asked: list[str] = []

    def image_embeds(self):
        self.asked.append("image")
        return self.image

    def text_embeds(self):
        self.asked.append("text")
        return self.text, self.is_real

    def surgery_embeds(self):
        self.asked.append("surgery")
        return self.corrected, self.empty

    def projected_features(self):
        return self.projected

    def class_attention(self):
        self.asked.append("context")
        return self.query, self.keys, self.values

    def class_query_and_keys(self, layer):
        self.asked.append(f"layer {layer}")
        return self.head_query[:, 1 + layer], self.head_keys[:, 1 + layer]

    def run_layers(self, between):
        """Layers that mix the states by attention and have the simplest of MLPs, whatever autocast says."""
        states, bias = self.embeddings, None
        for weight in self.layers:
            keys = product(states, weight).unflatten(-1, (2, -1)).transpose(1, 2)
            logits = product(states, states.transpose(1, 2))
            logits = logits if bias is None else logits + bias[:, None].to(logits.dtype)
            states, bias = between(states + product(logits.softmax(-1), states), keys)
            states = states + product(states, weight).tanh()
        return states

    def each(self, change):
        for name in OF_EACH_IMAGE:
            setattr(self, name, change(getattr(self, name)))
        return self

    def only(self, image: int) -> RandomEvidence:
        """One image of the batch, without the padding that its neighbours needed."""
        self.each(lambda tensor: tensor[image : image + 1])
        self.max_expressions = int(self.is_real.sum())
        for name in ("text", "empty", "is_real"):
            setattr(self, name, getattr(self, name)[:, : self.max_expressions])
        return self

    def to(self, *args) -> RandomEvidence:
        self.layers = self.layers.to(*args)
        is_dtype = isinstance(args[0], torch.dtype)
        return self.each(lambda tensor: tensor if is_dtype and tensor.dtype == torch.bool else tensor.to(*args))
