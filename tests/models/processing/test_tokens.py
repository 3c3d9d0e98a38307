"""Tokens of sentences of different lengths, on tokenizers that others use, too."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.support import tiny_llava
from tests.support import tiny_qwen2_5_vl as tiny_qwen
from tests.support.families import picture
from transformers_litelvlm.models.processing.sentences import tokenize_guidance, tokenize_questions
from transformers_litelvlm.models.processing.tokens import encode, tokenize


SENTENCES = [f"the {'very ' * (i % 7)}long name of thing {i}" for i in range(12)]


def qwen_processor():
    processor = tiny_qwen.tiny_processor()
    processor.mask_image_size = 32
    return processor


@pytest.mark.parametrize("make", [tiny_llava.tiny_processor, qwen_processor])
def test_threads_share_a_processor(make):
    """With others who pad and truncate with the same tokenizers: these are settings of an object that all share."""
    processor, image = make(), picture(16, 16)
    tokenizers = [t for t in (processor.tokenizer, processor.guidance_tokenizer) if t is not None]

    def disturb(index):
        for tokenizer in tokenizers:
            cut = {"truncation": True, "max_length": 9 + index % 5} if index % 2 == 0 else {}
            tokenizer(SENTENCES[: 1 + index % 3], padding=True, **cut)

    def prepare(index):
        if index % 3 == 0:
            return disturb(index)
        return processor.segmentation_inputs(image, SENTENCES[index % 12], for_generation=index % 2 == 0)

    alone = [None if index % 3 == 0 else prepare(index) for index in range(48)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for own, expected in zip(pool.map(prepare, range(48)), alone):
                assert (own is None) == (expected is None)
                assert own is None or all(torch.equal(own[name], expected[name]) for name in expected)


def test_what_another_call_set_changes_nothing():
    tokenizer = tiny_llava.tiny_tokenizer()
    expected = encode(tokenizer, ["ab [SEG]", "a"])
    assert expected[1] == [1, tokenizer.convert_tokens_to_ids("a")] and expected[0][-1] == 4
    tokenizer(["abc", "a"], padding="max_length", truncation=True, max_length=3, split_special_tokens=True)
    assert encode(tokenizer, ["ab [SEG]", "a"]) == expected
    assert tokenizer.backend_tokenizer.padding is not None  # it stays as it was


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_upstreams(side):
    tokenizer, texts = tiny_llava.tiny_tokenizer(), ["ab", "abcd", ""]
    expected = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    own = tokenize(tokenizer, texts, side)
    assert own.keys() == expected.keys() and all(torch.equal(own[name], expected[name]) for name in own)


def test_truncation_is_upstreams():
    tokenizer = tiny_llava.tiny_guidance_tokenizer()
    sentences = ["x" * 200, "short", "y" * 75, "z" * 76]
    expected = tokenizer(sentences, padding=True, truncation=True, max_length=77, return_tensors="pt")
    own = tokenize_guidance(tokenizer, [[sentence] for sentence in sentences])
    questions = tokenize_questions(tokenizer, sentences, has_one_width=True)
    for name in expected:
        assert torch.equal(own[f"guidance_{name}"].squeeze(1), expected[name])
        assert torch.equal(questions[f"guidance_{name}"], expected[name])
    # CLIP's have one width, so that pipelines can put calls together; others have none to go by.
    assert tokenize_questions(tokenizer, ["a"], has_one_width=True)["guidance_input_ids"].shape == (1, 77)
    assert tokenize_questions(tokenizer, ["a"], has_one_width=False)["guidance_input_ids"].shape == (1, 3)
