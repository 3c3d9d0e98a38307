"""What methods share that prune inside the language model: the evidence at one of its layers, and their parent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Pruner, Selection


class LayerEvidence(ABC):
    """What a method may ask at one decoder layer, for M images with n visual tokens remaining of N each.

    H heads, D the width of the language model, T text tokens after an image (padded). Text after an image ends where
    the prompt ends: that is the question, and in a teacher-forced prompt the answer too.
    """

    layer: int  # 0-based; the evidence is from inside it, and tokens are dropped after it
    num_tokens: int  # N
    num_layers: int  # decoder layers of the language model
    features: torch.Tensor  # (M, n, D), the visual tokens after the layer
    is_text: torch.Tensor  # (M, T) bool, which of the text tokens are real and after the image

    @abstractmethod
    def last_token_attention(self) -> torch.Tensor:
        """Attention of the prompt's last token to the visual tokens, (M, H, n) float32.

        Probabilities are over everything that the token sees in this layer, text included.
        """

    @abstractmethod
    def text_attention(self) -> torch.Tensor:
        """Attention of the text tokens to the visual tokens, (M, H, T, n) float32; see [`last_token_attention`]."""

    @abstractmethod
    def value_attention(self, visual: torch.Tensor | None = None) -> torch.Tensor:
        """Softmax of the products of value vectors, (M, H', R, n) float32: how similar visual tokens are to others.

        Over all tokens of the prompt, later ones too; products are divided by the square root of the head size.

        Args:
            visual: (M, R) the visual tokens to compare with; default: the text tokens, R = T.
        """

    @abstractmethod
    def rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines that turn queries and keys of the visual tokens, (M, n, d) float32 each.

        Positions count from the first token of the prompt, wherever the caller's begin.
        """

    @abstractmethod
    def input_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All visual tokens (M, N, D) and the text tokens (M, T, D) as they entered the language model."""


def check_below(option: str, given: int | list[int], num_layers: int, example: int | list[int]) -> None:
    """Raise ValueError if an option names a layer that the language model does not have; the message has `example`."""
    if max([given] if isinstance(given, int) else given) >= num_layers:
        raise ValueError(
            f"`{option}` must be below {num_layers}, the model's number of layers, got {given}: set it, for example "
            f"`method_options={{{option!r}: {example}}}`."
        )


class LayerPruner(Pruner):
    """A method that drops visual tokens after some decoder layers.

    All N visual tokens enter the language model; a layer that prunes still computes on all that enter it. With several
    images in a prompt, each is pruned by itself.
    """

    # Whether tokens are dropped from the caches of the layers before, too, but the first; for methods that prune once.
    prunes_earlier_caches: ClassVar[bool] = False
    official_position_ids = "original"

    @abstractmethod
    def tokens_after(self, num_tokens: int, budget: int, num_layers: int) -> dict[int, int]:
        """The layers after which tokens are dropped, ascending, and how many of an image's tokens remain.

        Args:
            num_tokens: N.
            budget: K, with 1 <= K <= N.
            num_layers: layers of the language model.

        Raises:
            ValueError: if the method cannot reach the budget, or the language model has too few layers.
        """

    @abstractmethod
    def select(self, evidence: LayerEvidence, budget: int) -> Selection:
        """Choose which tokens are kept after a layer that [`tokens_after`] names.

        Args:
            evidence: what is known at that layer.
            budget: K, as in [`tokens_after`].

        Returns:
            [`Selection`] whose indices, (M, as many as [`tokens_after`] says), count the n tokens there are.
        """

    def tokens_per_layer(
        self, num_tokens: int, budget: int, *, num_layers: int, num_tower_layers: int
    ) -> list[int] | None:
        counts = [num_tokens] * num_layers
        for layer, left in self.tokens_after(num_tokens, budget, num_layers).items():
            counts[layer + 1 :] = [left] * (num_layers - layer - 1)
        return counts
