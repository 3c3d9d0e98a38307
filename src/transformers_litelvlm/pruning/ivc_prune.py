"""IVC-Prune: inside the language model, tokens that carry positions and tokens that values find relevant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection
from transformers_litelvlm.pruning.layers import LayerEvidence, LayerPruner, check_below
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.selection import descending, fill_to_budget


# Tokens after an image that do not belong to the question: its end marker and a line break.
NUM_SKIPPED_TEXT = 2


@register_pruner("ivc_prune")
@dataclass(frozen=True)
class IVCPrunePruner(LayerPruner):
    """From a decoder layer on, and in the caches before it, keep implicit visual coordinates and the foreground.

    Tokens with the largest mean cosine and those with the largest mean sine of the rotary embedding are kept, for they
    carry positions. The others are ranked by the products of value vectors: the visual tokens most similar to the
    question are seeds, and the foreground is what question and seeds are similar to (a softmax over the prompt, mean
    over heads). Values are those of the layer before. Pruned tokens are dropped from the caches of earlier layers too.

    Source: IVC-Prune, ICLR 2026, and the released code (github.com/FireRedTeam/IVC-Prune), which has a file for Llama
    and one for Qwen2.5-VL.

    Deviations: the released counts are parts of N and keep one number of tokens: 5 % for the cosine, 5 % for the sine
    and 20 % foreground in Llama, 10 %, 10 % and foreground up to 50 % in Qwen. Here the parts for positions are of the
    budget, and the foreground fills it exactly, as in Qwen: the defaults are Qwen's counts if half of the tokens
    are kept. The cache of the first layer is not pruned, as in Llama; Qwen's file prunes it too. Values are compared
    in float32. Batches and several images work, each image with the text after it.

    Args:
        layer: K of the paper, the first layer that computes on fewer tokens. Default 16, as released for LLaVA 1.5 7B
            and Qwen2.5-VL 7B; 22 for Qwen2.5-VL 3B.
        position_share: part of the budget for the largest cosines, and as much for the largest sines,
            floor(share * K + 1/2) each, at most K // 2. Default 0.2; 5/31 as in Llama.
        seed_share: seeds as a part of N, max(1, round(share * N)). Default 0.01.
        foreground: `"separate"` (default, Qwen) the mean of what the question and what the seeds are similar to,
            `"joint"` (Llama) the mean over all of them alike.

    Raises:
        ValueError: for an option outside its range, and if the language model has too few layers.
    """

    source: ClassVar[str] = "IVC-Prune, ICLR 2026"
    context_name: ClassVar[str] = "foreground score"
    prunes_earlier_caches: ClassVar[bool] = True

    layer: int = 16
    position_share: float = 0.2
    seed_share: float = 0.01
    foreground: str = "separate"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise ValueError(f"`layer` must be a positive integer, got {self.layer!r:.80}.")
        for name, share, most in (("position_share", self.position_share, 0.5), ("seed_share", self.seed_share, 1)):
            if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= most:
                raise ValueError(f"`{name}` must be a number in [0, {most}], got {share!r:.80}.")
        if self.foreground not in ("separate", "joint"):
            raise ValueError(f"`foreground` must be 'separate' or 'joint', got {self.foreground!r:.80}.")

    def tokens_after(self, num_tokens: int, budget: int, num_layers: int) -> dict[int, int]:
        check_below("layer", self.layer, num_layers, max(1, num_layers // 2))
        return {self.layer - 1: budget}

    def select(self, evidence: LayerEvidence, budget: int) -> Selection:
        scores = self.rank_foreground(evidence)
        num_each = min(math.floor(self.position_share * budget + 0.5), budget // 2)
        tables = (table.float().mean(dim=-1) for table in evidence.rotary_tables())
        carriers = torch.cat([descending(table)[:, :num_each] for table in tables], dim=1)
        marked = torch.zeros_like(scores).scatter(1, carriers, 1.0).bool()
        return Selection(fill_to_budget(marked, scores, budget).sort(dim=-1).values, context=scores)

    def rank_foreground(self, evidence: LayerEvidence) -> torch.Tensor:
        """How much of the foreground each visual token is, (M, n) float32."""
        is_question = question_of(evidence.is_text).unsqueeze(-1)
        of_question = evidence.value_attention().mean(dim=1).masked_fill(~is_question, 0.0).sum(dim=1)
        num_question = is_question.sum(dim=1)
        num_seeds = max(1, round(self.seed_share * evidence.num_tokens))
        seeds = descending(of_question)[:, :num_seeds]
        of_seeds = evidence.value_attention(seeds).mean(dim=1).sum(dim=1)
        if self.foreground == "joint":
            return (of_question + of_seeds) / (num_question + num_seeds)
        return (of_question / num_question + of_seeds / num_seeds) / 2


def question_of(is_text: torch.Tensor) -> torch.Tensor:
    """Which text (M, T) after an image is the question: all but the first two tokens, or all if there are no more."""
    is_question = is_text & (is_text.cumsum(dim=1) > NUM_SKIPPED_TEXT)
    return is_question | (is_text & ~is_question.any(dim=1, keepdim=True))
