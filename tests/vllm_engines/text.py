"""vLLM writes the tokens that our models in transformers write: greedy, in float32, whatever it has in its caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from vllm import SamplingParams

from transformers_litelvlm import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteProcessor,
    Qwen2_5_VLLite,
    Qwen2_5_VLLiteProcessor,
    Qwen3_VLLite,
    Qwen3_VLLiteProcessor,
)
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.serving.vllm.processing import PrunedProcessorMixin
from transformers_litelvlm.serving.vllm.requested import as_ours


NEW_TOKENS = 12
LLAVA = {"budget": 48, "method_options": {"context_share": 0.0}, "token_order": "raster"}
QWEN = {"retention_ratio": 0.4, "method": "litelvlm", "method_options": {"context_share": 0.0}}
# Name of a case -> checkpoint, settings, whether positions are taken from embeddings before the language model (as on
# a GPU) or in it.
CASES = {
    "llava-compact": ("talkative", {**LLAVA, "position_ids": "compact"}, False),
    "llava-original": ("talkative", {**LLAVA, "position_ids": "original"}, False),
    "llava-original-seam": ("talkative", {**LLAVA, "position_ids": "original"}, True),
    "llava-stock": ("stock_llava", {**LLAVA, "position_ids": "original"}, False),
    "llava-off": ("talkative", {"budget": None}, False),
    "qwen2_5_vl": ("qwen2_5_vl", QWEN, False),
    "qwen2_5_vl-seam": ("qwen2_5_vl", QWEN, True),
    "qwen2_5_vl-stock": ("qwen2_5_vl-stock", QWEN, False),
    "qwen3_vl": ("qwen3_vl", QWEN, False),
    "qwen3_vl-seam": ("qwen3_vl", QWEN, True),
    "qwen3_vl-stock": ("qwen3_vl-stock", QWEN, False),
}


def ours(path: str, pruning: dict) -> tuple[Any, Any]:
    """Our model in transformers, and its processor."""
    clip: dict[str, Any] = {}
    if "stock_llava" in path:
        model, processor = LlavaLiteForConditionalGeneration, LlavaLiteProcessor
        clip = {"guidance_model": f"{path}/clip"}
    elif "talkative" in path:
        model, processor = LlavaLiteForConditionalGeneration, AutoProcessor
    elif "qwen2_5" in path:
        model, processor = Qwen2_5_VLLite, Qwen2_5_VLLiteProcessor
    else:
        model, processor = Qwen3_VLLite, Qwen3_VLLiteProcessor
    loaded = model.from_pretrained(path, pruning_config=pruning, dtype=torch.float32, **clip)
    reader = {"guidance_tokenizer": clip["guidance_model"]} if clip else {}
    return loaded.eval(), processor.from_pretrained(path, **reader)


def questions(path: str) -> list[tuple[list[Image.Image], list[list[str]]]]:
    """Pictures and sentences: the same picture with different sentences, two pictures, and two sentences at once."""
    if "qwen" not in path:
        scenes = [generate_scene("test", index) for index in range(3)]
        pictures = [Image.fromarray(scene.image) for scene in scenes]
        sentences = [[each.sentence for each in scene.expressions] for scene in scenes]
    else:
        generator = np.random.default_rng(0)
        sizes = ((64, 96), (80, 48), (96, 96))
        pictures = [Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
        sentences = [["the red circle", "a dog", "the sky above"]] * 3
    single = [([pictures[i]], [[sentence]]) for i in range(3) for sentence in sentences[i][:2]]
    first, second = pictures[:2]
    both = [([first, second], [[sentences[0][x]], [sentences[1][y]]]) for x, y in ((0, 0), (0, 1), (1, 0))]
    return [*single, *both, ([first], [sentences[0][:2]])]


def chat(processor: Any, question: str, num_images: int) -> str:
    content = [*[{"type": "image"}] * num_images, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def requests(processor: Any, path: str) -> list[dict[str, Any]]:
    question = "Tell me all about it. " * 2
    return [
        {
            "prompt": chat(processor, question, len(images)),
            "multi_modal_data": {"image": images},
            "mm_processor_kwargs": {"expressions": expressions},
        }
        for images, expressions in questions(path)
    ]


def answer_of(model: Any, processor: Any, request: dict[str, Any]) -> list[int]:
    images, further = request["multi_modal_data"]["image"], request.get("mm_processor_kwargs", {})
    inputs = processor(images=images, text=request["prompt"], return_tensors="pt", **further)
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def answers(engine: Any, asked: list[dict[str, Any]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    return [list(output.outputs[0].token_ids) for output in engine.generate(asked, params, use_tqdm=False)]


def forget(engine: Any) -> None:
    engine.reset_prefix_cache()
    engine.reset_mm_cache()
    engine.llm_engine.reset_encoder_cache()


@pytest.fixture(scope="module", params=CASES)
def served(request, checkpoint, start_engine):
    """An engine, requests, and what our model answers."""
    name, pruning, by_seam = CASES[request.param]
    path = checkpoint(name)
    further = {"guidance_model": f"{path}/clip"} if name == "stock_llava" else {}
    engine = start_engine(path, pruning, runner="generate", hf_overrides={"pruning_config": pruning, **further})
    if by_seam:
        engine.llm_engine.model_executor.driver_worker.worker.model_runner.is_multimodal_pruning_enabled = True
    model, processor = ours(path, pruning)
    asked = requests(processor, path)
    expected = [answer_of(model, processor, each) for each in asked]
    return engine, asked, expected, (model, processor)


@pytest.fixture
def is_variant(request) -> bool:
    """Whether another case tests the rest: the same model in another way."""
    name = request.node.callspec.params["served"]
    return name.endswith(("-seam", "-stock"))


def test_answers_depend_on_the_sentence(served):
    _, _, expected, _ = served
    is_off = not served[3][0].config.pruning_config.is_on
    assert len({tuple(answer) for answer in expected}) >= (3 if is_off else 6)


def test_alone_together_and_again(served, is_variant):
    engine, asked, expected, _ = served
    forget(engine)
    assert [answers(engine, [each])[0] for each in asked] == expected  # caches fill up
    assert answers(engine, asked) == expected  # prefix blocks and processed pictures are known
    if is_variant:
        return
    engine.reset_prefix_cache()
    assert answers(engine, asked) == expected  # encoded pictures are known
    forget(engine)
    assert answers(engine, asked[::-1]) == expected[::-1]  # nothing is known


def test_sentence_from_the_prompt(served, is_variant):
    engine, asked, _, (model, processor) = served
    if is_variant:
        return
    bare = [{"prompt": each["prompt"], "multi_modal_data": each["multi_modal_data"]} for each in asked[::2]]
    assert answers(engine, bare) == [answer_of(model, processor, each) for each in bare]


def test_fewer_tokens(served):
    engine, asked, _, (model, _) = served
    settings = model.model.settings()
    [output] = engine.generate(asked[:1], SamplingParams(max_tokens=1), use_tqdm=False)
    count = output.prompt_token_ids.count(model.config.image_token_id)
    size = 144 if "llava" in model.config.model_type else 96 // 8 * 64 // 8
    assert count == settings.budgets([size])[0]


def test_control_without_the_sentence_in_the_key(served, is_variant, monkeypatch):
    """If the key of a picture leaves the sentence out, the tests above fail: they would notice."""
    engine, asked, expected, (model, _) = served
    if is_variant or not model.config.pruning_config.is_on:
        return
    assert num_wrong(engine, asked, expected, monkeypatch, keywords=()) >= 3


def num_wrong(engine, asked, expected, monkeypatch, keywords) -> int:
    """Wrong answers, one request after the other, if of what was asked the key of a picture has only `keywords`."""

    def hashes(self, inputs):
        kwargs = {name: inputs.hf_processor_mm_kwargs[name] for name in keywords}
        return super(PrunedProcessorMixin, self)._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=kwargs))

    forget(engine)
    monkeypatch.setattr(PrunedProcessorMixin, "_get_mm_hashes", hashes, raising=False)
    found = [answers(engine, [each])[0] for each in asked]
    forget(engine)
    return sum(a != b for a, b in zip(found, expected))


def changed(path: str) -> list[dict[str, Any]]:
    """Settings of requests: fewer tokens by number and by rate, another method, another selection of as many."""
    fewer = {"pruning_retention_ratio": 0.2} if "qwen" in path else {"pruning_budget": 30}
    return [
        {},
        fewer,
        {"image_pruning_rate": 0.7},
        {"image_pruning_method": "divprune", **fewer},
        {"pruning_method_options": {"ranking": "forward", "context_share": 0.0}},
    ]


def with_settings(served) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Requests about one picture, and about two, that differ in their settings alone; and what our model answers."""
    _, asked, _, (model, processor) = served
    settings = changed(model.config.model_type)
    kinds = [(asked[place], of_request) for place in (0, -2) for of_request in settings]
    found = [
        {**each, "mm_processor_kwargs": {**each["mm_processor_kwargs"], **of_request}} for each, of_request in kinds
    ]
    own, expected = model.config.pruning_config, []
    for each, of_request in kinds:
        model.config.set_pruning(**as_ours(of_request))
        expected.append(answer_of(model, processor, each))
        model.config.pruning_config = own
    return found, expected


