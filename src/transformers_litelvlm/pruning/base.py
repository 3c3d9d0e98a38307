"""What every pruning method shares: the evidence it may ask for, the result it returns, and the registry of names."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from transformers_litelvlm.pruning.scoring import context_scores


class VisualEvidence(ABC):
    """What a method may ask about the visual tokens of a batch of images, computed only when it asks.

    B images, N visual tokens, C channels of the vision tower, T expressions per image (padded), P the size of CLIP's
    shared space.
    """

    features: torch.Tensor  # (B, N, C), what the projector would receive
    max_expressions: int  # T, known without looking at the device; 0 where there is no text

    @abstractmethod
    def image_embeds(self) -> torch.Tensor:
        """Visual tokens in the space shared with the text, (B, N, P)."""

    @abstractmethod
    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Expressions in the shared space, (B, T, P), and which of them are real, bool (B, T)."""

    @abstractmethod
    def class_attention(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query of the class token (B, C), keys and values (B, N, C) of the layer that reads the features."""

    def context_scores(self) -> torch.Tensor:
        """How much of the scene each token carries, (B, N) float32, higher = keep.

        LiteLVLM's score of the class token's attention; towers without a class token have a measure of their own.
        """
        return context_scores(*self.class_attention())


class Selection(NamedTuple):
    """The visual tokens that a method retains, and the scores it computed on the way."""

    indices: torch.Tensor  # (B, K) long, 0-based raster indices, in the method's own order
    similarity: torch.Tensor | None = None  # (B, T, N) float32, as CLIP gives it (not negated)
    context: torch.Tensor | None = None  # (B, N) float32, higher = keep


@dataclass(frozen=True)
class TokenPruner(ABC):
    """A published method as a frozen set of its hyper-parameters.

    A subclass implements [`select`]; budgets, token order, positions and gathering belong to the caller, so that they
    mean the same for every method.
    """

    name: ClassVar[str]
    needs_text: ClassVar[bool] = False
    official_token_order: ClassVar[str] = "raster"
    official_position_ids: ClassVar[str] = "compact"
    source: ClassVar[str] = ""

    @abstractmethod
    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        """Choose `budget` of the N visual tokens of every image.

        Args:
            evidence: what is known of the visual tokens and the sentences.
            budget: K, with 1 <= K < N.

        Returns:
            [`Selection`] with unique indices of shape (B, K).
        """

    @classmethod
    def option_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls)]


_REGISTRY: dict[str, type[TokenPruner]] = {}


def register_pruner(name: str) -> Callable[[type[TokenPruner]], type[TokenPruner]]:
    """Class decorator that makes a [`TokenPruner`] available under `name`. Open to third parties.

    Raises:
        ValueError: if the name is taken by another class or is not a lower-case identifier.
    """

    if not name.isidentifier() or name != name.lower():
        raise ValueError(f"`name` of a pruning method must be a lower-case identifier, got {name!r}.")

    def register(cls: type[TokenPruner]) -> type[TokenPruner]:
        known = _REGISTRY.get(name)
        # A class that is defined again under the same name (module reload, remote code) replaces itself.
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"The pruning method {name!r} is already registered by {known.__qualname__}.")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def list_pruners() -> list[str]:
    """Names of the registered methods, sorted."""
    return sorted(_REGISTRY)


def get_pruner(name: str) -> type[TokenPruner]:
    """The class registered under `name`.

    Raises:
        ValueError: if there is none; the message lists the known names.
    """
    if name not in _REGISTRY:
        raise ValueError(f"Unknown pruning `method` {name!r}. Known methods: {', '.join(list_pruners())}.")
    return _REGISTRY[name]


def build_pruner(name: str, **options: Any) -> TokenPruner:
    """An instance of the method registered under `name`.

    Raises:
        ValueError: for an unknown method or an option it does not have; the message lists the known ones.
    """
    cls = get_pruner(name)
    unknown = sorted(set(options) - set(cls.option_names()))
    if unknown:
        known = ", ".join(cls.option_names()) or "none"
        raise ValueError(f"`method_options` {unknown} do not exist for the method {name!r}. Its options: {known}.")
    return cls(**options)
