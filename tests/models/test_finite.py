"""Pixels, weights and selections that are not usable: named, and no image changes its neighbours."""

from dataclasses import dataclass

import pytest
import torch
from transformers import AutoProcessor

from tests.support import tiny_llava, tiny_sa2va, tiny_unipixel
from tests.support.families import INTERNVL, LLAVA, MODELS, QWEN2_5_VL, picture
from tests.support.family_cases import NUM_LAYERS
from tests.support.methods import METHODS, RAGGED
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig, register_pruner
from transformers_litelvlm.pruning.base import Selection, TokenPruner
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.registry import _REGISTRY, get_pruner


def llava(folder):
    return tiny_llava.tiny_grounding_model().eval(), tiny_llava.tiny_processor()


def unipixel(folder):
    target = tiny_unipixel.tiny_checkpoint(folder)
    return AutoModelForReferringSegmentation.from_pretrained(target).eval(), AutoProcessor.from_pretrained(target)


def sa2va(folder):
    return tiny_sa2va.load(tiny_sa2va.convert("qwen3_vl", folder), "qwen3_vl")


BUILD = pytest.mark.parametrize("build", [llava, unipixel, sa2va])


@pytest.fixture
def heedless(request):
    """A method that returns what it likes, whatever the budget: (is it inside the language model, as a list, does the
    image decide)."""
    inside, as_list, decides = request.param

    class Heedless(LayerPruner if inside else TokenPruner):
        def select(self, evidence, budget):
            one = Selection(torch.arange(4)[None])
            rows = len(evidence.features)
            return [one] * rows if as_list else Selection(one.indices.expand(rows, -1))

        def tokens_after(self, num_tokens, budget, num_layers):
            return {0: budget}

        def tokens_per_layer(self, num_tokens, budget, **sizes):
            return None if decides else super().tokens_per_layer(num_tokens, budget, **sizes)

    yield register_pruner("heedless")(Heedless)
    del _REGISTRY["heedless"]


@pytest.mark.parametrize(
    "heedless", [(False, False, False), (False, True, False), (True, False, False)], indirect=True
)
@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
@pytest.mark.parametrize("budget", [3, 5])
def test_a_method_with_another_number_of_indices_is_named(family, heedless, budget):
    """Too many or too few, in a tensor or a list, before the language model or inside it."""
    if issubclass(heedless, LayerPruner) and family.is_recurrent:
        pytest.skip("no method works inside its language model")
    model = family.model(NUM_LAYERS)
    model.config.pruning_config = PruningConfig(method="heedless", budget=budget)
    with pytest.raises(ValueError, match=rf"'heedless' must return {budget} indices for each .* shape \(\d, 4\)\. If"):
        model(**family.lite_inputs())


@pytest.mark.parametrize("heedless", [(False, True, True)], indirect=True)
def test_where_the_image_decides_any_number_is_right(heedless):
    model, processor = llava(None)
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["a box"]])
    output = model.segment(**inputs, pruning_config=PruningConfig(method="heedless", budget=3))
    assert output.retained_indices[0].tolist() == [0, 1, 2, 3]


@pytest.fixture(params=[[[0, 0, 1]], [[0, 99, 2]], [[-1, 3, 2]]], ids=["twice", "too large", "negative"])
def careless(request):
    @register_pruner("careless")
    @dataclass(frozen=True)
    class Careless(TokenPruner):
        def select(self, evidence, budget):
            return Selection(torch.tensor(request.param).expand(len(evidence.features), -1))

    yield request.param[0]
    del _REGISTRY["careless"]


@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
def test_a_method_with_wrong_indices_is_named(family, careless):
    model = family.model(NUM_LAYERS)
    model.config.pruning_config = PruningConfig(method="careless", budget=3)
    with pytest.raises(ValueError, match=rf"'careless' must choose tokens of 0 .* each once, got \[{careless[0]},"):
        model(**family.lite_inputs())


def test_elsewhere_a_wrong_selection_becomes_nan_and_changes_no_other_image():
    """On devices that are not asked; here a tensor that says it is none of the CPU."""

    class Elsewhere(torch.Tensor):
        is_cpu = False

    class Evidence:
        features = torch.rand(2, 6, 4)

    indices = torch.tensor([[0, 5, 3], [2, 2, 1]]).as_subclass(Elsewhere)
    checked = Selection(indices).checked(Evidence, (2, 6), "careless", 3)
    assert checked.indices.tolist() == [[0, 5, 3], [0, 1, 2]]
    assert torch.equal(checked.features[0].as_subclass(torch.Tensor), Evidence.features[0, [0, 5, 3]])
    assert checked.features[1].isnan().all()


@pytest.mark.parametrize("name, options", METHODS, ids=str)
def test_pixels_that_are_not_finite_name_the_image(name, options):
    model = tiny_llava.tiny_grounding_model().eval()
    processor = tiny_llava.tiny_processor()
    inputs = processor.segmentation_inputs(images=[picture(seed=i) for i in range(3)], expressions=[["a box"]] * 3)
    pruning = PruningConfig(method=name, method_options=options, budget=5)
    inputs["pixel_values"][1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Image or video 1 has visual tokens that are not finite|each once, got"):
        model.segment(**inputs, pruning_config=pruning)


@BUILD
@pytest.mark.parametrize("pruning", [PruningConfig(), PruningConfig(budget=5)], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("part", ["mask_model", "model.language_model"])
def test_weights_that_are_not_finite_give_no_masks(build, pruning, part, tmp_path):
    model, processor = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture()] * 2, expressions=[["a box"]] * 2)
    inputs["mask_pixel_values"] = inputs["mask_pixel_values"].clone()
    with torch.no_grad():
        for weights in model.get_submodule(part).parameters():
            weights.fill_(torch.nan)
    # Where the language model's embeddings guide, the selection sees it first.
    named = "The masks of image or video 0 are not finite numbers|Image or video 0 has values of `similarity`"
    with pytest.raises(ValueError, match=named):
        model.segment(**inputs, pruning_config=pruning)