def test_settings_of_requests(served, is_variant):
    """Each request is answered with its own, whatever others have, and whatever is in the caches."""
    engine, asked, answered, (model, _) = served
    if not model.config.pruning_config.is_on:
        return
    found, expected = with_settings(served)
    assert len({tuple(answer) for answer in expected}) >= 8
    forget(engine)
    assert answers(engine, found) == expected  # nothing is known, all at once
    assert answers(engine, found[::-1]) == expected[::-1]  # everything is known
    if is_variant:
        return
    engine.reset_prefix_cache()
    assert answers(engine, found) == expected  # encoded pictures are known
    forget(engine)
    assert [answers(engine, [each])[0] for each in found] == expected
    assert answers(engine, asked) == answered


def test_control_without_the_settings_in_the_key(served, is_variant, monkeypatch):
    engine, _, _, (model, _) = served
    if is_variant or not model.config.pruning_config.is_on:
        return
    found, expected = with_settings(served)
    assert num_wrong(engine, found, expected, monkeypatch, keywords=("expressions",)) >= 4


def test_refused_settings(served, is_variant):
    engine, asked, answered, (model, _) = served
    if is_variant:
        return
    is_qwen = "qwen" in model.config.model_type
    other = "compact" if model.model.settings().keeps_positions else "original"
    cases = [
        ({"pruning_method": "fastv"}, "inside the language model"),
        ({"pruning_bugdet": 5}, "pruning_bugdet"),
        ({"pruning": 5}, "pruning"),
        ({"pruning_config": {"bugdet": 5}}, "bugdet"),
        ({"image_pruning_rate": 1}, "image_pruning_rate"),
        ({"image_pruning_rate": 0.5, "pruning_budget": 5}, "exclude each other"),
        ({"image_pruning_method": "trim", "pruning_method": "trim"}, "exclude each other"),
        ({"expression": "the red circle"}, "'expression'.*there are expressions"),
        ({"crop_size": {"height": 32, "width": 32}}, "'crop_size'"),
        ({"pruning_position_ids": other}, "compact" if is_qwen else "start the server with"),
    ]
    if not is_qwen:  # there, the largest picture that may come says how many there can be
        cases += [({"pruning_budget": budget}, "larger budget") for budget in (49, None)]
    if not model.config.pruning_config.is_on:
        cases = [({"pruning_budget": 5}, "without pruning")]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            answers(engine, [{**asked[0], "mm_processor_kwargs": settings}])
        assert "\n" not in str(raised.value)
    assert answers(engine, asked[:1]) == answered[:1]


def test_refused_prompts_and_pictures(served, is_variant):
    """An image token too many would take the position of a visual token. What is wrong with a picture is said as our
    processor says it."""
    engine, asked, answered, (_, processor) = served
    if is_variant:
        return
    token, request = processor.image_token, asked[0]
    narrow = {"multi_modal_data": {"image": [Image.new("RGB", (1, 3000))]}}
    cases = [({"prompt": request["prompt"].replace(token, token * 2)}, "one image token for each picture, and has 2")]
    cases += [({"prompt": request["prompt"].replace(token, "")}, "one image token for each picture, and has 0")]
    cases += [(narrow, "1 x 3000 pixels|aspect ratio")]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            answers(engine, [{**request, **changes}])
        assert "\n" not in str(raised.value)
    assert answers(engine, asked[:1]) == answered[:1]
