"""The contract of a mask decoder: another one is one file, and the models find it by the type of `mask_config`."""

import pytest
import torch

from tests.support.mask_cases import PICTURES, SENTENCES
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_grounding_model, tiny_processor
from tests.support.toy_masks import ToyMaskConfig, ToyMaskDecoder
from transformers_litelvlm import AutoModelForReferringSegmentation, LlavaLiteForReferringSegmentation, PruningConfig
from transformers_litelvlm.models.masks.decoder import mask_decoder_class


@pytest.fixture(scope="module")
def model():
    config = tiny_grounding_model().config
    config.mask_config = ToyMaskConfig()
    return asymmetric_(LlavaLiteForReferringSegmentation(config))


def test_a_new_decoder_serves_every_route(model, tmp_path):
    """`segment`, its steps, and a checkpoint that was saved and loaded again."""
    assert isinstance(model.mask_decoder, ToyMaskDecoder)
    inputs = tiny_processor().segmentation_inputs(PICTURES, SENTENCES)
    pruning = PruningConfig(budget=6)
    output = model.segment(**inputs, pruning_config=pruning)
    heights = [tuple(masks.shape) for masks in output.mask_logits]
    assert heights == [(3, 40, 60), (1, 50, 30)] and output.retained_indices.shape == (2, 6)
    with torch.no_grad():
        read = model.read(inputs, settings=model.model.settings(pruning))
        expected = torch.einsum(
            "btc,bchw->bthw", output.seg_embeddings[:, :, 0], model.mask_model(inputs["mask_pixel_values"])
        )
        torch.testing.assert_close(output.pred_masks, expected)
        again = model.decode(read, inputs, model.encode_for_masks(inputs))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForReferringSegmentation.from_pretrained(tmp_path).eval()
    reloaded = loaded.segment(**inputs, pruning_config=pruning)
    for first, second, third in zip(output.mask_logits, again.mask_logits, reloaded.mask_logits, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


def test_a_kind_without_a_decoder_lists_those_there_are():
    config = tiny_grounding_model().config.vision_config
    with pytest.raises(ValueError, match="'clip_vision_model'; there are mask decoders for .*sam, .*sam2_video"):
        mask_decoder_class(config)
