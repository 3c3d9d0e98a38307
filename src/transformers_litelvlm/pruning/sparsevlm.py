"""SparseVLM: inside the language model, what relevant words attend to; some of the removed tokens are recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection
from transformers_litelvlm.pruning.clustering import density_peaks
from transformers_litelvlm.pruning.layers import LayerEvidence, LayerPruner, check_below
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.selection import descending, gather_tokens, merge_tokens, one_hot, product


# Tokens kept of 576 after each of three layers, without the recycled ones, by the budget that the authors name.
TABLES = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
TABLE_TOKENS = 576


@register_pruner("sparsevlm")
@dataclass(frozen=True)
class SparseVLMPruner(LayerPruner):
    """After some decoder layers, keep the visual tokens that relevant words attend to, and merge some of the others.

    Relevant words (raters) are those after the image whose embedding takes more than the mean share of the visual
    tokens' softmax over the text. Scores are their attention in the layer, mean over heads and raters. Of the removed
    tokens, the best 30 % (plus one) are clustered into a tenth as many (plus one), whose means are kept.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference",
    ICML 2025 (arXiv 2410.04417), and the released code, version 1.5 (github.com/Gumpest/SparseVLMs). The paper's rule
    for the number of tokens, by the rank of the attention, is not in that version: it has tables.

    A budget names the authors' table: 192, 128, 96 or 64 of 576 tokens (96 is from their later code), or the same
    fractions of another N, with the table scaled and rounded. Theirs are means over 32 layers that count a layer that
    prunes by what it keeps; what layers compute on is about 15 more. A table keeps fewer in the end: 113 for 192.

    Deviations: equal densities in the clustering are ordered by index, while the released code adds random numbers.
    If no word is above the mean (one word), all rate. Of the attention only the rows of the text are computed, in
    float32. Batches work; a prompt with several images prunes each with the text after it.

    Args:
        layers: after which tokens are dropped, default (2, 6, 15) as released for 32 layers.
        keep: tokens kept after each of them instead of a table; what remains in the end, recycled tokens included,
            must be the budget.

    Raises:
        ValueError: for options that do not fit each other; in `tokens_after` for a budget without a table.
    """

    source: ClassVar[str] = "Zhang et al., ICML 2025, arXiv 2410.04417"
    context_name: ClassVar[str] = "attention of the text"
    official_token_order: ClassVar[str] = "reference"
    official_position_ids: ClassVar[str] = "compact"

    layers: tuple[int, ...] = (2, 6, 15)
    keep: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("layers", 0), ("keep", 1)):
            given = getattr(self, name)
            if given is None and name == "keep":
                continue
            if not isinstance(given, (list, tuple)) or not all(type(n) is int and n >= least for n in given):
                raise ValueError(f"`{name}` must be integers of at least {least}, got {given!r:.80}.")
            object.__setattr__(self, name, tuple(given))  # JSON knows lists only
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"`layers` must ascend, got {self.layers!r:.80}.")
        if len(self.layers) != (3 if self.keep is None else len(self.keep)):
            raise ValueError(f"`keep` needs a number for each of `layers` {self.layers!r:.80}, got {self.keep!r:.80}.")

    def tokens_after(self, num_tokens: int, budget: int, num_layers: int) -> dict[int, int]:
        if len(self.layers) > num_layers:
            raise ValueError(
                f"`layers` {self.layers} are more than the {num_layers} layers of this language model: set fewer, "
                "with a number for each in `keep`, or choose another method."
            )
        steps = range(1, len(self.layers) + 1)
        spread = [step * num_layers // (len(steps) + 1) for step in steps]
        check_below("layers", list(self.layers), num_layers, spread)
        left, num_left = {}, num_tokens
        for layer, keep in zip(self.layers, self._kept(num_tokens, budget), strict=True):
            kept, _, num_clusters = counts(num_left, keep)
            left[layer] = num_left = kept + num_clusters
        if self.keep is not None and num_left != budget:
            raise ValueError(
                f"`keep` {list(self.keep)} leaves {num_left} tokens of {num_tokens}, `budget` is {budget}."
            )
        return left

    def _kept(self, num_tokens: int, budget: int) -> tuple[int, ...]:
        if self.keep is not None:
            return self.keep
        table = next((name for name in TABLES if name * num_tokens == budget * TABLE_TOKENS), None)
        if table is None:
            known = [name * num_tokens // TABLE_TOKENS for name in TABLES if name * num_tokens % TABLE_TOKENS == 0]
            raise ValueError(
                f"`budget` {budget} of {num_tokens} visual tokens has no table of the authors; "
                f"{', '.join(map(str, known)) or 'no number'} of {num_tokens} has. The option `keep` sets one."
            )
        return tuple(max(1, (2 * keep * num_tokens + TABLE_TOKENS) // (2 * TABLE_TOKENS)) for keep in TABLES[table])

    def select(self, evidence: LayerEvidence, budget: int) -> Selection:
        keep = self._kept(evidence.num_tokens, budget)[self.layers.index(evidence.layer)]
        num_kept, num_candidates, num_clusters = counts(evidence.features.shape[1], keep)
        is_rater = find_raters(*evidence.input_embeds(), evidence.is_text)
        rows = evidence.text_attention().mean(dim=1).masked_fill(~is_rater.unsqueeze(-1), 0.0)
        scores = rows.sum(dim=1) / is_rater.sum(dim=1, keepdim=True)
        order = descending(scores)
        kept = order[:, :num_kept].sort(dim=-1).values
        candidates = order[:, num_kept : num_kept + num_candidates]
        centres, groups = density_peaks(gather_tokens(evidence.features, candidates), num_clusters)
        members = one_hot(groups, num_clusters).transpose(1, 2)
        means = product(members / members.sum(dim=-1, keepdim=True), one_hot(candidates, evidence.features.shape[1]))
        recycled = merge_tokens(means, evidence.features)
        return Selection(
            torch.cat((kept, candidates.gather(1, centres)), dim=1),
            context=scores,
            features=torch.cat((gather_tokens(evidence.features, kept), recycled), dim=1),
            weights=torch.cat((one_hot(kept, evidence.features.shape[1]), means), dim=1),
        )


def counts(num_tokens: int, keep: int) -> tuple[int, int, int]:
    """Of `num_tokens`: how many are kept, how many of the removed are candidates for recycling, and their clusters."""
    kept = min(keep, num_tokens - 1)
    candidates = int(0.3 * (num_tokens - kept)) + 1
    return kept, candidates, candidates // 10 + 1


def find_raters(visual: torch.Tensor, text: torch.Tensor, is_text: torch.Tensor) -> torch.Tensor:
    """Which of the text tokens (M, T, D) the visual tokens (M, N, D) find relevant, bool (M, T)."""
    relevance = rater_relevance(visual, text, is_text)
    is_rater = is_text & (relevance > relevance.sum(dim=-1, keepdim=True) / is_text.sum(dim=-1, keepdim=True))
    return is_rater | (is_text & ~is_rater.any(dim=-1, keepdim=True))


def rater_relevance(visual: torch.Tensor, text: torch.Tensor, is_text: torch.Tensor) -> torch.Tensor:
    """Mean over the visual tokens of their softmax over the text, (M, T) float32, zero for padding."""
    logits = product(visual.float(), text.float().transpose(1, 2))
    return logits.masked_fill(~is_text.unsqueeze(1), -torch.inf).softmax(dim=-1).mean(dim=1)
