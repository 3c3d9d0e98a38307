"""Models under autocast, as `Trainer(bf16=True)` runs them: layers in half precision, scores in float32."""

import pytest
import torch

from tests.support.families import MODELS
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from tests.support.matrix import matrix
from transformers_litelvlm import PruningConfig


CASES = [(family, name, options) for family in MODELS for name, options in every_case(family)]


def test_off_is_upstream_bit_for_bit(family, model):
    stock = family.stock(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = stock(**family.inputs()).logits
        assert torch.equal(model(**family.lite_inputs()).logits, expected)
    assert expected.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "family, name, options",
    matrix(CASES, lambda case: case[0].is_quick),
    ids=[f"{family.name}-{name}-{options}" for family, name, options in CASES],
)
def test_every_method(family, name, options):
    """A padded batch, forward and backward."""
    model = family.model(NUM_LAYERS).train()
    model.config.pruning_config = PruningConfig(method=name, method_options=options, budget=BUDGET)
    inputs = family.lite_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, labels=inputs["input_ids"])
    output.loss.backward()
    assert output.loss.isfinite() and output.logits.isfinite().all()
    assert output.retained_indices is not None
    for modality in family.modalities:
        features = getattr(output, f"{modality}_outputs")
        for field in ("similarity", "context_scores", "merge_weights"):
            values = getattr(features, field)
            values = list(values) if values is not None else []
            assert {value.dtype for value in values if value is not None} <= {torch.float32}, field
