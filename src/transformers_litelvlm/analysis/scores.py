"""What each visual token of an image has before the language model: numbers that methods select by, and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Guidance
from transformers_litelvlm.models.guidance.frames import group_frames
from transformers_litelvlm.models.processing.sentences import tokenize_guidance
from transformers_litelvlm.pruning.base import VisualEvidence
from transformers_litelvlm.pruning.scoring import similarity_scores, surgery_scores


def evidence_of(encoded: EncodedMedia, guidance: Guidance) -> VisualEvidence:
    """What methods may ask about the one image in `encoded` and all sentences in `guidance` (1, T, L)."""
    [group] = group_frames(encoded.grids, encoded.sizes)
    return encoded.evidence(group, guidance)


def guidance_of(processor: Any, texts: Sequence[str]) -> Guidance:
    """T texts about one image, as guidance reads them."""
    tokenizer = processor.guidance_tokenizer or processor.tokenizer
    return Guidance.of(tokenize_guidance(tokenizer, [list(texts)]))


def similarities(evidence: VisualEvidence) -> dict[str, torch.Tensor]:
    """By kind, how similar each visual token is to each of T texts, (T, N) float32, not negated.

    Where the guidance is a CLIP, also the two corrections of CLIP Surgery: the cosine after value-value attention, and
    with the text without words subtracted (`similarity="surgery"`).
    """
    image, (texts, _) = evidence.image_embeds(), evidence.text_embeds()
    found = {kind: similarity_scores(image, texts, kind)[0] for kind in ("dot", "cosine")}
    try:
        tokens, empty = evidence.surgery_embeds()
    except ValueError:  # not a CLIP
        return found
    found["value-value"] = similarity_scores(tokens, texts, "cosine")[0]
    return found | {"surgery": surgery_scores(tokens, texts, empty)[0]}


def scores_without_text(evidence: VisualEvidence) -> dict[str, torch.Tensor]:
    """Numbers of the visual tokens that no sentence changes, (N,) float32 each; what a tower does not define, is not
    there.

    `context` is LiteLVLM's context score, `class_attention` what the class token attends to (of a tower without one,
    what all its tokens do), `norm` the norm of the feature that the projector receives.
    """
    scores = {"context": evidence.context_scores()[0], "norm": evidence.features[0].float().norm(dim=-1)}
    try:
        scores["class_attention"] = evidence.attention_and_keys()[0][0]
    except ValueError:  # the guidance is a CLIP beside the model
        pass
    return scores
