"""What `generate` says about the tokens that were kept, and what is said where none was cut; for every family."""

import logging

import pytest
import torch

from tests.support.families import MODELS, family_params
from tests.support.family_cases import BUDGET, NUM_LAYERS, need_methods_inside
from transformers_litelvlm import PrunedGenerateBeamOutput, PrunedGenerateOutput, PruningConfig
from transformers_litelvlm.models.outputs import PrunedImageFeatures, deepstack_of


SETTINGS = {
    "before": PruningConfig(method="divprune", budget=5),
    "inside": PruningConfig(method="fastv", budget=5),
    "both": PruningConfig(method="divprune", budget=9, then={"method": "fastv", "budget": 5}),
}
WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
}
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 2}
_MODELS: dict = {}


@pytest.fixture(params=family_params(MODELS), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    if family.name not in _MODELS:
        _MODELS[family.name] = family.model(NUM_LAYERS).eval()
    return _MODELS[family.name]


def generate(model, inputs, **how):
    return model.generate(**inputs, return_dict_in_generate=True, **{**GREEDY, **how})


def listed(rows):
    return None if rows is None else [row.tolist() for row in rows]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", SETTINGS)
def test_generate_says_what_forward_says(family, model, where, way):
    """Of the images and videos as they were passed, whatever number of sequences each prompt gets."""
    if where != "before":
        need_methods_inside(family)
    inputs, pruning = family.lite_inputs(), SETTINGS[where]
    expected = model(**inputs, pruning_config=pruning)
    output = generate(model, inputs, pruning_config=pruning, **WAYS[way])
    assert type(output) is (PrunedGenerateBeamOutput if way == "beams" else PrunedGenerateOutput)
    assert torch.equal(output.sequences, model.generate(**inputs, pruning_config=pruning, **GREEDY)) or way != "greedy"
    for modality in model.model.modalities:
        own, theirs = (getattr(of, f"{modality}_outputs") for of in (output, expected))
        assert own.num_visual_tokens == theirs.num_visual_tokens
        assert listed(own.retained_indices) == listed(theirs.retained_indices)
        assert all(len(kept) == 5 for kept in own.retained_indices)
        stages = [[listed(stage) for stage in of.retained_stages or ()] for of in (own, theirs)]
        assert stages[0] == stages[1] and bool(stages[0]) == (where != "before")
    assert output.retained_indices is output.image_outputs.retained_indices


@torch.no_grad()
@pytest.mark.parametrize("method", [None, "litelvlm", "fastv"])
def test_nothing_was_cut(family, model, method):
    if method == "fastv":
        need_methods_inside(family)
    pruning = None if method is None else PruningConfig(method=method, budget=family.largest_budget)
    inputs = family.lite_inputs()
    for way, cls in ((WAYS["greedy"], PrunedGenerateOutput), (WAYS["beams"], PrunedGenerateBeamOutput)):
        output = generate(model, inputs, pruning_config=pruning, **way)
        assert type(output) is cls and output.retained_indices is None and output.image_outputs is None
        assert torch.equal(output.sequences, generate(model, inputs, **way).sequences)


@torch.no_grad()
def test_features_that_were_encoded_before(family, model):
    """Expanded for beams without pixels to count."""
    need_methods_inside(family)
    pruning, inputs = SETTINGS["inside"], family.lite_inputs()
    expected = generate(model, inputs, pruning_config=pruning, num_beams=2)
    settings, base = model.model.settings(pruning), model.model
    features = {name: base.media_features(name, inputs, settings) for name in base.modalities}
    given = {name: value for name, value in inputs.items() if name not in base.pixels_of.values()}
    output = generate(model, {**given, "mm_encoder_outputs": features}, pruning_config=pruning, num_beams=2)
    assert listed(output.retained_indices) == listed(expected.retained_indices)


@torch.no_grad()
@pytest.mark.parametrize("then", [None, "ivc_prune"])
@pytest.mark.parametrize("left_out", [None, 2])
def test_what_is_kept_whole_beside_what_is_merged(family, model, left_out, then):
    """Images, and parts of a video: weights say so, and what DeepStack adds is merged as the visual tokens are."""
    budget = BUDGET if left_out is None else family.largest_budget - left_out
    pruning, inputs, merged = PruningConfig(method="trim", budget=budget), family.lite_inputs(), 0
    if then is not None:
        need_methods_inside(family)
        pruning.then = {"method": then, "method_options": {"layer": 2}, "retention_ratio": 0.5}
    output = model(**inputs, pruning_config=pruning)
    for modality in model.model.modalities:
        kept = getattr(output, f"{modality}_outputs")
        if not isinstance(kept, PrunedImageFeatures) or max(kept.num_visual_tokens) <= budget:
            continue
        parts = zip(kept.merge_weights, kept.retained_indices, kept.num_visual_tokens, strict=True)
        for weights, indices, number in parts:
            assert weights.shape == (len(indices), number)
            torch.testing.assert_close(weights.sum(1), torch.ones(len(indices)))
            merged += int((weights.count_nonzero(1) > 1).sum())
        everything = model.model.media_features(modality, inputs, model.model.settings({"budget": None}))
        for layer, found in zip(deepstack_of(everything), deepstack_of(kept) if then is None else []):
            for rows, weights, added in zip(layer, kept.merge_weights, found, strict=True):
                torch.testing.assert_close(added, weights @ rows, atol=1e-5, rtol=1e-4)
    assert merged or then is not None


# ---- a budget that cuts nothing -------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_budget_above_all_tokens_is_said_once(family, model, caplog):
    budget, largest = 1000, family.largest_budget
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers_litelvlm").propagate = True
        for method in ("divprune", "random" if family.is_recurrent else "fastv"):
            pruning = PruningConfig(method=method, budget=budget)
            model(**family.lite_inputs(), pruning_config=pruning)
            generate(model, family.lite_inputs(), pruning_config=pruning)
        model(**family.lite_inputs(), pruning_config=PruningConfig(budget=largest, method="divprune"))
    said = [record.getMessage() for record in caplog.records if "prunes nothing" in record.getMessage()]
    assert sum(f"budget of {budget} is above the number of visual tokens, " in message for message in said) == 1
    # As many as there are is not above; beside a video with so many, images may have fewer.
    assert not any(f"tokens, {largest}:" in message for message in said if f"of {largest} is" in message)
    assert int(said[0].split("tokens, ")[1].split(":")[0]) <= largest
