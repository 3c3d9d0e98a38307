"""FasterVLM: keep the visual tokens that the class token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import class_attention_scores
from transformers_litelvlm.pruning.selection import descending


@register_pruner("cls_attention")
@dataclass(frozen=True)
class ClassAttentionPruner(TokenPruner):
    """The tokens that the class token attends to most, in the layer that makes the features.

    The score is the mean over the heads of the class token's softmax row; no text takes part.

    Source: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference
    Faster" (FasterVLM, arXiv 2412.01818), the ranking by [CLS] attention; the same as VisPruner with
    `important_ratio` 1, whose released code the golden test follows.

    Deviations: the one row is recomputed from queries and keys in float32, while the released code reads the whole
    attention matrix from an eager layer in the model's dtype; ties break by lower index.
    """

    needs_class_token: ClassVar[bool] = True
    source: ClassVar[str] = "FasterVLM, Zhang et al., arXiv 2412.01818"
    context_name: ClassVar[str] = "class attention"

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        scores = class_attention_scores(*evidence.class_query_and_keys(-1))
        return Selection(descending(scores)[:, :budget].sort(dim=-1).values, context=scores)
