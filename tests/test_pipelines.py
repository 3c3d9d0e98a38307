"""The pipelines: several inputs at once, what is missing, and saving."""

import base64
import io

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, pipeline

from tests.support.box_models import answer_with, noise, save_tiny_sam
from tests.support.families import FAMILIES, family_params, picture
from tests.support.tiny_llava import save_tiny_checkpoint, tiny_grounding_model
from tests.support.tiny_qwen3_vl import QWEN3_VL
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation, PruningConfig, Qwen3_VLLite
from transformers_litelvlm.data.refshapes import generate_scene


@pytest.fixture(scope="module")
def segmenter():
    return pipeline("referring-segmentation", model=DEFAULT_CHECKPOINT, model_kwargs={"pruning_budget": 24})


def scenes(count):
    """Pictures of different sizes, with one sentence, two, and so on."""
    for index in range(count):
        scene = generate_scene("test", index)
        image = Image.fromarray(scene.image).resize((100 + 20 * index, 140))
        sentences = [expression.sentence for expression in scene.expressions]
        yield {"image": image, "sentences": (sentences * 3)[: 1 + index]}


def same(first, second):
    return (
        [one["label"] for one in first] == [one["label"] for one in second]
        and [one["score"] for one in first] == pytest.approx([one["score"] for one in second], abs=1e-3)
        and all(np.mean(np.asarray(a["mask"]) != np.asarray(b["mask"])) < 1e-3 for a, b in zip(first, second))
    )


# ---- referring-segmentation -----------------------------------------------------------------------------------------


def test_batches_are_the_pictures_one_by_one(segmenter):
    inputs = list(scenes(3))
    alone = [segmenter(each["image"], each["sentences"]) for each in inputs]
    assert [len(of_image) for of_image in alone] == [1, 2, 3]
    assert any(np.asarray(result["mask"]).any() for of_image in alone for result in of_image)
    for many in (inputs, (each for each in inputs), Dataset.from_list(inputs)):
        results = list(segmenter(many, batch_size=2))
        assert len(results) == 3 and all(map(same, results, alone))
    assert [of_image[0]["mask"].size for of_image in results] == [each["image"].size for each in inputs]


def test_batches_of_a_checkpoint_with_a_dialogue_per_sentence(tmp_path):
    segmenter = pipeline("referring-segmentation", model=str(tiny_checkpoint(tmp_path)))
    inputs = [{"image": picture(40 + 8 * i, 40), "sentences": ["a dog", "a cat"][: 1 + i % 2]} for i in range(3)]
    alone = [segmenter(each["image"], each["sentences"]) for each in inputs]
    assert all(map(same, segmenter(inputs, batch_size=2), alone))


def test_a_pipeline_is_saved_and_loaded(segmenter, tmp_path):
    before = segmenter.model.config.to_dict()
    segmenter.save_pretrained(tmp_path)
    assert {name: value for name, value in segmenter.model.config.to_dict().items() if name != "auto_map"} == {
        name: value for name, value in before.items() if name != "auto_map"
    }
    again = pipeline("referring-segmentation", model=str(tmp_path))
    assert again.model.config.pruning_budget == 24 and type(again.processor) is type(segmenter.processor)
    [one] = scenes(1)
    assert same(again(**one), segmenter(**one))


@pytest.mark.parametrize(
    "inputs, got",
    [
        (picture(), "got <PIL.Image"),
        ("photo.png", "got 'photo.png'"),
        ([picture(), picture()], "got <PIL.Image"),
        ({"image": picture()}, r"got a dict of \['image'\]"),
        ([{"image": picture(), "sentence": "a"}], r"got a dict of \['image', 'sentence'\]"),
        ("data:image/png;base64," + "A" * 100_000, r"got 'data:image/png;base64,A+\.\.\.A+'"),
    ],
)
def test_pictures_without_sentences(segmenter, inputs, got):
    with pytest.raises(
        ValueError, match=f"needs a picture and what to find in it: pass `sentences`, .*{got}"
    ) as error:
        segmenter(inputs)
    assert len(str(error.value)) < 260


def test_several_pictures_with_sentences(segmenter):
    """They would be one picture, and the sentences too many: the message says how to ask about several."""
    for sentences in ("a circle", ["a circle", "a star"], [["a circle"], ["a star"]]):
        with pytest.raises(ValueError, match="for several pictures, a list of dicts .*; got 2 pictures with `sent"):
            segmenter([picture(), picture()], sentences)


def test_sentences_that_are_none(segmenter):
    for wrong in ([], "", ["a", 3], 5):
        with pytest.raises(ValueError, match="`expressions"):
            segmenter(picture(), wrong)


