"""`generate` token by token against `forward` without a cache, for every family and method.

An argument that upstream renames, such as the cache's, and that our `forward` then does not see, shows here.
"""

import pytest
import torch

from tests.support.families import MODELS
from tests.support.family_cases import BUDGET, LAYER_CASES, NUM_LAYERS, is_defined
from tests.support.matrix import matrix
from tests.support.methods import EVERY, ONE_OF_EACH_KIND
from transformers_litelvlm import PruningConfig, get_pruner, list_pruners
from transformers_litelvlm.configuration_pruning import Built
from transformers_litelvlm.pruning.layers import LayerPruner


NUM_STEPS = 24


TOKEN_CASES = [
    (family, name, options)
    for family in MODELS
    for name, options in dict(reversed(EVERY)).items()
    if is_defined(family, name)
]
# Tokens that also leave the caches of earlier layers have no counterpart in a loop without a cache; for these methods
# test_families_layer_methods.py compares every decoding step with stock layers and masks.
CASES = TOKEN_CASES + [case for case in LAYER_CASES if not get_pruner(case[1]).prunes_earlier_caches]


class Repeating:
    """Has a method inside the language model choose what it chose before.

    It reads the text behind the images, which has grown: what it chose for the prompt counts.
    """

    def __init__(self, monkeypatch, pruning):
        pruner, self.chosen, self.again = pruning.build_pruner(), [], None

        class Repeated(type(pruner)):
            def select(_, evidence, budget):
                if self.again is not None:
                    return next(self.again)
                self.chosen.append(super().select(evidence, budget))
                return self.chosen[-1]

        repeated = Repeated(**pruning.method_options)
        if isinstance(pruner, LayerPruner):
            monkeypatch.setattr(PruningConfig, "build", lambda config: Built(repeated, None, ({}, None)))

    def from_here_on(self):
        self.again = iter(self.chosen)


def placeholders(model):
    """Tokens that a model with random weights must not write: as part of a prompt, each would ask for an image."""
    ids = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
    return [number for number in ids if number is not None]


@torch.no_grad()
def choices_without_a_cache(model, inputs, ids, repeating):
    """What a loop of `forward` without a cache writes, if it wrote the same before: all of its steps in one call. No
    token sees a later one."""
    further = ids.shape[1] - inputs["input_ids"].shape[1] - 1
    inputs = {**inputs, "input_ids": ids[:, :-1]}
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, further), value=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, further))
    repeating.from_here_on()
    logits = model(**inputs, use_cache=False).logits[:, -further - 1 :]
    logits[..., placeholders(model)] = float("-inf")
    return logits.argmax(dim=-1)


_MODELS: dict = {}


@pytest.mark.parametrize(
    "family, name, options",
    matrix(CASES, lambda case: case[1] in ONE_OF_EACH_KIND and case[0].is_quick),
    ids=[f"{f.name}-{n}-{o}" for f, n, o in CASES],
)
def test_generate_is_a_loop_of_forward(family, name, options, monkeypatch):
    model = _MODELS.setdefault(family.name, None) or family.model(NUM_LAYERS)
    _MODELS[family.name] = model
    pruning = model.config.pruning_config = PruningConfig(method=name, budget=BUDGET, method_options=options)
    inputs = family.lite_inputs()
    repeating = Repeating(monkeypatch, pruning)
    generated = model.generate(
        **inputs,
        max_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=placeholders(model),
    )
    new = generated[:, -NUM_STEPS:]
    assert new.tolist() == choices_without_a_cache(model, inputs, generated, repeating).tolist()
    assert new.unique().numel() > 3  # not one token all the time, which any cache would give


def test_every_method_is_exercised():
    for family in MODELS:
        exercised = {name for other, name, _ in CASES if other is family}
        others = {name for name in list_pruners() if getattr(get_pruner(name), "prunes_earlier_caches", False)}
        if family.is_recurrent:
            others = {name for name in list_pruners() if issubclass(get_pruner(name), LayerPruner)}
        assert exercised | others == {name for name in list_pruners() if is_defined(family, name)}
