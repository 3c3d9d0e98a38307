"""torch.compile: no graph break and, with a budget, no recompilation from one picture and sentence to the next.

The backend is "eager": breaks and recompilations are a matter of tracing, which every backend shares.
"""

import pytest
import torch
from transformers.utils.import_utils import is_torch_greater_or_equal

from tests.support.matrix import matrix
from tests.support.methods import ONE_OF_EACH_KIND
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import prompt, random_guidance, random_pixels, tiny_config
from transformers_litelvlm import LlavaLiteForConditionalGeneration
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.pruning import get_pruner, list_pruners
from transformers_litelvlm.pruning.layers import LayerPruner


pytestmark = pytest.mark.skipif(
    not is_torch_greater_or_equal("2.13"),
    reason="torch 2.6 cannot trace transformers' own decorators; tried from 2.13",
)

BUDGET = 5
# "random" draws from a generator of its own, which cannot be made inside a graph.
METHODS = [
    name for name in list_pruners() if name not in ("none", "random") and not issubclass(get_pruner(name), LayerPruner)
]


@pytest.fixture(autouse=True)
def no_recompilation():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def model_with(method):
    model = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))
    model.config.pruning_config = model.config.pruning_config.replace(method=method, budget=BUDGET)
    return model


@torch.no_grad()
@pytest.mark.parametrize("method", matrix(METHODS, ONE_OF_EACH_KIND.__contains__))
def test_the_selector_is_one_graph(method):
    base = model_with(method).model

    def select(pixel_values, guidance_input_ids, guidance_attention_mask):
        encoded = base.encode("image", {"pixel_values": pixel_values})
        output = base.select(encoded, Guidance(guidance_input_ids, guidance_attention_mask))
        return output.retained_indices, torch.stack(output.pooler_output)

    compiled = torch.compile(select, fullgraph=True, backend="eager")
    kept = []
    for seed in range(3):
        pixels = random_pixels(2, seed=seed)
        guidance = random_guidance(2, 3, seed=seed)
        indices, features = compiled(pixels, *guidance)
        expected = select(pixels, *guidance)
        assert torch.equal(indices, expected[0])
        torch.testing.assert_close(features, expected[1], atol=1e-5, rtol=1e-5)
        kept.append(indices)
    # Different pictures were seen, where the picture matters at all.
    assert method == "uniform" or not torch.equal(kept[0], kept[1])


@torch.no_grad()
@pytest.mark.parametrize("policy", [("reference", "compact"), ("raster", "original")])
def test_the_language_model_is_one_graph(policy):
    order, positions = policy
    model = model_with("litelvlm")
    model.config.pruning_config = model.config.pruning_config.replace(token_order=order, position_ids=positions)

    def inputs(seed):
        ids, mask = prompt([1, 5 + seed, "image", 6, 7, 8], [1, 9, "image", 10, 11 + seed])
        guidance_ids, guidance_mask = random_guidance(2, 2, seed=seed)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": random_pixels(2, seed=seed),
            "guidance_input_ids": guidance_ids,
            "guidance_attention_mask": guidance_mask,
        }

    expected = [model(**inputs(seed)).logits for seed in range(3)]
    model.model.language_model.compile(fullgraph=True, backend="eager")
    for seed in range(3):
        torch.testing.assert_close(model(**inputs(seed)).logits, expected[seed], atol=1e-5, rtol=1e-5)
    # Another budget is another shape: that the check can fail.
    model.config.pruning_config = model.config.pruning_config.replace(budget=BUDGET + 1)
    with pytest.raises(torch._dynamo.exc.RecompileError):
        model(**inputs(0))
