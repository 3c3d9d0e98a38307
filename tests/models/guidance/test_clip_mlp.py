"""CLIP's MLP in place: upstream's values bit for bit, in less memory, unless someone looks at its layers."""

import copy
import io

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import CLIPVisionConfig

from tests.support.families import LLAVA
from transformers_litelvlm.benchmark.memory import activation_bytes
from transformers_litelvlm.models.guidance.clip_mlp import ClipInPlaceMLP
from transformers_litelvlm.models.upstream import CLIPMLP, init


def _mlps(width=96, dtype=torch.float32):
    """Upstream's MLP, and ours with the same layers."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=24, num_attention_heads=2, intermediate_size=width)
    upstreams = CLIPMLP(config)
    for weights in upstreams.parameters():
        init.normal_(weights, std=2.0)
    return upstreams.to(dtype), ClipInPlaceMLP(upstreams)


def _states(*shape, dtype=torch.float32):
    return torch.randn(*shape, 24, generator=torch.Generator().manual_seed(0)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 77), (1, 33), (70,), (0,)], ids=str)
def test_values_are_upstreams(shape, dtype):
    upstreams, ours = _mlps(dtype=dtype)
    states = _states(*shape, dtype=dtype)
    kept = states.clone()
    assert torch.equal(ours(states), upstreams(states))
    assert torch.equal(states, kept)


@torch.no_grad()
def test_values_of_another_layout():
    upstreams, ours = _mlps()
    states = _states(40, 77).transpose(0, 1)
    assert torch.equal(ours(states), upstreams(states))


@torch.no_grad()
def test_traced_and_compiled():
    upstreams, ours = _mlps()
    states = _states(3, 70)
    assert torch.equal(torch.jit.trace(ours, _states(2, 40))(states), upstreams(states))
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(states), upstreams(states))


def test_gradients_are_upstreams():
    gradients = []
    for mlp in _mlps():
        mlp.zero_grad()
        mlp(_states(2, 40)).square().sum().backward()
        gradients.append([weights.grad.clone() for weights in mlp.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("layer", ["fc1", "activation_fn"])
def test_what_a_hook_has_seen_remains(layer):
    seen = []
    for mlp in _mlps():
        handle = getattr(mlp, layer).register_forward_hook(lambda _, given, result: seen.append((*given, result)))
        mlp(_states(40))
        handle.remove()
    assert len(seen) == 2 and all(torch.equal(*pair) for pair in zip(*seen, strict=True))


@torch.no_grad()
def test_what_a_hook_of_all_modules_has_seen_remains():
    seen = []
    handle = register_module_forward_hook(lambda _, given, result: seen.append((result, result.clone())) and None)
    _mlps()[1](_states(40))
    handle.remove()
    assert len(seen) == 4 and all(torch.equal(*pair) for pair in seen)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, layer", [("activation_fn", torch.nn.GELU()), ("fc1", torch.nn.Identity()), ("fc1", torch.nn.LazyLinear(96))]
)
def test_layers_that_replace_upstreams(name, layer):
    upstreams, ours = _mlps(width=24 if isinstance(layer, torch.nn.Identity) else 96)
    for mlp in (upstreams, ours):
        setattr(mlp, name, layer)
    states = _states(40)
    kept, expected = states.clone(), upstreams(states)
    assert torch.equal(ours(states), expected) and torch.equal(states, kept)


@torch.no_grad()
def test_mapped_over_a_batch():
    upstreams, ours = _mlps()
    states = _states(3, 40)
    assert torch.equal(torch.func.vmap(ours)(states), torch.func.vmap(upstreams)(states))


@torch.no_grad()
def test_memory():
    upstreams, ours = _mlps(width=512)
    states = torch.ones(1, 512, 24)
    used = [activation_bytes(lambda each=each: each(states), states.device) for each in (ours, upstreams)]
    wide = 512 * 512 * 4
    assert used[0] < 1.2 * wide and used[1] > 2 * wide


@torch.no_grad()
def test_the_tower_has_it_and_copies_keep_it():
    model = LLAVA.model()
    file = io.BytesIO()
    torch.save(model.model.vision_tower, file)
    file.seek(0)
    towers = model.model.vision_tower, copy.deepcopy(model.model.vision_tower), torch.load(file, weights_only=False)
    for tower in towers:
        mlps = [layer.mlp for layer in tower.encoder.layers]
        assert mlps and all(type(each) is ClipInPlaceMLP for each in mlps)
