"""What every pruning method shares: the evidence it may ask for, and the result it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from transformers_litelvlm.pruning.scoring import class_attention_scores, context_scores
from transformers_litelvlm.pruning.selection import gather_tokens


Between = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]

NO_SURGERY = (
    "CLIP Surgery (`similarity='surgery'`) is defined for the vision tower of a CLIP, and what guides the selection "
    "here is another one: choose `similarity='dot'` or `'cosine'`, or `guidance='clip'` where the family has it."
)
NO_CLASS_TOKEN = "This vision tower has no class token and no layers that a pruning method could run one by one."


class VisualEvidence(ABC):
    """What a method may ask about the visual tokens of a batch of images, computed only when it asks.

    B images, N visual tokens, C channels of the vision tower in H heads of size d, T expressions per image (padded),
    P the size of CLIP's shared space, D the width of the language model. What a class token tells is undefined, and a
    ValueError, for towers without one.
    """

    features: torch.Tensor  # (B, N, C), what the projector would receive
    class_features: torch.Tensor  # (B, C), the class token beside them
    grid: tuple[int, int]  # rows and columns of visual tokens; N is their product
    num_layers: int  # how many layers of the tower make the features
    max_expressions: int  # T, known without looking at the device; 0 if there is no text
    has_class_token: bool = True
    known_projection: torch.Tensor | None = None  # (B, N, D), if a method asked for [`projected_features`]

    @abstractmethod
    def image_embeds(self) -> torch.Tensor:
        """Visual tokens in the space shared with the text, (B, N, P)."""

    @abstractmethod
    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Expressions in the shared space, (B, T, P), and which of them are real, bool (B, T)."""

    def surgery_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What CLIP Surgery compares in the shared space, where both towers are CLIP's.

        Returns:
            Visual tokens from value-value attention in the layer that makes the features, (B, N, P), and for each
            expression the text without any word, (B, T, P); neither is normalised.

        Raises:
            ValueError: if the vision tower is not CLIP's.
        """
        raise ValueError(NO_SURGERY)

    @abstractmethod
    def projected_features(self) -> torch.Tensor:
        """Visual tokens as the language model would read them, (B, N, D)."""

    def class_attention(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query of the class token (B, C), keys and values (B, N, C) of the layer that reads the features."""
        raise ValueError(NO_CLASS_TOKEN)

    def class_query_and_keys(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query of the class token (B, H, d), not scaled, and all keys (B, H, 1+N, d), the class token's own first.

        Args:
            layer: counted from the features: -1 is the layer that made them, 0 the one that would read them.
        """
        raise ValueError(NO_CLASS_TOKEN)

    def attention_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention that visual tokens get, (B, N) float32, and their keys, mean over the heads, (B, N, d) float32.

        Both of the layer that makes the features. The attention is that of the class token, mean over the heads; in a
        tower without one it is that of all tokens.
        """
        query, keys = self.class_query_and_keys(-1)
        return class_attention_scores(query, keys), keys[:, :, 1:].float().mean(dim=1)

    def run_layers(self, between: Between) -> torch.Tensor:
        """Run the layers that make the features, with `between` called in each, between attention and MLP.

        Args:
            between: receives the states (B, 1+n, C), class token first, and the layer's keys (B, H, 1+n, d); returns
                the states (B, 1+m, C) to go on with, and what to add to the attention logits of their keys in later
                layers, (B, 1+m) or `None`.

        Returns:
            What comes out, (B, 1+m, C).
        """
        raise ValueError(NO_CLASS_TOKEN)

    def context_scores(self) -> torch.Tensor:
        """How much of the scene each token carries, (B, N) float32, higher = keep.

        LiteLVLM's score of the class token's attention; towers without a class token have a measure of their own.
        """
        return context_scores(*self.class_attention())


class Selection(NamedTuple):
    """The visual tokens that a method retains, and the scores it computed on the way.

    A method that merges tokens returns the merged `features`, and in `indices` the raster index that stands for each
    of them: it decides the position in the prompt.
    """

    indices: torch.Tensor  # (B, K) long, 0-based raster indices without repetition, in the method's own order
    similarity: torch.Tensor | None = None  # (B, T, N) float32, as CLIP gives it (not negated)
    context: torch.Tensor | None = None  # (B, N) float32, higher = keep
    features: torch.Tensor | None = None  # (B, K, C), if they are not those at `indices`
    weights: torch.Tensor | None = None  # (B, K, N) float32, how much of each visual token went into each of them

    def in_raster_order(self) -> Selection:
        """The same tokens by ascending index."""
        indices, order = self.indices.sort(dim=-1)

        def rows(tokens: torch.Tensor | None) -> torch.Tensor | None:
            return None if tokens is None else tokens.gather(1, order[..., None].expand_as(tokens))

        return self._replace(indices=indices, features=rows(self.features), weights=rows(self.weights))

    def checked(
        self, evidence: Any, size: tuple[int, ...], method: str, budget: int | None, rows: slice = slice(None)
    ) -> Selection:
        """The same, if each image has `budget` indices, all in range, none of them twice.

        On a CPU anything else is an error. Elsewhere an error about values would have to wait for the device: an
        image with wrong indices gets other ones and NaN features instead, which change no other image and are seen in
        what comes out.

        Args:
            evidence: what the method was asked about. Its `features` are read only if they have to be: where a method
                runs the vision tower itself, they would cost the tower once more.
            size: number of images, and N.
            method: its name.
            budget: K; `None` if the image decides.
            rows: images of the evidence that this is about; default: all.

        Raises:
            ValueError: if the indices are wrong; the message names the method.
        """
        (num_images, num_tokens), shape = size, tuple(self.indices.shape)
        if shape != (num_images, budget or max(1, shape[-1])):
            raise ValueError(
                f"The pruning method {method!r} must return {budget or 'some'} indices for each of {num_images} "
                f"images, got indices of shape {shape}. If the image decides how many, `select` returns a list with a "
                "selection for each, and `tokens_per_layer` returns `None`."
            )
        ordered = self.indices.sort(dim=-1).values
        is_wrong = (ordered[:, 1:] == ordered[:, :-1]).any(-1) | (ordered[:, 0] < 0) | (ordered[:, -1] >= num_tokens)
        if self.indices.is_cpu:
            if not torch.compiler.is_compiling() and is_wrong.any():
                row = self.indices[is_wrong.nonzero()[0, 0]]
                raise ValueError(
                    f"The pruning method {method!r} must choose tokens of 0 to {num_tokens - 1}, each once, got "
                    f"{str(row.tolist())[:80]}. Pixels or weights that are not finite are one reason."
                )
            return self
        some = torch.arange(ordered.shape[1], device=ordered.device)
        indices = torch.where(is_wrong[:, None], some, self.indices)
        known = getattr(evidence, "known_projection", None)  # methods inside the language model have none
        if self.features is None and known is not None:  # they are gathered from there
            of_all = torch.zeros(len(known), dtype=torch.bool, device=known.device)
            of_all[rows] = is_wrong.to(known.device)
            evidence.known_projection = known.masked_fill(of_all[:, None, None], torch.nan)
            return self._replace(indices=indices)
        features = gather_tokens(evidence.features[rows], indices) if self.features is None else self.features
        return self._replace(indices=indices, features=features.masked_fill(is_wrong[:, None, None], torch.nan))


@dataclass(frozen=True)
class Pruner(ABC):
    """A published method as a frozen set of its hyper-parameters.

    Budgets, token order, positions and gathering belong to the caller, so that they mean the same for every method. A
    method is a [`TokenPruner`], before the language model, or a [`LayerPruner`], inside it.
    """

    name: ClassVar[str]
    needs_text: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = False  # reads the class token's attention, or runs the tower's layers itself
    official_token_order: ClassVar[str] = "raster"
    official_position_ids: ClassVar[str] = "compact"
    source: ClassVar[str] = ""
    context_name: ClassVar[str] = "score of the method"  # what `Selection.context` is, in a few words for pictures

    @abstractmethod
    def tokens_per_layer(
        self, num_tokens: int, budget: int, *, num_layers: int, num_tower_layers: int
    ) -> list[int] | None:
        """Visual tokens of an image that each layer of the language model computes on.

        Args:
            num_tokens: N.
            budget: K, with 1 <= K <= N.
            num_layers: layers of the language model.
            num_tower_layers: layers of the vision tower that make the features.

        Returns:
            One number per layer of the language model; `None` if the image decides.

        Raises:
            ValueError: if the method cannot reach the budget; the message says which it can.
        """

    def chosen_by(self, similarity: torch.Tensor, is_real: torch.Tensor, budget: int) -> torch.Tensor | None:
        """Which kept tokens each expression brought in, for pictures of a selection.

        Args:
            similarity: (B, T, N) float32, that of the [`Selection`].
            is_real: (B, T) bool, which expressions are no padding.
            budget: K.

        Returns:
            (B, T, N) bool; kept tokens that no expression chose are context. `None`, the default, for a method that
            does not choose for one expression at a time.
        """
        return None

    @classmethod
    def option_names(cls) -> list[str]:
        # Not `dataclasses.fields`, which torch.compile does not trace.
        return list(cls.__match_args__)


class TokenPruner(Pruner):
    """A method that selects or merges what the vision tower gives. A subclass implements [`select`]."""

    adaptive: bool = False  # whether the image decides how many tokens are kept

    @abstractmethod
    def select(self, evidence: VisualEvidence, budget: int) -> Selection | list[Selection]:
        """Choose `budget` of the N visual tokens of every image.

        Args:
            evidence: what is known of the visual tokens and the sentences.
            budget: K, with 1 <= K < N.

        Returns:
            [`Selection`] with unique indices of shape (B, K). If the image decides how many tokens are kept, a list of
            B selections of one image each.

        Raises:
            ValueError: if the method cannot keep exactly `budget` tokens.
        """

    def tokens_per_layer(
        self, num_tokens: int, budget: int, *, num_layers: int, num_tower_layers: int
    ) -> list[int] | None:
        return None if self.adaptive else [budget] * num_layers
