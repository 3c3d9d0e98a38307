"""No method of any family changes a class, a function or a result of upstream."""

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from tests.support.families import FAMILIES, family_params
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from tests.support.fresh_python import UPSTREAM_SNAPSHOT, run_python
from transformers_litelvlm import PruningConfig


RUN_EVERY_METHOD = """
from tests.support.families import FAMILIES
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from transformers_litelvlm import PruningConfig
models = {family.name: family.model(NUM_LAYERS) for family in FAMILIES}
before = snapshot()
for family in FAMILIES:
    model, inputs = models[family.name], family.lite_inputs()
    for name, options in dict(every_case(family)).items():
        model.config.pruning_config = PruningConfig(method=name, budget=BUDGET, method_options=options)
        model.generate(**inputs, max_new_tokens=2)
after = snapshot()
print(json.dumps({"size": len(before), "changed": [key for key in before if before[key] != after.get(key)]}))
"""


@pytest.mark.slow
def test_no_upstream_class_or_function_is_altered_by_any_method():
    setup = UPSTREAM_SNAPSHOT.partition("import torch\nrandom_state")[0]
    result = run_python(setup + RUN_EVERY_METHOD)
    assert result["size"] > 1000 and result["changed"] == []


@pytest.mark.parametrize("family", family_params(FAMILIES), ids=lambda family: family.name)
@torch.no_grad()
def test_stock_outputs_do_not_change(family):
    """A stock model that is there all the time gives the same bits before and after every method ran."""
    model, inputs = family.model(NUM_LAYERS), family.lite_inputs()
    stock, given = family.stock(model), family.inputs()
    before = stock(**given).logits
    for name, options in dict(every_case(family)).items():
        model.config.pruning_config = PruningConfig(method=name, budget=BUDGET, method_options=options)
        model.generate(**inputs, max_new_tokens=2)
    assert torch.equal(stock(**given).logits, before)


@pytest.mark.parametrize("family", family_params(FAMILIES), ids=lambda family: family.name)
def test_continuous_batching_is_upstreams(family):
    """`generate_batch` takes prompts of text, and brings a cache that says neither its length nor its layers."""
    if family.is_recurrent:
        pytest.skip("upstream has no pages for recurrent layers")

    def answers(model):
        outputs = model.generate_batch(
            [[5, 6, 7], [9, 8]],
            GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0),
            ContinuousBatchingConfig(page_size=16, num_blocks=16, max_batch_tokens=64),
        )
        return [each.generated_tokens for each in outputs.values()]

    model = family.model().eval()
    expected = answers(family.stock(model).eval())
    assert [len(tokens) for tokens in expected] == [4, 4]
    for method, budget in (("litelvlm", None), ("litelvlm", BUDGET), ("fastv", BUDGET)):
        model.config.pruning_config = PruningConfig(method=method, budget=budget)
        assert answers(model) == expected
