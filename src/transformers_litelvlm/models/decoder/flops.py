"""Floating-point operations of a decoder that reads a prompt, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prefill_flops(text_config: Any, tokens_per_layer: Sequence[int]) -> int:
    """Operations of all decoder layers on one prompt.

    A layer with n tokens, width D, H query heads and G key-value heads of size d, and an MLP of width I takes

        2n (2 D H d + 2 D G d + 3 D I) + 4 n^2 H d

    for its projections, its gated MLP, and attention over the whole square (kernels that skip what is masked do half
    of that term). A multiplication and an addition are two operations. Left out: norms, softmax, embeddings, the
    head, and what a method needs to choose its tokens.

    Args:
        text_config: of a decoder like Llama's.
        tokens_per_layer: n of each layer, text included.
    """
    width, heads = text_config.hidden_size, text_config.num_attention_heads
    groups = getattr(text_config, "num_key_value_heads", None) or heads
    size = getattr(text_config, "head_dim", None) or width // heads
    per_token = 2 * (2 * width * heads * size + 2 * width * groups * size + 3 * width * text_config.intermediate_size)
    return sum(n * per_token + 4 * n * n * heads * size for n in tokens_per_layer)
