"""CLIP's MLP without the tensors between its steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from transformers_litelvlm.models.upstream import CLIPMLP, QuickGELUActivation


ROWS = 32  # of 4096 float32 values each: half a megabyte, which stays in a cache


class ClipInPlaceMLP(CLIPMLP):
    """[`~transformers.models.clip.modeling_clip.CLIPMLP`], bit for bit, with its layers.

    On a CPU, where nothing is recorded for a backward pass, the activation overwrites its input, a few rows at a time.
    New memory costs more there than the arithmetic of the activation. It works as upstream's if a hook may hold that
    input, or if one of the layers was replaced.
    """

    def __init__(self, upstreams: CLIPMLP) -> None:
        nn.Module.__init__(self)
        self.config = upstreams.config
        self.activation_fn, self.fc1, self.fc2 = upstreams.activation_fn, upstreams.fc1, upstreams.fc2

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States (..., C) to states."""
        activation = self.activation_fn
        are_upstreams = type(self.fc1) is nn.Linear and type(activation) is QuickGELUActivation
        is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        hooks = self.fc1._forward_hooks, activation._forward_pre_hooks, activation._forward_hooks
        if not (hidden_states.is_cpu and are_upstreams) or is_recorded or any(hooks) or _has_any_global_hook():
            return super().forward(hidden_states)
        values = self.fc1(hidden_states)
        rows = values.view(-1, values.shape[-1])
        gates = torch.empty_like(rows[:ROWS])  # once: new memory for each part would cost what is gained
        for part in rows.split(ROWS):
            part.mul_(gates[: len(part)].copy_(part).mul_(1.702).sigmoid_())
        return self.fc2(values)


def activate_in_place(tower: nn.Module) -> None:
    """Makes the MLPs of a CLIP tower that use CLIP's own activation work in place."""
    for layer in [module for module in tower.modules() if type(getattr(module, "mlp", None)) is CLIPMLP]:
        if type(layer.mlp.activation_fn) is QuickGELUActivation:
            layer.mlp = ClipInPlaceMLP(layer.mlp)
