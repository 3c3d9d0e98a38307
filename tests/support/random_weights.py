"""Random weights for tiny models."""

from __future__ import annotations

import torch


def asymmetric_(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every parameter with values that no symmetry can hide behind: no zero biases, no unit norms."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
        noise = torch.randn(parameter.shape, generator=generator) * scale
        is_norm = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        # The state of a recurrent layer lasts, so that whatever gets into it shows.
        shift = 1.0 if is_norm else -4.0 if name.endswith("A_log") else 0.0
        parameter.data.copy_(shift + noise)
    return model.eval()
