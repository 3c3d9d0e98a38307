"""SAM's image encoder in chunks: the stock encoder's results in less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SamModel

from tests.support.sam_encoders import encoders
from tests.support.tiny_llava import tiny_grounding_model, tiny_sam_config
from transformers_litelvlm.models.masks import sam_in_chunks
from transformers_litelvlm.models.masks.sam_in_chunks import SamVisionChunkedAttention


@pytest.fixture(params=["in cache", "by kernel"])
def largest_chunk(request, monkeypatch):
    """Sets how large a chunk may be, of both ways: that of CPUs, and that of GPUs, which runs on CPUs too."""
    if request.param == "by kernel":
        monkeypatch.setattr(sam_in_chunks, "_mix_in_cache", sam_in_chunks._mix_by_kernel)
    return lambda size: monkeypatch.setattr(sam_in_chunks, "LARGEST_CHUNK_CPU", size)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


@pytest.mark.parametrize("largest", [1, 64 * 7, 64 * 64 * 3, 1 << 26])  # single queries, 7, heads, all
@pytest.mark.parametrize("batch", [1, 3])
def test_features_are_the_stock_ones(largest_chunk, largest, batch):
    largest_chunk(largest)
    stock, ours = encoders()
    pixels = torch.randn(batch, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels)[0], stock(pixels)[0], atol=1e-6, rtol=1e-5)


def test_without_relative_positions():
    stock, ours = encoders(use_rel_pos=False)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels)[0], stock(pixels)[0], atol=1e-6, rtol=1e-5)


def test_relative_positions_are_resized_as_upstream_does():
    stock, ours = encoders()
    states = torch.randn(1, 6, 6, 16)  # the layer over the whole picture was made for 8 x 8
    with torch.no_grad():
        torch.testing.assert_close(ours.layers[1].attn(states)[0], stock.layers[1].attn(states)[0])


@pytest.mark.parametrize("largest", [64 * 64, 16 * 64])  # a head of the layer over 8 x 8 patches, 16 of its queries
def test_logits_exist_in_chunks_only(largest_chunk, largest):
    largest_chunk(largest)
    stock, ours = encoders(hidden_size=32, num_attention_heads=8)
    states, sizes = torch.randn(1, 8, 8, 32), []
    with torch.no_grad():
        for encoder in (stock, ours):
            with LargestTensor() as found:
                encoder.layers[1].attn(states)
            sizes.append(found.elements)
    assert sizes == [8 * 64 * 64, max(largest, 3 * 64 * 32)]


def test_channels_stay_side_by_side_in_memory():
    """In the stock encoder they do not, and norms and MLPs copy."""
    pixels, contiguous = torch.randn(1, 3, 32, 32), []
    for encoder in encoders():
        encoder.layers[-1].register_forward_pre_hook(lambda _, args: contiguous.append(args[0].is_contiguous()))
        with torch.no_grad():
            encoder(pixels)
    assert contiguous == [False, True]


@pytest.mark.parametrize("patches", [1, 5, 64, 1000])
def test_mlp_in_chunks(monkeypatch, patches):
    monkeypatch.setattr(sam_in_chunks, "MLP_CHUNK_CPU", patches)
    stock, ours = encoders()
    states = torch.randn(2, 8, 8, 16)
    sizes = []
    ours.layers[0].mlp.lin1.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        torch.testing.assert_close(ours.layers[0].mlp(states), stock.layers[0].mlp(states))
    assert max(sizes) == min(patches, 128) and sum(sizes) == 128


def test_gradients_are_the_stock_ones(largest_chunk):
    largest_chunk(64 * 7)
    stock, ours = encoders()
    pixels = torch.randn(1, 3, 32, 32)
    for encoder in (stock, ours):
        encoder(pixels)[0].square().mean().backward()
    for (name, theirs), (_, own) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_grounding_model_uses_it_and_upstreams_class_stays_stock():
    layers = tiny_grounding_model().mask_model.vision_encoder.layers
    assert all(type(layer.attn) is SamVisionChunkedAttention for layer in layers)
    assert all(
        type(layer.attn) is not SamVisionChunkedAttention
        for layer in SamModel(tiny_sam_config()).vision_encoder.layers
    )
