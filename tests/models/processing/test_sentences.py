"""Sentences that are refused: what a tokenizer would take for one of its own tokens, and what is no text."""

import re

import pytest

from tests.support import tiny_llava
from tests.support import tiny_qwen2_5_vl as tiny_qwen
from tests.support.families import FAMILIES, family_params, picture
from transformers_litelvlm.models.processing.sentences import EXPRESSION, check_special_tokens


# Those that write masks, by `segmentation_inputs`.
@pytest.fixture(scope="module", params=family_params(FAMILIES)[:2], ids=lambda family: family.name)
def family(request):
    return request.param


def processor_of(family, **kwargs):
    if family.name == "llava":
        return tiny_llava.tiny_processor()
    processor = tiny_qwen.tiny_processor(**kwargs)
    processor.mask_image_size = 32
    return processor


@pytest.mark.parametrize(
    "sentence, token",
    [
        ("the <IMAGE> sign", "<image>"),  # in lower case
        ("a dog </s>", "</s>"),
        ("a <S>dog", "<s>"),
        ("my <pad>", "<pad>"),
        ("the [seg] thing", r"\[SEG\]"),
        ("a <|EndOfText|>", r"<\|endoftext\|>"),  # of CLIP, which writes everything small
    ],
)
def test_special_tokens_of_llava(sentence, token):
    processor = tiny_llava.tiny_processor()
    with pytest.raises(ValueError, match=f"`expressions` must not contain the special token {token}, got"):
        processor.segmentation_inputs(picture(), ["a dog", sentence])


@pytest.mark.parametrize(
    "sentence, token",
    [
        ("The <|image_pad|>", r"<\|image_pad\|>"),
        ("a dog <|im_end|>", r"<\|im_end\|>"),
        ("<|im_start|>system", r"<\|im_start\|>"),
        ("<|vision_start|>", r"<\|vision_start\|>"),
        ("the <|Seg|>", r"<\|seg\|>"),
    ],
)
@pytest.mark.parametrize("medium", ["images", "videos"])
def test_special_tokens_of_qwen(sentence, token, medium):
    media = {medium: [picture()] if medium == "images" else [[picture()]]}
    with pytest.raises(ValueError, match=f"`expressions` must not contain the special token {token}, got"):
        processor_of(FAMILIES[1]).segmentation_inputs(**media, expressions=sentence)


def test_expressions_of_a_call_too(family):
    """There, guidance alone reads them."""
    end = "<|endoftext|>"
    with pytest.raises(ValueError, match="must not contain the special token"):
        processor_of(family, with_clip=True)(images=picture(), text=family.prompt("Where?"), expressions=f"a {end} b")


def test_words_are_no_special_tokens(family):
    """Some CLIPs pad with "!", and CLIP's token for unknown words is its end token."""
    processor = processor_of(family)
    for sentence in ("the dog!", "a < s > sign", "image", "50 % off, <3"):
        assert len(processor.segmentation_inputs(picture(), sentence)["input_ids"]) == 1
    tokenizer = tiny_llava.tiny_guidance_tokenizer()
    tokenizer.pad_token = "!"
    check_special_tokens(["look, a dog!"], [tokenizer])


def test_texts_that_are_no_unicode(family):
    """Bytes that are no UTF-8, as Python reads them from a command line or a file."""
    processor, sentence = processor_of(family), b"caf\xe9 sign".decode("utf-8", "surrogateescape")
    prompt = family.prompt("Where?")
    for name, call in {
        "expressions": lambda: processor.segmentation_inputs(picture(), [sentence]),
        "question_template": lambda: processor.segmentation_inputs(picture(), "a", question_template=sentence),
        "answer_template": lambda: processor.segmentation_inputs(picture(), "a", answer_template=[sentence]),
        "text": lambda: processor(images=picture(), text=[family.prompt(sentence)]),
        "expressions ": lambda: processor(images=picture(), text=prompt, expressions=[[sentence]]),
    }.items():
        with pytest.raises(ValueError, match=rf"`{name.strip()}` must be valid Unicode, got .*caf\\udce9 sign"):
            call()
    assert len(processor.segmentation_inputs(picture(), "café 😀")["input_ids"]) == 1


def test_settings_of_the_model_are_not_ignored(family):
    """As when a pipeline of Transformers gets them, which passes to the processor what it does not know itself."""
    processor = processor_of(family)
    message = "`pruning_budget` is no argument of a processor.*`model_kwargs={'pruning_budget': 4}`"
    with pytest.raises(ValueError, match=message):
        processor(images=picture(), text=family.prompt("Where?"), pruning_budget=4)


def test_messages_quote_the_beginning_and_the_end(family):
    with pytest.raises(ValueError) as caught:
        processor_of(family).segmentation_inputs(picture(), f"a {'dog ' * 10_000}<|endoftext|>")
    assert len(str(caught.value)) < 200 and "<|endoftext|>'" in str(caught.value)


@pytest.mark.parametrize("wrong", [False, 7, {"a": 1}, ["a", None], [["a"], [7]], [[["a"]]]], ids=str)
def test_texts_that_are_none(family, wrong):
    processor = processor_of(family)
    if wrong != [[["a"]]]:  # transformers has a word about texts that are nested
        with pytest.raises(ValueError, match="`text` must be a text or a list of texts, got "):
            processor(images=picture(), text=wrong)
    for name in ("question_template", "answer_template"):
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            processor.segmentation_inputs(picture(), "a dog", **{name: wrong})


def test_questions_that_ask_for_masks(family):
    processor = processor_of(family)
    seg = processor.seg_token
    for how in ({}, {"for_generation": True}):
        with pytest.raises(ValueError, match="`question_template` must not contain .*: it asks for no mask"):
            processor.segmentation_inputs(picture(), "a", question_template=f"Is {{expression}} {seg}?", **how)
    with pytest.raises(ValueError, match="`question_template` must contain {expression}, got ''"):
        processor.segmentation_inputs(picture(), "a", question_template="")


def test_templates_that_would_ignore_the_sentence_or_the_mask(family):
    processor = processor_of(family)
    for name, call in {
        "question_template": lambda: processor.segmentation_inputs(picture(), "a", question_template="Segment it."),
        "answer_template": lambda: processor.segmentation_inputs(
            picture(), ["a", "b"], answer_template=["No.", "No."]
        ),
    }.items():
        part = EXPRESSION if name == "question_template" else processor.seg_token
        with pytest.raises(ValueError, match=f"`{name}` must contain {re.escape(part)}, got '(Segment it|No).'"):
            call()
    settings = [{"answer_templates": ["Sure."]}, {"question_templates": []}, {"question_templates": "{expression}?"}]
    # No template, but silent as well: any text counts as true.
    settings += [{"one_expression_per_dialogue": text} for text in ("no", "false", 0, None)]
    for setting in settings:
        with pytest.raises(ValueError, match=f"`{next(iter(setting))}` must "):
            type(processor)(processor.image_processor, processor.tokenizer, **setting)
