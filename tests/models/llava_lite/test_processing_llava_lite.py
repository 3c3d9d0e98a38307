"""Prompts, pictures and sentences as the model receives them."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny_llava import NUM_TOKENS, tiny_processor
from transformers_litelvlm import LlavaLiteProcessor


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def picture(width=60, height=40, seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8))


def sentences_of(processor, features):
    """The guidance sentences of each picture, decoded again; `None` for padding."""
    shape = (len(features["guidance_input_ids"]), -1, features["guidance_input_ids"].shape[-1])
    ids, mask = features["guidance_input_ids"].view(shape), features["guidance_attention_mask"].view(shape)
    return [
        [
            processor.guidance_tokenizer.decode(i[m.bool()], skip_special_tokens=True) if m.any() else None
            for i, m in zip(*row)
        ]
        for row in zip(ids, mask)
    ]


def test_the_dialogue_about_one_picture(processor):
    features = processor.segmentation_inputs(picture(), ["The RED circle ", "a dog"])
    text = processor.tokenizer.decode(features["input_ids"][0])
    assert text == (
        "<s>USER: "
        + "<image>" * NUM_TOKENS
        + "\nPlease segment the red circle in this image. ASSISTANT: It is [SEG].</s>"
        "USER: Please segment a dog in this image. ASSISTANT: It is [SEG].</s>"
    )
    # CLIP reads the questions, without the picture.
    assert sentences_of(processor, features) == [
        ["please segment the red circle in this image .", "please segment a dog in this image ."]
    ]
    assert features["pixel_values"].shape == (1, 3, 32, 32) == features["mask_pixel_values"].shape
    assert features["original_sizes"].tolist() == [[40, 60]]
    assert features["reshaped_input_sizes"].tolist() == [[21, 32]]  # 40 * 32 / 60, rounded


def test_pictures_with_different_numbers_of_sentences(processor):
    features = processor.segmentation_inputs([picture(), picture(50, 70, 1)], [["a", "b", "c"], ["d"]])
    assert features["guidance_input_ids"].shape[:2] == (2, 3)
    assert sentences_of(processor, features)[1][1:] == [None, None]
    lengths = features["attention_mask"].sum(1).tolist()
    assert lengths[0] > lengths[1]
    assert features["attention_mask"][1, : lengths[1]].all()  # padded on the right: positions start at 0
    assert features["original_sizes"].tolist() == [[40, 60], [70, 50]]


def test_an_open_question_ends_where_the_answer_begins(processor):
    features = processor.segmentation_inputs([picture(), picture()], [["a"], ["bb"]], for_generation=True)
    for row in features["input_ids"]:
        assert processor.tokenizer.decode(row).endswith("in this image. ASSISTANT:")
    with pytest.raises(ValueError, match="one expression per picture"):
        processor.segmentation_inputs(picture(), ["a", "b"], for_generation=True)


@pytest.mark.parametrize(
    "images, expressions, message",
    [
        (1, "", r"`expressions\[0\]\[0\]` must be a sentence, got ''"),
        (1, ["a", "  "], r"`expressions\[0\]\[1\]` must be a sentence, got '  '"),
        (1, [], r"`expressions\[0\]` must be one or more sentences, got \[\]"),
        (2, [["a"], []], r"`expressions\[1\]` must be one or more sentences, got \[\]"),
        (2, [["a"]], "`expressions` has 1 entries for 2 pictures"),
        (1, 3, "`expressions` must be a sentence or a list, got int"),
        (1, [["a", 3]], r"`expressions\[0\]\[1\]` must be a sentence, got 3"),
        (1, "the [SEG] thing", r"must not contain the special token \[SEG\]"),
        (1, "an <image>", "must not contain the special token <image>"),
    ],
)
def test_bad_sentences(processor, images, expressions, message):
    with pytest.raises(ValueError, match=message):
        processor.segmentation_inputs([picture()] * images, expressions)


def test_a_long_sentence_is_truncated_with_one_warning(processor, caplog):
    features = processor.segmentation_inputs(picture(), ["x" * 200])
    assert features["guidance_input_ids"].shape == (1, 1, 77)
    assert features["guidance_input_ids"][0, 0, -1] == processor.guidance_tokenizer.eos_token_id  # CLIP pools there
    messages = [record.message for record in caplog.records if "CLIP tokens" in record.message]
    assert len(messages) == 1 and "guidance reads the first 77" in messages[0]


ODD_PICTURES = {
    "RGBA": picture().convert("RGBA"),
    "greyscale": picture().convert("L"),
    "palette": picture().convert("P"),
    "one pixel high": picture(60, 1),
    "one pixel": picture(1, 1),
    "array": np.asarray(picture()),
}


@pytest.mark.parametrize("name", ODD_PICTURES)
def test_odd_pictures(processor, name):
    image = ODD_PICTURES[name]
    features = processor.segmentation_inputs(image, "a")
    assert features["pixel_values"].shape == (1, 3, 32, 32)
    size = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
    assert features["original_sizes"].tolist() == [list(size)]
    assert features["pixel_values"].isfinite().all() and features["mask_pixel_values"].isfinite().all()


def test_pictures_are_turned_upright_everywhere(processor, tmp_path):
    upright = picture(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: viewers rotate by 90 degrees
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned = processor.segmentation_inputs(str(tmp_path / "turned.png"), "a")
    expected = processor.segmentation_inputs(upright, "a")
    for name in ("pixel_values", "mask_pixel_values", "original_sizes"):
        assert torch.equal(turned[name], expected[name])
    prompt = "USER: <image>\nhello ASSISTANT:"
    called = processor(images=Image.open(tmp_path / "turned.png"), text=prompt, return_tensors="pt")
    assert torch.equal(called["pixel_values"], expected["pixel_values"])


def test_unreadable_pictures_name_the_file(processor, tmp_path):
    picture().save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("half.png", "text.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            processor.segmentation_inputs(str(tmp_path / name), "a")


# ---- the general call ----------------------------------------------------------------------------------------------


def test_without_expressions_the_last_user_turn_guides(processor):
    text = "USER: <image>\nWhat is this? ASSISTANT: A dog.</s>USER: Where is its tail? ASSISTANT:"
    features = processor(images=picture(), text=text, return_tensors="pt")
    assert sentences_of(processor, features) == [["where is its tail ?"]]
    assert (features["input_ids"] == processor.image_token_id).sum() == NUM_TOKENS  # the full number


def test_rows_with_different_numbers_of_pictures(processor):
    texts = ["USER: <image> <image>\ncompare ASSISTANT:", "USER: <image>\ndescribe ASSISTANT:"]
    images = [[picture(), picture(seed=1)], [picture(seed=2)]]
    features = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert sentences_of(processor, features) == [["compare"], ["compare"], ["describe"]]


@pytest.mark.parametrize(
    "expressions, expected",
    [
        ("dog", [["dog"], ["dog"]]),
        (["dog", "cat"], [["dog"], ["cat"]]),
        ([["dog", "cat"], ["cow"]], [["dog", "cat"], ["cow", None]]),
    ],
)
def test_explicit_expressions(processor, expressions, expected):
    texts = ["USER: <image>\nx ASSISTANT:"] * 2
    images = [picture(), picture(seed=1)]
    features = processor(images=images, text=texts, expressions=expressions, padding=True, return_tensors="pt")
    assert sentences_of(processor, features) == expected


def test_a_prompt_without_words_has_no_guidance(processor):
    features = processor(images=picture(), text="USER: <image>\n ASSISTANT:", return_tensors="pt")
    assert "guidance_input_ids" not in features
    assert "guidance_input_ids" not in processor(text="USER: hi ASSISTANT:", return_tensors="pt")


@pytest.mark.parametrize("tokenize", [True, False])
def test_chat_templates(processor, tokenize):
    conversation = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": [{"type": "text", "text": "Which breed?"}]},
    ]
    kwargs = {"return_dict": True, "return_tensors": "pt"} if tokenize else {}
    output = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=tokenize, **kwargs)
    expected = "USER: <image>\nWhat is it? ASSISTANT: A dog.</s>USER: Which breed? ASSISTANT:"
    if not tokenize:
        assert output == expected
    else:
        assert sentences_of(processor, output) == [["which breed ?"]]
        text = processor.tokenizer.decode(output["input_ids"][0])
        assert text == "<s>" + expected.replace("<image>", "<image>" * NUM_TOKENS)


# ---- saving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_masks", [True, False])
def test_save_and_load_give_the_same_inputs(tmp_path, with_masks):
    original = tiny_processor(with_masks)
    original.question_template = "Where is {expression}?"
    original.save_pretrained(tmp_path)
    loaded = LlavaLiteProcessor.from_pretrained(tmp_path)
    prompt = {"images": picture(), "text": "USER: <image>\nhello ASSISTANT:", "return_tensors": "pt"}
    for name, value in original(**prompt).items():
        assert torch.equal(value, loaded(**prompt)[name])
    if with_masks:
        expected = original.segmentation_inputs(picture(), ["a", "b"])
        actual = loaded.segmentation_inputs(picture(), ["a", "b"])
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    else:
        with pytest.raises(ValueError, match="no `mask_image_processor`"):
            loaded.segmentation_inputs(picture(), "a")


def test_saving_changes_no_processor(tmp_path):
    original = tiny_processor()
    before = original.to_dict()
    original.save_pretrained(tmp_path)
    assert original.to_dict() == before == LlavaLiteProcessor.from_pretrained(tmp_path).to_dict()


@pytest.mark.parametrize("has_guidance", [True, False])
def test_the_processor_names_what_it_returns(has_guidance):
    processor = tiny_processor()
    if not has_guidance:
        processor.guidance_tokenizer = None
    features = processor(images=picture(), text="USER: <image> x ASSISTANT:", return_tensors="pt")
    assert set(features) == set(processor.model_input_names)


def test_a_folder_without_guidance_tokenizer_is_no_silent_fallback(tmp_path, caplog):
    """Upstream would take the language model's tokenizer in its place."""
    processor = tiny_processor()
    processor.guidance_tokenizer = None
    processor.save_pretrained(tmp_path)
    loaded = LlavaLiteProcessor.from_pretrained(tmp_path)
    assert loaded.guidance_tokenizer is None
    assert any("has no guidance tokenizer" in record.message for record in caplog.records)
    tiny_processor().guidance_tokenizer.save_pretrained(tmp_path / "clip")
    loaded = LlavaLiteProcessor.from_pretrained(tmp_path, guidance_tokenizer=tmp_path / "clip")
    assert "guidance_input_ids" in loaded(images=picture(), text="USER: <image> x ASSISTANT:", return_tensors="pt")