@BUILD
def test_mask_pixels_that_are_not_finite_name_their_picture(build, tmp_path):
    model, processor = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture(), picture(seed=1)], expressions=[["a box"]] * 2)
    inputs["mask_pixel_values"] = inputs["mask_pixel_values"].float()  # Sa2VA's are whole numbers
    inputs["mask_pixel_values"][1, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="The masks of image or video 1 are not finite numbers"):
        model.segment(**inputs)


@BUILD
def test_guidance_masks_that_do_not_fit(build, tmp_path):
    model, processor = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture()] * 2, expressions=[["a box"], ["a dot"]])
    pruning = PruningConfig(budget=5)
    mask = inputs["guidance_attention_mask"]
    with pytest.raises(ValueError, match="`guidance_attention_mask` must have the shape of `guidance_input_ids`"):
        model.segment(**{**inputs, "guidance_attention_mask": mask[:, :, :-1]}, pruning_config=pruning)
    empty = mask.clone()
    empty[1] = 0
    with pytest.raises(ValueError, match=r"all zero for the images or videos \[1\]"):
        model.segment(**{**inputs, "guidance_attention_mask": empty}, pruning_config=pruning)
    # Methods that read no text do not ask.
    random = PruningConfig(method="random", budget=5)
    assert len(model.segment(**{**inputs, "guidance_attention_mask": empty}, pruning_config=random).masks) == 2


@BUILD
def test_missing_pixels(build, tmp_path):
    model, processor = build(tmp_path)
    inputs = processor.segmentation_inputs(images=[picture()], expressions=[["a box"]])
    for name in (model.model.pixels_of[model.mask_modality], "mask_pixel_values", "original_sizes"):
        rest = {key: value for key, value in inputs.items() if key != name}
        for pruning in (PruningConfig(), PruningConfig(budget=5)):
            with pytest.raises(ValueError, match=f"`{name}` is missing"):
                model.segment(**rest, pruning_config=pruning)


BY_TEXT = [(name, options) for name, options in METHODS + RAGGED if get_pruner(name).needs_text]


@pytest.mark.parametrize("name, options", BY_TEXT, ids=str)
@pytest.mark.parametrize("weights", ["text_projection.weight", "text_model.final_layer_norm.weight"])
def test_sentences_that_are_not_finite_are_named(name, options, weights):
    """As it was, the first tokens were kept and all that came out was finite."""
    model = LLAVA.model(NUM_LAYERS).eval()
    model.config.pruning_config = PruningConfig(method=name, method_options=options, budget=5)
    with torch.no_grad():
        model.model.guidance.get_parameter(weights)[0] = torch.nan
    with pytest.raises(ValueError, match="Image or video 0 has values of `similarity` that are not finite: weights"):
        model(**LLAVA.lite_inputs())
    model.config.pruning_config = PruningConfig(method="divprune", budget=5)
    assert model(**LLAVA.lite_inputs()).logits.isfinite().all()


@pytest.mark.parametrize("family", [QWEN2_5_VL, INTERNVL], ids=lambda family: family.name)
def test_words_that_are_not_finite_are_named(family):
    """Where the language model's own embeddings guide, those of words that the prompt does not have."""
    model, inputs = family.model(NUM_LAYERS).eval(), family.lite_inputs()
    model.config.pruning_config = PruningConfig(budget=5)
    others = set(inputs["guidance_input_ids"][0].flatten().tolist()) - set(inputs["input_ids"].flatten().tolist())
    with torch.no_grad():
        model.get_input_embeddings().weight[sorted(others)[-1]] = torch.nan
    with pytest.raises(ValueError, match="Image or video 0 has values of `similarity` that are not finite: weights"):
        model(**inputs)


def test_context_scores_that_are_not_finite_are_named():
    """In weights that nothing but the score reads."""
    model = LLAVA.model(NUM_LAYERS).eval()
    model.config.pruning_config = PruningConfig(method_options={"context_share": 0.5}, budget=5)
    with torch.no_grad():
        model.model.vision_tower.encoder.layers[-1].self_attn.v_proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match="Image or video 0 has `context_scores` that are not finite: weights of the"):
        model(**LLAVA.lite_inputs())


def test_a_context_score_may_say_never():
    @register_pruner("never")
    @dataclass(frozen=True)
    class Never(TokenPruner):
        def select(self, evidence, budget):
            kept = torch.arange(budget).expand(len(evidence.features), -1)
            return Selection(kept, context=torch.full(evidence.features.shape[:2], -torch.inf))

    try:
        model = LLAVA.model(NUM_LAYERS).eval()
        model.config.pruning_config = PruningConfig(method="never", budget=5)
        assert model(**LLAVA.lite_inputs()).logits.isfinite().all()
    finally:
        del _REGISTRY["never"]
