"""SAM's image encoder with the bias in parts: the stock encoder's results in less memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SamModel

from tests.models.llava_lite.tiny import tiny_grounding_model, tiny_sam_config
from transformers_litelvlm.models import sam_attention
from transformers_litelvlm.models.sam_attention import SamVisionHeadwiseAttention, use_headwise_attention


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def encoders(**changes):
    """A stock encoder with random relative positions, and ours with the same weights."""
    torch.manual_seed(0)
    config = tiny_sam_config()
    config.vision_config.update(changes)
    stock, ours = SamModel(config).vision_encoder.eval(), SamModel(config).vision_encoder.eval()
    for name, parameter in stock.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    use_headwise_attention(ours)
    ours.load_state_dict(stock.state_dict())
    return stock, ours.eval()


@pytest.mark.parametrize("largest", [1, 64 * 64 * 3, 1 << 26])
@pytest.mark.parametrize("batch", [1, 3])
def test_features_are_the_stock_ones(monkeypatch, largest, batch):
    monkeypatch.setattr(sam_attention, "LARGEST_BIAS", largest)
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


def test_the_bias_exists_in_parts_only(monkeypatch):
    monkeypatch.setattr(sam_attention, "LARGEST_BIAS", 64 * 64)  # one head at a time of the layer over 8 x 8 patches
    stock, ours = encoders(hidden_size=32, num_attention_heads=8)
    states, sizes = torch.randn(1, 8, 8, 32), []
    with torch.no_grad():
        for encoder in (stock, ours):
            with LargestTensor() as largest:
                encoder.layers[1].attn(states)
            sizes.append(largest.elements)
    assert sizes == [8 * 64 * 64, max(64 * 64, 3 * 64 * 32)]


def test_gradients_are_the_stock_ones():
    stock, ours = encoders()
    pixels = torch.randn(1, 3, 32, 32)
    for encoder in (stock, ours):
        encoder(pixels)[0].square().mean().backward()
    for (name, theirs), (_, own) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_a_grounding_model_uses_it_and_upstreams_class_stays_stock():
    layers = tiny_grounding_model().mask_model.vision_encoder.layers
    assert all(type(layer.attn) is SamVisionHeadwiseAttention for layer in layers)
    assert all(
        type(layer.attn) is not SamVisionHeadwiseAttention
        for layer in SamModel(tiny_sam_config()).vision_encoder.layers
    )
