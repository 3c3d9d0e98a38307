"""FastV: inside the language model, the visual tokens that the prompt's last token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers_litelvlm.pruning.base import Selection
from transformers_litelvlm.pruning.layers import LayerEvidence, LayerPruner, check_below
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.selection import descending


@register_pruner("fastv")
@dataclass(frozen=True)
class FastVPruner(LayerPruner):
    """From a decoder layer on, keep the visual tokens that the last token of the prompt attends to most.

    Scores are the attention probabilities of the layer before, mean over the heads.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024 (arXiv 2403.06764), section 4, and the
    released code (github.com/pkunlp-icler/FastV). The paper scores by the attention of all tokens, the code by that of
    the last token; this is the code.

    Deviations: the released code has four variants; this is its last one, which prunes once, before decoding, and
    keeps keys and values. Of the attention one row is computed, in float32, so any attention kernel works. A prompt
    with several images keeps K of each; the authors advise one pool.

    Args:
        layer: K of the paper, the first layer that computes on fewer tokens. Default 2, as in the paper.
        match: what the budget counts. `"retained"` (default) the tokens kept, `"average"` the mean over all layers
            of the language model, to the nearest token.

    Raises:
        ValueError: for an option outside its range, and if the language model has too few layers or the layers
            before it already exceed the average.
    """

    source: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"
    context_name: ClassVar[str] = "attention of the last token"

    layer: int = 2
    match: str = "retained"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise ValueError(f"`layer` must be a positive integer, got {self.layer!r:.80}.")
        if self.match not in ("retained", "average"):
            raise ValueError(f"`match` must be 'retained' or 'average', got {self.match!r:.80}.")

    def tokens_after(self, num_tokens: int, budget: int, num_layers: int) -> dict[int, int]:
        check_below("layer", self.layer, num_layers, max(1, num_layers // 2))
        if self.match == "average":
            least = self.layer * num_tokens + num_layers - self.layer
            if budget * num_layers < least:
                raise ValueError(
                    f"An average of {budget} of {num_tokens} visual tokens is not reachable where the first "
                    f"{self.layer} of {num_layers} layers see all: {-(-least // num_layers)} to {num_tokens} are."
                )
            budget = round((budget * num_layers - self.layer * num_tokens) / (num_layers - self.layer))
        return {self.layer - 1: budget}

    def select(self, evidence: LayerEvidence, budget: int) -> Selection:
        (budget,) = self.tokens_after(evidence.num_tokens, budget, evidence.num_layers).values()
        scores = evidence.last_token_attention().mean(dim=1)
        return Selection(descending(scores)[:, :budget].sort(dim=-1).values, context=scores)