def test_pictures_as_text(segmenter):
    [one] = scenes(1)
    buffer = io.BytesIO()
    one["image"].save(buffer, "png")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    for text in (encoded, f"data:image/png;base64,{encoded}"):
        assert same(segmenter(text, one["sentences"]), segmenter(**one))


# ---- pruning settings ----


# Keywords of a call, and what they make of the checkpoint's own setting, where the pipeline has `pruning_budget=8`.
KEYWORDS = [
    ({}, lambda own: own.replace(budget=8)),
    ({"pruning_budget": 3}, lambda own: own.replace(budget=3)),
    ({"pruning_retention_ratio": 0.25}, lambda own: own.replace(retention_ratio=0.25)),
    ({"pruning_preset": "fast"}, lambda own: own.replace(budget=8).apply_preset("fast")),
    ({"pruning_method": "uniform"}, lambda own: own.replace(budget=8, method="uniform")),
    ({"pruning_budget": None}, lambda own: own.replace(budget=None, retention_ratio=None)),
    ({"pruning_config": {"method": "uniform", "budget": 9}}, lambda own: PruningConfig(method="uniform", budget=9)),
]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return pipeline("referring-segmentation", model=folder, pruning_budget=8)


@pytest.mark.parametrize("keywords, expected", KEYWORDS, ids=[str(keywords) for keywords, _ in KEYWORDS])
def test_settings_of_a_pipeline_and_of_a_call(pruned, keywords, expected):
    [one] = scenes(1)
    own = pruned.model.config.pruning_config
    before = own.to_dict()
    inputs = pruned.processor.segmentation_inputs(one["image"], one["sentences"])
    masks = pruned.model.segment(**inputs, pruning_config=expected(own)).masks[0]
    [lazily] = pruned((each for each in [one]), **keywords)
    for result in (pruned(**one, **keywords), pruned([one], **keywords)[0], lazily):
        assert [np.asarray(each["mask"]).astype(bool).tolist() for each in result] == masks.tolist()
    assert pruned.model.config.pruning_config.to_dict() == before  # the model may be another pipeline's, too


def test_settings_change_masks_and_are_not_kept(pruned):
    [one] = scenes(1)
    first = pruned(**one)
    assert not same(first, pruned(**one, pruning_budget=3)) and same(first, pruned(**one))
    by_model = pipeline("referring-segmentation", model=pruned.model.name_or_path, model_kwargs={"pruning_budget": 8})
    assert by_model.model.config.pruning_budget == 8 and same(first, by_model(**one))
    assert same(by_model(**one, pruning_budget=3), pruned(**one, pruning_budget=3))
    by_model.model.config.pruning_budget = 3  # as without a pipeline, it may change between calls
    assert same(by_model(**one), pruned(**one, pruning_budget=3))


@pytest.mark.parametrize(
    "keywords, message",
    [
        (
            {"pruning_bugdet": 5},
            r"Unknown .* \['pruning_bugdet'\]. Did you mean 'pruning_budget'\? There are: .*pruning_budget, pruning",
        ),
        ({"top_k": 5}, r"Unknown arguments .*\['top_k'\]. There are: batch_size, num_workers, pruning_config, "),
        ({"pruning_budget": "many"}, "`budget` must be a positive integer.*got 'many'"),
        ({"pruning_budget": 5, "pruning_retention_ratio": 0.5}, "exclude each other"),
        ({"pruning_preset": "slow"}, "Unknown `pruning_preset` 'slow'"),
        ({"pruning_config": 5}, "`pruning_config` must be a PruningConfig or a dict, got 5"),
    ],
)
def test_settings_that_do_not_exist(pruned, keywords, message):
    [one] = scenes(1)
    with pytest.raises(ValueError, match=message):
        pruned(**one, **keywords)
    with pytest.raises(ValueError, match=message):
        pipeline("referring-segmentation", model=pruned.model, processor=pruned.processor, **keywords)
    if "top_k" not in keywords and "pruning_config" not in keywords:
        for task in ("referring-segmentation", "image-text-to-text"):
            with pytest.raises(ValueError, match=message):
                pipeline(task, model=pruned.model.name_or_path, model_kwargs=keywords)


# ---- image-text-to-text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=family_params(FAMILIES), ids=lambda family: family.name)
def checkpoint(request, tmp_path_factory):
    return request.param.save(tmp_path_factory.mktemp("checkpoint"))


def answers(checkpoint, questions, **settings):
    """Of the questions one by one, and a function for batches."""
    chat = pipeline("image-text-to-text", model=checkpoint, model_kwargs=settings)
    chat.tokenizer.padding_side = "left"
    arguments = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}, "return_full_text": False}

    def ask(text, **how):
        return [each["generated_text"] for [each] in chat(text=text, **arguments, **how)]

    return [answer for question in questions for answer in ask([question])], ask


