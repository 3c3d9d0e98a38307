"""CLIP's activation in chunks: upstream's values bit for bit, in less memory."""

import pytest
import torch

from tests.support.families import LLAVA
from transformers_litelvlm.benchmark.memory import activation_bytes
from transformers_litelvlm.models.guidance.quick_gelu import ChunkedQuickGELU
from transformers_litelvlm.models.upstream import QuickGELUActivation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 77, 96), (1, 33, 5), (0, 4)], ids=str)
def test_values_are_upstreams(shape, dtype):
    values = (8 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    kept, expected = values.clone(), QuickGELUActivation()(values)
    with torch.no_grad():
        assert torch.equal(ChunkedQuickGELU()(values), expected)
    assert torch.equal(values, kept)


def test_values_of_another_layout():
    values = torch.randn(40, 77, 96, generator=torch.Generator().manual_seed(0)).permute(2, 0, 1)
    with torch.no_grad():
        assert torch.equal(ChunkedQuickGELU()(values), QuickGELUActivation()(values))


@torch.no_grad()
def test_values_without_rows_and_whole_numbers():
    for values in (torch.tensor(1.5), torch.linspace(-3, 3, 7), torch.arange(6).view(2, 3)):
        assert torch.equal(ChunkedQuickGELU()(values), QuickGELUActivation()(values))
    traced = torch.jit.trace(ChunkedQuickGELU(), torch.randn(2, 40, 4))
    values = torch.randn(3, 70, 4)
    assert torch.equal(traced(values), QuickGELUActivation()(values))


def test_gradients_are_upstreams():
    inputs = [torch.linspace(-4, 4, 99).view(33, 3).requires_grad_() for _ in range(2)]
    for activation, values in zip((ChunkedQuickGELU(), QuickGELUActivation()), inputs):
        activation(values).square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@torch.no_grad()
def test_memory():
    values = torch.ones(1, 512, 64)
    ours, upstreams = (
        activation_bytes(lambda each=each: each(values), values.device)
        for each in (ChunkedQuickGELU(), QuickGELUActivation())
    )
    assert ours < 1.01 * values.nbytes and upstreams >= 2 * values.nbytes


def test_the_tower_has_it():
    model = LLAVA.model()
    activations = [layer.mlp.activation_fn for layer in model.model.vision_tower.encoder.layers]
    assert activations and all(type(each) is ChunkedQuickGELU for each in activations)
