"""Masks: one pass equals many, states come from the right place, and resizing undoes SAM's preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny_llava import SPECIAL, tiny_config, tiny_grounding_model, tiny_processor
from transformers_litelvlm import LlavaLiteForReferringSegmentation, PruningConfig
from transformers_litelvlm.models.masks.output import foreground_confidence
from transformers_litelvlm.models.masks.sam import resize_masks
from transformers_litelvlm.models.masks.seg_tokens import states_of_seg


SEG = SPECIAL.index("[SEG]")
SENTENCES = [["the red circle", "a dog on the left of the cat"], ["sky"], ["one", "two", "three"]]


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_grounding_model()


@pytest.fixture(scope="module")
def images():
    sizes = [(40, 60), (50, 30), (33, 33)]
    return [
        Image.fromarray(np.random.RandomState(i).randint(0, 255, (*size, 3), dtype=np.uint8))
        for i, size in enumerate(sizes)
    ]


POLICIES = [
    {},
    {"budget": 5},
    {"budget": 5, "token_order": "raster", "position_ids": "original"},
    {"budget": 6, "method_options": {"context_share": 0.5}},
    {"budget": 5, "method": "random"},
]


@pytest.mark.parametrize("pruning", POLICIES)
def test_a_batch_equals_its_images_one_by_one(model, processor, images, pruning):
    model.config.pruning_config = PruningConfig(**pruning)
    together = model.segment(**processor.segmentation_inputs(images, SENTENCES))
    for i, (image, sentences) in enumerate(zip(images, SENTENCES)):
        alone = model.segment(**processor.segmentation_inputs(image, sentences))
        assert together.masks[i].shape == (len(sentences), *image.size[::-1])
        if pruning:
            assert torch.equal(together.retained_indices[i], alone.retained_indices[0])
        torch.testing.assert_close(together.mask_logits[i], alone.mask_logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.scores[i], alone.scores[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.iou_scores[i], alone.iou_scores[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(together.masks[i], together.mask_logits[i] > 0)


def test_the_masks_are_those_of_sam_prompted_with_the_state_before_seg(model, processor, images):
    """By hand, without any of the model's own wiring."""
    model.config.pruning_config = PruningConfig()
    inputs = processor.segmentation_inputs(images[0], SENTENCES[0])
    output = model.segment(**inputs)
    with torch.no_grad():
        hidden = model.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=inputs["pixel_values"]
        ).last_hidden_state[0]
        places = (inputs["input_ids"][0] == SEG).nonzero().flatten().tolist()
        assert len(places) == 2
        sam = model.mask_model
        embeddings = sam.vision_encoder(inputs["mask_pixel_values"])[0]
        for i, place in enumerate(places):
            prompt = model.text_hidden_fcs(hidden[place - 1])
            torch.testing.assert_close(output.seg_embeddings[0, i, 0], prompt, atol=1e-5, rtol=1e-5)
            masks, iou = sam.mask_decoder(
                image_embeddings=embeddings,
                image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
                sparse_prompt_embeddings=prompt.view(1, 1, 1, -1),
                dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand_as(
                    embeddings
                ),
                multimask_output=False,
            )
            torch.testing.assert_close(output.pred_masks[0, i], masks[0, 0, 0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(output.iou_scores[0][i], iou[0, 0, 0], atol=1e-5, rtol=1e-5)
            final = processor.mask_image_processor.post_process_masks(
                masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
            )[0][0, 0]
            torch.testing.assert_close(output.mask_logits[0][i], final, atol=1e-5, rtol=1e-5)


def test_encoded_images_serve_a_sweep(model, processor, images):
    model.config.pruning_config = PruningConfig(budget=5)
    inputs = processor.segmentation_inputs(images, SENTENCES)
    expected = model.segment(**inputs)
    embeddings = model.encode_for_masks(inputs)
    del inputs["mask_pixel_values"]
    actual = model.segment(**inputs, mask_features=embeddings)
    assert all(torch.equal(a, b) for a, b in zip(actual.mask_logits, expected.mask_logits))


def test_every_answer_of_its_own_finds_its_seg(model, processor, images):
    """The generate route on a model that is made to say [SEG]: the masks of the teacher-forced route."""
    say = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    inputs = processor.segmentation_inputs(images, [["a"], ["bb"], ["ccc"]], for_generation=True)
    for pruning in ({}, {"budget": 5}):
        model.config.pruning_config = PruningConfig(**pruning)
        before = model.lm_head.weight
        try:
            model.lm_head.weight = say
            for kwargs in ({}, {"num_beams": 2}, {"cache_implementation": "static"}):
                output = model.generate_masks(
                    **inputs, max_new_tokens=3, do_sample=False, sequence_bias={(SEG,): 1e4}, **kwargs
                )
                new = output.sequences[:, inputs["input_ids"].shape[1] :]
                assert (new == SEG).all()
                forced = {**inputs, "input_ids": output.sequences}
                forced["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
                expected = model.segment(**forced)
                kept = [of.retained_indices for of in (output, expected)]
                assert torch.equal(*kept) if pruning else kept == [None, None]
                for actual, wanted in zip(output.mask_logits, expected.mask_logits):
                    assert actual.shape == wanted.shape and actual.shape[0] == 3
                    torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
        finally:
            model.lm_head.weight = before


def test_an_answer_without_seg_has_no_masks(model, processor, images):
    model.config.pruning_config = PruningConfig(budget=5)
    inputs = processor.segmentation_inputs(images[:2], [["a"], ["bb"]], for_generation=True)
    output = model.generate_masks(**inputs, max_new_tokens=3, do_sample=False, bad_words_ids=[[SEG]])
    assert [tuple(masks.shape) for masks in output.masks] == [(0, 40, 60), (0, 50, 30)]
    assert [len(scores) for scores in output.scores] == [0, 0]


def test_one_image_embedding_per_image(model, processor, images):
    model.config.pruning_config = PruningConfig(budget=5)
    calls = []
    handle = model.mask_model.vision_encoder.register_forward_hook(
        lambda module, args, out: calls.append(len(args[0]))
    )
    model.segment(**processor.segmentation_inputs(images, SENTENCES))
    handle.remove()
    assert calls == [3]  # six sentences, three images, one call


def test_the_mask_decoder_computes_no_padding(model, processor, images):
    """Dialogues with one, two and three sentences: as many rows of one prompt as there are masks."""
    model.config.pruning_config = PruningConfig(budget=5)
    calls = []
    handle = model.mask_model.mask_decoder.register_forward_pre_hook(
        lambda module, args, given: calls.append(given["sparse_prompt_embeddings"].shape[:2]), with_kwargs=True
    )
    output = model.segment(**processor.segmentation_inputs(images, [["a"], ["a", "bb"], ["a", "bb", "ccc"]]))
    handle.remove()
    assert calls == [(6, 1)] and [len(masks) for masks in output.masks] == [1, 2, 3]
    assert output.pred_masks.shape[:2] == (3, 3) and output.seg_embeddings.shape[:2] == (3, 3)
    assert not output.pred_masks[0, 1:].any() and not output.pred_masks[1, 2:].any()
    assert output.pred_masks[0, 0].any() and output.pred_masks[1, 1].any() and output.pred_masks[2, 2].any()


def test_missing_inputs_say_what_to_do(model, processor, images):
    model.config.pruning_config = PruningConfig()
    inputs = processor.segmentation_inputs(images[0], "a")
    for name in ("original_sizes", "mask_pixel_values"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            model.segment(**{key: value for key, value in inputs.items() if key != name})
    open_question = processor.segmentation_inputs(images[0], "a", for_generation=True)
    with pytest.raises(ValueError, match=r"Every row of `input_ids` needs a \[SEG\]"):
        model.segment(**open_question)


def test_a_config_without_mask_decoder_is_refused():
    with pytest.raises(ValueError, match="needs `mask_config` and `seg_token_id`.*LlavaLiteForConditionalGeneration"):
        LlavaLiteForReferringSegmentation(tiny_config())


def test_gradients_reach_everything_that_makes_a_mask(processor, images):
    model = tiny_grounding_model(pruning_budget=5)
    inputs = processor.segmentation_inputs(images, SENTENCES)
    masks = model.decode(model.read(inputs), inputs, model.encode_for_masks(inputs)).pred_masks
    masks.square().mean().backward()
    for part in (model.text_hidden_fcs, model.model.language_model.layers, model.model.multi_modal_projector):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    assert model.mask_model.mask_decoder.mask_tokens.weight.grad.abs().sum() > 0


# ---- the pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at, expected", [(False, [0.0, 2.0, 7.0]), (True, [1.0, 3.0, 8.0])])
def test_states_of_seg_by_hand(at, expected):
    ids = torch.tensor([[5, 9, 5, 9, 5], [5, 5, 5, 9, 5]])
    states = torch.arange(10.0).view(2, 5, 1)
    found, counts = states_of_seg(states, ids, 9, at)
    assert counts == [2, 1]
    assert [*found[0, :, 0].tolist(), found[1, 0, 0].item()] == expected


def test_a_mask_token_whose_state_was_not_computed():
    """As in generation, whose last token is not read again: at [SEG] there is no state, before it there is one."""
    ids, states = torch.tensor([[-1, 9, 5, 9]]), torch.arange(3.0).view(1, 3, 1)
    assert states_of_seg(states, ids, 9, True)[0].flatten().tolist() == [1.0]
    assert states_of_seg(states, ids, 9, False)[0].flatten().tolist() == [0.0, 2.0]


def test_resizing_undoes_padding():
    """A step edge in the middle of the picture stays in the middle, whatever was padded."""
    low = torch.full((1, 16, 16), -5.0)
    low[:, :, 4:] = 5.0  # 4 of 16 columns = 16 of 64 pixels; the picture fills 32 of them
    masks = resize_masks(low, input_size=64, resized_size=(64, 32), original_size=(200, 100)) > 0
    assert masks.shape == (1, 200, 100)
    assert not masks[..., :48].any() and masks[..., 52:].all()


def test_foreground_confidence_by_hand():
    probabilities = torch.tensor([[[0.5, 0.8], [0.6, 0.2]], [[0.1, 0.2], [0.3, 0.4]]])
    logits = probabilities.logit()
    torch.testing.assert_close(foreground_confidence(logits), torch.tensor([0.7, 0.0]))


def test_foreground_confidence_of_large_masks_is_computed_in_parts(monkeypatch):
    logits = torch.randn(3, 2, 11, 13)
    whole = foreground_confidence(logits)
    monkeypatch.setattr("transformers_litelvlm.models.masks.output.PIXELS_AT_ONCE", 10)
    torch.testing.assert_close(foreground_confidence(logits), whole)
    inside = logits > 0
    torch.testing.assert_close(whole, (logits.sigmoid() * inside).sum((-1, -2)) / inside.sum((-1, -2)))


SHARED = [
    {},
    {"budget": 6},
    {"budget": 6, "method": "random"},
    {"budget": 6, "method": "visionzip", "token_order": "raster", "position_ids": "original"},
    {"budget": 6, "method": "visionzip"},
    {"budget": 6, "method": "fastv", "method_options": {"layer": 1}},
]


@torch.no_grad()
@pytest.mark.parametrize("pruning", SHARED)
def test_dialogues_about_one_picture_share_the_vision_tower(model, images, pruning):
    processor = tiny_processor()
    processor.one_expression_per_dialogue = True
    model.config.pruning_config = PruningConfig(**pruning)
    inputs = processor.segmentation_inputs(images, SENTENCES)
    assert inputs["pixel_values"].shape[0] == 3 and inputs["dialogue_images"].tolist() == [0, 0, 1, 2, 2, 2]
    seen = []
    handle = model.model.vision_tower.encoder.layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    try:
        together = model.segment(**inputs)
    finally:
        handle.remove()
    assert seen == [3]
    for image, sentences, logits in zip(images, SENTENCES, together.mask_logits, strict=True):
        for sentence, own in zip(sentences, logits, strict=True):
            alone = model.segment(**processor.segmentation_inputs(image, sentence))
            torch.testing.assert_close(own, alone.mask_logits[0][0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="`pixel_values` is missing"):
        model.segment(**{name: value for name, value in inputs.items() if name != "pixel_values"})
    inputs["pixel_values"] = inputs["pixel_values"][[0, 0, 1, 2]]
    with pytest.raises(ValueError, match="`pixel_values` holds 4 pictures or videos, but `dialogue_images` names 3"):
        model.segment(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_pictures_that_keep_different_numbers_of_tokens_share_no_padding(model, images, positions, has_mask):
    processor = tiny_processor()
    processor.one_expression_per_dialogue = True
    options = {"method": "prumerge_plus", "method_options": {"adaptive": True}, "position_ids": positions}
    model.config.pruning_config = PruningConfig(budget=4, **options)
    waves = np.indices((32, 32)).sum(0)[..., None] * np.array([3, 1, 2]) % 256
    pictures = [*images[:2], Image.fromarray(waves.astype("uint8"))]
    inputs = processor.segmentation_inputs(pictures, [["a dog", "a cat"]] * 3)
    assert inputs["attention_mask"].all()
    together = model.segment(**inputs) if has_mask else model.segment(**{**inputs, "attention_mask": None})
    counts = set()
    for picture, logits in zip(pictures, together.mask_logits, strict=True):
        alone = model.segment(**processor.segmentation_inputs([picture], [["a dog", "a cat"]]))
        torch.testing.assert_close(logits, alone.mask_logits[0], atol=1e-5, rtol=1e-5)
        counts.add(len(alone.retained_indices[0]))
    assert len(counts) > 1


@torch.no_grad()
@pytest.mark.parametrize("pruning", [{}, *SHARED[2:5], {"budget": 6, "position_ids": "original"}])
def test_what_dialogues_about_a_picture_share_is_read_once(model, images, pruning):
    """Where they get the same visual tokens; litelvlm does where it is guided by all sentences of a picture."""
    processor = tiny_processor()
    processor.one_expression_per_dialogue = True
    model.config.pruning_config = PruningConfig(**pruning)
    shared = processor.segmentation_inputs(images, SENTENCES, share_selection=True)
    assert shared["guidance_input_ids"].shape[:2] == (3, 3) and shared["input_ids"].shape[0] == 6
    features = model.model.get_image_features(
        **{name: shared[name] for name in ("pixel_values", "guidance_input_ids", "guidance_attention_mask")}
    )
    about = shared["dialogue_images"].tolist()
    lengths = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: lengths.append(tuple(args[0].shape[:2]))
    )
    try:
        together = model.segment(**shared)
        plain = model.segment(
            **{name: value for name, value in shared.items() if name != "pixel_values"},
            mm_encoder_outputs={
                "image": features.of_images(about)
                if pruning
                else type(features)(pooler_output=[features.pooler_output[picture] for picture in about])
            },
        )
    finally:
        handle.remove()
    (pictures, prefix), (dialogues, rest), (whole_rows, whole) = lengths
    assert (pictures, dialogues, whole_rows) == (3, 6, 6) and prefix + rest == whole and prefix > 6
    torch.testing.assert_close(together.pred_masks, plain.pred_masks, atol=1e-5, rtol=1e-5)
    if pruning:
        assert torch.equal(together.retained_indices, plain.retained_indices)
    for own, expected in zip(together.mask_logits, plain.mask_logits, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "setting, needed",
    [
        ({}, 0),
        ({"budget": 5, "method": "random", "position_ids": "original"}, 0),
        ({"budget": 5, "method": "random", "position_ids": "compact"}, 11),
    ],
)
def test_prompts_that_are_longer_than_the_language_model_can_count(model, processor, images, setting, needed):
    """Pruning makes room where kept tokens are renumbered."""
    model.config.pruning_config = PruningConfig(**setting)
    inputs = processor.segmentation_inputs(images[0], SENTENCES[0])
    length, limit = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    try:
        model.config.text_config.max_position_embeddings = length - needed
        model.segment(**inputs)
        model.config.text_config.max_position_embeddings -= 1
        message = f"prompts of {length} tokens, which need {length - needed} positions after pruning, but .* has"
        with pytest.raises(ValueError, match=f"{message} {length - needed - 1} .* fewer or shorter expressions"):
            model.segment(**inputs)
    finally:
        model.config.text_config.max_position_embeddings = limit
