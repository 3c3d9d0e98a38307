"""Log-probabilities as reinforcement learning asks for them: prompts padded on the left, completions on the right."""

import pytest
import torch

from tests.support.families import KINDS, MODELS, TOY
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from tests.support.matrix import matrix
from tests.support.methods import ONE_OF_EACH_KIND
from transformers_litelvlm import PruningConfig


COMPLETIONS = ([40, 41, 42, 43], [44], [45, 46])
CASES = [
    (family, name, options)
    for family in MODELS
    for name, options in every_case(family)
    if family in (*KINDS, TOY) or name in ONE_OF_EACH_KIND
]
_MODELS: dict = {}


def case_name(value):
    return getattr(value, "name", str(value))


def log_probabilities(model, inputs, completion, length, pruning):
    """Of the tokens of a completion, the last `length` columns of the prompt."""
    logits = model(**inputs, pruning_config=pruning, logits_to_keep=length + 1).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, completion[..., None])[..., 0]


def with_completion(inputs, ids, mask):
    further = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": torch.zeros_like(ids)}
    return {
        name: torch.cat((value, further[name]), dim=1) if name in further else value for name, value in inputs.items()
    }


@pytest.mark.parametrize(
    "family, name, options",
    matrix(CASES, lambda case: case[1] in ONE_OF_EACH_KIND and case[0].is_quick),
    ids=case_name,
)
@torch.no_grad()
def test_log_probabilities_of_a_batch_are_those_of_its_rows(family, name, options):
    if family.name not in _MODELS:
        _MODELS[family.name] = family.model(NUM_LAYERS).eval()
    model = _MODELS[family.name]
    pruning = PruningConfig(method=name, method_options=options, budget=BUDGET)
    length = max(map(len, COMPLETIONS))
    ids = torch.tensor([[*row, *[3] * (length - len(row))] for row in COMPLETIONS])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in COMPLETIONS])
    together = log_probabilities(model, with_completion(family.lite_inputs(), ids, mask), ids, length, pruning)
    for row, completion in enumerate(COMPLETIONS):
        own = torch.tensor([completion])
        inputs = with_completion(family.row(row), own, torch.ones_like(own))
        alone = log_probabilities(model, inputs, own, len(completion), pruning)
        torch.testing.assert_close(together[row, : len(completion)], alone[0], atol=1e-5, rtol=0)
