"""The models on a device that is not the CPU: nothing is left behind, and results are those of the CPU."""

import copy

import pytest
import torch
from transformers import AutoProcessor

from tests.support.families import FAMILIES, KINDS, LLAVA, QWEN2_5_VL, family_params, picture
from tests.support.family_cases import BUDGET, NUM_LAYERS, can_reach, every_case, is_defined, need_methods_inside
from tests.support.mask_cases import PICTURES, QUICK_DIALOGUES, SENTENCES, masks_case
from tests.support.matrix import matrix
from tests.support.methods import LAYER_METHODS, METHODS, ONE_OF_EACH_KIND, RAGGED
from tests.support.second_device import DEVICE, other_device
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.models.guidance.clip import bilinear_weights
from transformers_litelvlm.models.guidance.encoded import rows_of
from transformers_litelvlm.pruning import get_pruner
from transformers_litelvlm.pruning.layers import LayerPruner


def runs(family, name, options):
    if issubclass(get_pruner(name), LayerPruner):
        return can_reach(family, name, options)
    return is_defined(family, name)


# The first options of each method, and those that let the picture decide.
FIRST = dict(reversed(METHODS))
CASES = [
    (family, name, options)
    for family in FAMILIES
    for name, options in [*FIRST.items(), *RAGGED, *LAYER_METHODS]
    # With other towers, methods compute the same; of families with experts, nothing else is their own.
    if runs(family, name, options)
    and (family in (LLAVA, QWEN2_5_VL) or name == "litelvlm" or family in KINDS and name in ONE_OF_EACH_KIND)
]


def on_both(model, inputs, call, atol=2e-5):
    """The tensors that `call(model, inputs)` gives are the same on the CPU and on the other device."""
    if "moe" in model.config.model_type:
        # Upstream's kernel for experts counts tokens with a function that PyTorch has on CUDA alone.
        model.set_experts_implementation("eager")
    with torch.no_grad():
        expected = call(model, inputs)
        with other_device():
            there = copy.deepcopy(model).to(DEVICE)
            actual = call(there, {name: value.to(DEVICE) for name, value in inputs.items()})
            assert all(value.device == DEVICE for value in actual)
            actual = [value.cpu() for value in actual]
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)


@pytest.fixture(scope="module")
def models():
    return {family.name: family.model(NUM_LAYERS) for family in FAMILIES}


@pytest.mark.parametrize(
    "family, name, options",
    matrix(CASES, lambda case: case[1] in ONE_OF_EACH_KIND and case[0].is_quick),
    ids=[f"{f.name}-{n}-{o}" for f, n, o in CASES],
)
def test_every_method(models, family, name, options):
    model = models[family.name]
    model.config.pruning_config = PruningConfig(budget=BUDGET, method=name, method_options=options)

    def call(model, inputs):
        output = model(**inputs)
        indices = [getattr(output, f"retained_{modality}indices", None) for modality in ("", "video_")]
        return [output.logits, *[row for rows in indices if rows is not None for row in rows]]

    # Recurrent layers add up what is rounded, in stock models too.
    on_both(model, family.lite_inputs(), call, atol=5e-4 if family.is_recurrent else 2e-5)


GENERATION = [
    ("none", {}),
    ("litelvlm", {}),
    ("litelvlm", {"num_beams": 3}),
    ("litelvlm", {"cache_implementation": "static"}),
    ("fastv", {}),
]


@pytest.mark.parametrize("family", family_params(KINDS), ids=lambda family: family.name)
@pytest.mark.parametrize("method, how", GENERATION, ids=str)
def test_generation(family, method, how):
    if method == "fastv":
        need_methods_inside(family)
    model = family.model()
    options = {"layer": 1} if method == "fastv" else {}
    model.config.pruning_config = PruningConfig(budget=BUDGET, method=method, method_options=options)
    how = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, **how}
    on_both(model, family.lite_inputs(), lambda model, inputs: [model.generate(**inputs, **how)])


MASKS = [
    {},
    {"budget": 6},
    {"budget": 6, "method_options": {"context_share": 0.5}},
    {"budget": 6, "method": "visionzip", "token_order": "raster", "position_ids": "original"},
    {"budget": 6, "method": "fastv", "method_options": {"layer": 1}},
]


def masks(model, inputs):
    output = model.segment(**inputs)
    per_picture = [value for name in ("mask_logits", "scores") for value in output[name]]
    return [output.seg_embeddings, *per_picture]


@pytest.mark.parametrize("pruning", MASKS, ids=str)
@QUICK_DIALOGUES
def test_masks_of_llava(pruning, dialogues):
    on_both(*masks_case(dialogues, pruning), masks)


@pytest.fixture(scope="module")
def unipixel(tmp_path_factory):
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("unipixel"))
    model = AutoModelForReferringSegmentation.from_pretrained(checkpoint).eval()
    return model, AutoProcessor.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "kind, pruning",
    matrix(
        [("images", {}), ("images", {"budget": 6}), ("videos", {"budget": 6})],
        lambda case: case[0] == "images" and case[1],
    ),
    ids=str,
)
def test_masks_of_unipixel(unipixel, kind, pruning):
    model, processor = unipixel
    model.config.pruning_config = PruningConfig(**pruning)
    media = PICTURES if kind == "images" else [[picture(56, 40, seed) for seed in range(4)], [PICTURES[1]] * 2]
    inputs = processor.segmentation_inputs(**{kind: media}, expressions=SENTENCES)
    on_both(model, inputs, lambda model, inputs: [model.segment(**inputs).seg_embeddings])


# Qwen2.5-VL's own positions are made on the default device and read back: the stock class does not work there either.
@pytest.mark.parametrize("family", [one for one in KINDS if one is not QWEN2_5_VL], ids=lambda family: family.name)
def test_the_default_device_does_not_matter(models, family):
    """What is made for the host, such as random draws and indices, is made there; "meta" has no values to read."""
    model, inputs = models[family.name], family.lite_inputs()
    for name, options in every_case(family):
        model.config.pruning_config = PruningConfig(method=name, method_options=options, budget=BUDGET)
        with torch.no_grad():
            expected = model(**inputs).logits
            with torch.device("meta"):
                assert torch.equal(model(**inputs).logits, expected), name


def test_resampling_is_computed_on_the_host():
    with torch.device("meta"):
        assert torch.allclose(bilinear_weights(4, 6).sum(dim=1), torch.ones(6, device="cpu"))
        assert rows_of([2, 3], [1, 0]).tolist() == [2, 3, 4, 0, 1]