def chats(*questions, images=1):
    for index, question in enumerate(questions):
        pictures = [{"type": "image", "image": picture(60, 40, 10 * index + i)} for i in range(images)]
        yield [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def test_answers_are_those_of_the_pruned_model(checkpoint):
    [question] = chats("Where is the dog?")
    (unpruned,), _ = answers(checkpoint, [question])
    (pruned,), _ = answers(checkpoint, [question], pruning_budget=5)
    chat = pipeline("image-text-to-text", model=checkpoint)
    chat.model.config.pruning_budget = 5
    how = {"max_new_tokens": 6, "generate_kwargs": {"do_sample": False}, "return_full_text": False}
    assert pruned == chat(text=[question], **how)[0][0]["generated_text"] != unpruned


@pytest.mark.parametrize("budget", [None, 5])
def test_questions_of_different_length_in_a_batch(checkpoint, budget):
    questions = list(chats("Where is the dog?", "Who?", "And what about the other thing behind the tree?"))
    alone, ask = answers(checkpoint, questions, pruning_budget=budget)
    assert len(set(alone)) > 1 and ask(questions, batch_size=2) == alone


def test_several_pictures_in_a_batch(checkpoint):
    """Right where widths are equal: those of CLIP always are. Never silently wrong."""
    questions = list(chats("Where is the dog?", "Who?", images=2))
    alone, ask = answers(checkpoint, questions, pruning_budget=5)
    if AutoProcessor.from_pretrained(checkpoint).guidance_tokenizer is not None:
        assert ask(questions, batch_size=2) == alone
    else:
        with pytest.raises(ValueError, match="has sentences for 2 images or videos, but there are 4"):
            ask(questions, batch_size=2)


# ---- boxes that prompt a mask model ---------------------------------------------------------------------------------


@pytest.fixture
def boxes_segmenter(tmp_path, monkeypatch):
    QWEN3_VL.save_stock_checkpoint(tmp_path / "chat")
    answers = {"Locate the dog,": '[{"bbox_2d": [100, 100, 500, 600]}, {"bbox_2d": [0, 0, 250, 250]}]'}
    answer_with(monkeypatch, Qwen3_VLLite, QWEN3_VL.tiny_processor(), answers)
    mask_model = save_tiny_sam(tmp_path / "sam")
    return pipeline("referring-segmentation", model=str(tmp_path / "chat"), mask_model=mask_model, pruning_budget=4)


def test_a_chat_model_and_a_mask_model(boxes_segmenter):
    picture = noise(96, 64)
    dog, cat = boxes_segmenter(picture, ["the dog", "the cat"])
    assert dog["boxes"] == [pytest.approx((9.6, 6.4, 48, 38.4)), pytest.approx((0, 0, 24, 16))]
    assert dog["mask"].size == (96, 64) and not dog["says_none"]
    assert np.array_equal(np.asarray(dog["mask"]), np.maximum(*map(np.asarray, dog["object_masks"])))
    assert (cat["boxes"], cat["object_masks"], cat["says_none"], cat["score"]) == ([], [], True, 0)
    assert not np.asarray(cat["mask"]).any() and cat["answer"] == "[]"
    inputs = [{"image": picture, "sentences": "the dog"}, {"image": noise(40, 40), "sentences": "the cat"}]
    [first], [second] = boxes_segmenter(inputs, batch_size=2)
    assert same([first], [dog]) and second["says_none"]
    assert repr(boxes_segmenter) == "ReferringSegmentationPipeline: BoxSegmentation, torch.float32 on cpu"
    with pytest.raises(ValueError, match="two checkpoints"):
        boxes_segmenter.save_pretrained("anywhere")


def test_a_chat_model_needs_a_mask_model(tmp_path):
    QWEN3_VL.save_stock_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="Qwen3_VLLiteForConditionalGeneration answers in text: name a mask model"):
        pipeline("referring-segmentation", model=str(tmp_path))
    with pytest.raises(ValueError, match="writes no masks. If it answers with boxes, load it as `BoxSegmentation`"):
        AutoModelForReferringSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("further", [{}, {"mask_model": "somewhere"}], ids=["masks", "boxes"])
def test_a_model_in_memory_needs_its_processor(further):
    model = QWEN3_VL.tiny_model() if further else tiny_grounding_model()
    with pytest.raises(ValueError, match="pass its `processor`, too"):
        pipeline("referring-segmentation", model=model, **further)


def test_a_mask_decoder_without_weights_is_no_model_that_answers_in_text(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("mask_model.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="The mask decoder of .* cannot be loaded: `AutoModelForReferringSegm"):
        pipeline("referring-segmentation", model=str(folder))


def test_a_processor_that_cannot_be_loaded_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    (folder / "processor_config.json").write_text("{")
    with pytest.raises((ValueError, OSError), match="processor_config|JSON"):
        pipeline("referring-segmentation", model=str(folder))
