"""LiteLVLM: keep the visual tokens that CLIP finds LEAST similar to the sentence, and recover context."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch

from transformers_litelvlm.pruning.base import Selection, TokenPruner, VisualEvidence
from transformers_litelvlm.pruning.registry import register_pruner
from transformers_litelvlm.pruning.scoring import similarity_scores, surgery_scores
from transformers_litelvlm.pruning.selection import fill_to_budget, top_of_each


@register_pruner("litelvlm")
@dataclass(frozen=True)
class LiteLVLMPruner(TokenPruner):
    """Reversed CLIP ranking with context recovery.

    In CLIP, patches inside the region that a phrase refers to tend to have a low similarity with the phrase. So each
    of the T expressions of an image marks its `B // T` least similar tokens, their union is kept, and what overlap
    leaves of the budget B is filled with the tokens of the highest context score.

    Source: Lee and Choi, "CLIP Tricks You", ICML 2026 (arXiv 2605.13178), and its released code
    (github.com/sejong-rcv/LiteLVLM), whose selection this reproduces index for index in float32.

    Deviations: scores are float32 whatever the model's dtype (released: the tower's dtype) and ties break by lower
    index (released: undefined), so that a result does not depend on device or batch. The paper's text describes
    context tokens for a single expression too, while the released code keeps none: see `context_share`.

    `similarity="surgery"` is CLIP Surgery (Li et al., "A Closer Look at the Explainability of Contrastive
    Language-Image Pre-training", arXiv 2304.05653, and its released code, github.com/xmed-lab/CLIP_Surgery), which
    says that CLIP's own maps are inverted and noisy, and corrects them without training. For whoever asks whether the
    reversal is more than that; usually with `ranking="forward"`. With X the input of the layer that makes the
    features, V its values, and F, t, e of length one:

        F    = visual_projection(post_layernorm(X + out_proj(softmax(V V^T / sqrt(d)) V)))    per head, no MLP
        s_ji = F_i . t_j - F_i . e                                                 e: the text without any word

    Deviations from that paper: value-value attention in one layer, the one that makes LLaVA's features (released: the
    sum over the last six layers of the tower). The redundant feature is that of the empty text, as released for one
    text without a list of classes. The mean over classes, weighted by their softmax, needs a list that referring
    expressions do not have; with the other expressions as classes, sentences about a picture would change one
    another's scores. The text is the expression itself (released: the mean over templates of a prompt), and a token
    has length one over its channels (released demo: each channel over the tokens).

    Args:
        similarity: `"dot"` (default, released code), `"cosine"`, or `"surgery"`, for CLIP towers only.
        ranking: `"reversed"` (default, the method: lowest similarity first) or `"forward"` (highest first, the
            comparison that the paper's claim rests on).
        context_share: fraction of the budget that is set aside for context tokens, in [0, 1]. `None` (default) is
            the released code's adaptive rule: context tokens only take what overlap between expressions leaves, so
            with one expression there are none. 0.0 means the same; 1.0 selects by context alone.

    Raises:
        ValueError: for an option outside its range; in `select`, for `"surgery"` where the tower is not CLIP's.
    """

    needs_text: ClassVar[bool] = True
    official_token_order: ClassVar[str] = "reference"
    official_position_ids: ClassVar[str] = "compact"
    source: ClassVar[str] = "Lee and Choi, ICML 2026, arXiv 2605.13178"
    context_name: ClassVar[str] = "context score"

    similarity: str = "dot"
    ranking: str = "reversed"
    context_share: float | None = None

    def __post_init__(self) -> None:
        if self.similarity not in ("dot", "cosine", "surgery"):
            raise ValueError(f"`similarity` must be 'dot', 'cosine' or 'surgery', got {self.similarity!r:.80}.")
        if self.ranking not in ("reversed", "forward"):
            raise ValueError(f"`ranking` must be 'reversed' or 'forward', got {self.ranking!r:.80}.")
        share = self.context_share
        if share is not None and (isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1):
            raise ValueError(f"`context_share` must be None or a number in [0, 1], got {share!r:.80}.")

    def select(self, evidence: VisualEvidence, budget: int) -> Selection:
        text_embeds, is_real = evidence.text_embeds()
        if self.similarity == "surgery":
            tokens, empty_embeds = evidence.surgery_embeds()
            similarity = surgery_scores(tokens, text_embeds, empty_embeds)
        else:
            similarity = similarity_scores(evidence.image_embeds(), text_embeds, self.similarity)
        marked = self.chosen_by(similarity, is_real, budget).any(dim=1)

        if evidence.max_expressions == 1 and self._num_context(budget) == 0:
            # One expression marks the whole budget: nothing remains to fill, so context is not computed.
            context, filler = None, torch.zeros_like(similarity[:, 0])
        else:
            context = filler = evidence.context_scores()
        return Selection(fill_to_budget(marked, filler, budget), similarity, context)

    def chosen_by(self, similarity: torch.Tensor, is_real: torch.Tensor, budget: int) -> torch.Tensor:
        relevance = -similarity if self.ranking == "reversed" else similarity
        num_expressions = is_real.sum(dim=-1).clamp(min=1)
        return top_of_each(relevance, is_real, (budget - self._num_context(budget)) // num_expressions)

    def _num_context(self, budget: int) -> int:
        """How much of the budget is set aside for context tokens."""
        return int((self.context_share or 0.0) * budget + 0.5)
