"""Floating-point operations of a decoder that reads a prompt, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def prefill_flops(text_config: Any, tokens_per_layer: Sequence[int]) -> int:
    """Operations of all decoder layers on one prompt.

    A layer with n tokens, width D, H query heads and G key-value heads of size d, and an MLP of width I takes

        2n (2 D H d + 2 D G d + 3 D I) + 4 n^2 H d

    for its projections, its gated MLP, and attention over the whole square (kernels that skip what is masked do half
    of that term). In a mixture of experts, I is what a token sees of them, and the router is added. A recurrent layer
    (linear attention) takes, instead of attention, its projections and the reads and writes of its state. A
    multiplication and an addition are two operations. Left out: norms, softmax, convolutions, embeddings, the head,
    and what a method needs to choose its tokens.

    Args:
        text_config: of a decoder like Llama's, a mixture of experts like Qwen3's, or one like Qwen3.5's.
        tokens_per_layer: n of each layer, text included.
    """
    kinds = getattr(text_config, "layer_types", None) or ["full_attention"] * len(tokens_per_layer)
    is_hybrid = "linear_attention" in kinds
    width, heads = text_config.hidden_size, text_config.num_attention_heads
    groups = getattr(text_config, "num_key_value_heads", None) or heads
    size = getattr(text_config, "head_dim", None) or width // heads
    # Beside recurrent layers, attention has a gate as wide as its queries.
    projections = width * size * ((3 if is_hybrid else 2) * heads + 2 * groups)
    total = 0
    for layer, (kind, n) in enumerate(zip(kinds, tokens_per_layer)):
        total += 2 * n * _mlp_multiplications(text_config, layer)
        if kind == "linear_attention":
            total += 2 * n * _recurrent_multiplications(text_config)
        else:
            total += 2 * n * projections + 4 * n * n * heads * size
    return total


def _mlp_multiplications(text_config: Any, layer: int) -> int:
    """Of one token in the MLP of a layer."""
    width, inner = text_config.hidden_size, getattr(text_config, "moe_intermediate_size", None)
    is_sparse = (
        inner is not None
        and layer not in (getattr(text_config, "mlp_only_layers", None) or ())
        and (layer + 1) % getattr(text_config, "decoder_sparse_step", 1) == 0
    )
    if not is_sparse:
        return 3 * width * text_config.intermediate_size
    shared = getattr(text_config, "shared_expert_intermediate_size", 0)
    router = width * (text_config.num_experts + bool(shared))
    return 3 * width * (text_config.num_experts_per_tok * inner + shared) + router


def _recurrent_multiplications(text_config: Any) -> int:
    """Of one token in a gated delta rule: projections to queries, keys, values, a gate and two numbers a head, and
    back; and one reading, one correction and one writing of the state of each head."""
    heads, key_size, value_size = (
        text_config.linear_num_value_heads,
        text_config.linear_key_head_dim,
        text_config.linear_value_head_dim,
    )
    keys, values = text_config.linear_num_key_heads * key_size, heads * value_size
    return text_config.hidden_size * (2 * keys + 3 * values + 2 * heads) + 3 * heads * key_size * value_size
