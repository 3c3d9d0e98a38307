"""Methods inside the language model: what is special to LLaVA. The rest is in test_families_layer_methods.py."""

import pytest
import torch
from transformers import (
    AutoModel,
    MistralConfig,
    Qwen2Config,
)

from tests.support.families import LLAVA
from tests.support.family_cases import BUDGET, LAYER_CASES, NUM_LAYERS
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import SEG_TOKEN, prompt, random_guidance, random_pixels, tiny_config
from transformers_litelvlm import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    PruningConfig,
)
from transformers_litelvlm.models.decoder.loop import prefill, whole_prompt
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning import build_pruner


ROWS = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12])


METHODS = [(name, options) for family, name, options in LAYER_CASES if family is LLAVA]
METHOD = pytest.mark.parametrize("name, options", METHODS)


def four_layers(**kwargs):
    config = tiny_config(**kwargs)
    config.text_config.num_hidden_layers = NUM_LAYERS
    return config


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(four_layers()))


def set_pruning(model, name, options, **kwargs):
    model.config.pruning_config = PruningConfig(**{"method": name, "budget": BUDGET, **kwargs}, method_options=options)


def inputs():
    ids, mask = prompt(*ROWS)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(3)}


@METHOD
def test_segment(name, options):
    model = asymmetric_(LlavaLiteForReferringSegmentation(four_layers(with_masks=True)))
    guidance = random_guidance(2, 1)
    ids, mask = prompt([1, 5, "image", 7, SEG_TOKEN, 8], [1, "image", 9, 10, SEG_TOKEN, 11, 12])
    given = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_pixels(2),
        "guidance_input_ids": guidance[0],
        "guidance_attention_mask": guidance[1],
        "mask_pixel_values": random_pixels(2, seed=1),
        "original_sizes": torch.tensor([[20, 30], [32, 32]]),
        "reshaped_input_sizes": torch.tensor([[21, 32], [32, 32]]),
    }
    set_pruning(model, name, options)
    output = model.segment(**given)
    assert [masks.shape for masks in output.masks] == [(1, 20, 30), (1, 32, 32)]
    assert torch.equal(output.retained_indices, model.model(**given_for_model(given)).retained_indices)
    # The states before [SEG] are found by their column in the whole prompt.
    states = model.model(**given_for_model(given)).last_hidden_state
    columns = (ids == SEG_TOKEN).int().argmax(dim=1) - 1
    expected = model.text_hidden_fcs(states[torch.arange(2), columns])
    torch.testing.assert_close(output.seg_embeddings[:, 0, 0], expected)
    answered = model.generate_masks(**{**given, "attention_mask": mask}, max_new_tokens=3)
    assert answered.sequences.shape[0] == 2
    # Features encoded once, as sweeps use them.
    features = model.model.select(model.encode(given), Guidance())
    swept = model.segment(**{**given, "pixel_values": None}, mm_encoder_outputs={"image": features})
    torch.testing.assert_close(swept.pred_masks, output.pred_masks, atol=1e-5, rtol=1e-5)


def given_for_model(given):
    return {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values")}


@pytest.mark.parametrize("config_class", [MistralConfig, Qwen2Config])
@torch.no_grad()
def test_other_decoders(config_class):
    """With nothing dropped, the loop is the stock decoder; sliding windows are refused."""
    sizes = {"vocab_size": 9, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    config = config_class(
        **sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=None, use_sliding_window=False
    )
    decoder = asymmetric_(AutoModel.from_config(config))
    embeds = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(0))
    is_visual = torch.zeros(2, 12, dtype=torch.bool)
    is_visual[:, 3:9] = True
    prompt, pruner = whole_prompt(embeds, is_visual, [6, 6]), build_pruner("fastv", layer=1)
    settings = PruningSettings(pruner, 6, None, True, True)
    output = prefill(decoder, settings, prompt, [6, 6])
    torch.testing.assert_close(output.last_hidden_state, decoder(inputs_embeds=embeds).last_hidden_state)
    assert (prefill(decoder, settings, prompt, [2, 2]).last_hidden_state[:, 3:9] == 0).any(-1).sum() == 8
    decoder.config.sliding_window = 4
    with pytest.raises(ValueError, match="sliding_window=4"):
        prefill(decoder, settings, prompt, [2, 2])
