"""CLIP's MLP without the tensors between its steps."""

from __future__ import annotations

import torch
from torch import nn

from transformers_litelvlm.models.upstream import CLIPMLP, QuickGELUActivation


ROWS = 32  # of 4096 float32 values each: half a megabyte, which stays in a cache


class ClipInPlaceMLP(CLIPMLP):
    """[`~transformers.models.clip.modeling_clip.CLIPMLP`], bit for bit, with its layers.

    On a CPU, where nothing is recorded for a backward pass, the activation overwrites its input, a few rows at a time.
    New memory costs more there than the arithmetic of the activation. If someone listens to the layers, by a forward
    hook, they work as upstream's.
    """

    def __init__(self, upstreams: CLIPMLP) -> None:
        nn.Module.__init__(self)
        self.config = upstreams.config
        self.activation_fn, self.fc1, self.fc2 = upstreams.activation_fn, upstreams.fc1, upstreams.fc2

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States (..., C) to states."""
        is_recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()
        activation = self.activation_fn
        is_heard = self.fc1._forward_hooks or activation._forward_pre_hooks or activation._forward_hooks
        if is_recorded or is_heard or not hidden_states.is_cpu:
            return super().forward(hidden_states)
        values = self.fc1(hidden_states)
        rows = values.view(-1, values.shape[-1])
        gates = torch.empty_like(rows[:ROWS])
        for part in rows.split(ROWS):
            part.mul_(torch.mul(part, 1.702, out=gates[: len(part)]).sigmoid_())
        return self.fc2(values)


def activate_in_place(tower: nn.Module) -> None:
    """Makes the MLPs of a CLIP tower that use CLIP's own activation work in place."""
    for layer in [module for module in tower.modules() if type(getattr(module, "mlp", None)) is CLIPMLP]:
        if type(layer.mlp.activation_fn) is QuickGELUActivation:
            layer.mlp = ClipInPlaceMLP(layer.mlp)
