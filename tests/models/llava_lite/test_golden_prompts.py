"""Prompts of GLaMM and LISA, id for id as the tokenizer and the conversation classes of the originals made them.

Golden: glamm_prompts_reference.json and lisa_prompts_reference.json, ids of the slow LLaMA tokenizer of transformers
4.28.1. They need LLaMA's tokenizer.model, which the project does not hold.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from tests.support.matrix import matrix
from tests.support.original_checkpoints import FIXTURES, TOKENIZER_MODEL
from tests.support.tiny_llava import tiny_guidance_tokenizer
from transformers_litelvlm import LlavaLiteProcessor
from transformers_litelvlm.conversion.recipes.legacy_tokenizer import load_legacy_tokenizer
from transformers_litelvlm.models.llava_lite.grounding_prompts import PROMPTS
from transformers_litelvlm.models.prompt.compaction import plan_compaction


pytestmark = pytest.mark.skipif(not TOKENIZER_MODEL.exists(), reason=f"{TOKENIZER_MODEL} is not here")

SIDES = {"glamm": 336, "lisa": 224}
# How LISA's code treated the sentence before it put it into the template.
KEEPS_CASE = {"eval_reason_sentence", "eval_reason_word", "train_long", "chat_open"}
FILES = {name: json.loads((FIXTURES / f"{name}_prompts_reference.json").read_text()) for name in SIDES}
ITEMS = [(name, item) for name, content in FILES.items() for item in content["items"]]


@pytest.fixture(scope="module", params=matrix(["as built", "saved and loaded"], "as built".__eq__))
def processors(request, tmp_path_factory):
    built = {}
    for name, side in SIDES.items():
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(TOKENIZER_MODEL, folder)
        added = FILES[name]["tokenizer"]["added_tokens"]
        (folder / "added_tokens.json").write_text(json.dumps(added))
        built[name] = LlavaLiteProcessor(
            image_processor=CLIPImageProcessorPil(
                size={"shortest_edge": side}, crop_size={"height": side, "width": side}
            ),
            tokenizer=load_legacy_tokenizer(folder),
            guidance_tokenizer=tiny_guidance_tokenizer(),
            patch_size=14,
            **PROMPTS[name],
        )
        if request.param == "saved and loaded":
            built[name].save_pretrained(folder / "saved")
            built[name] = AutoProcessor.from_pretrained(folder / "saved")
    return built


def prompt_of(processor, item) -> tuple[str, list[str]]:
    """Prompt and questions, from the expressions as a data set gives them and the templates they were put into."""
    turns = []
    for turn in item["turns"]:
        if "template" in turn:  # LISA
            template = turn["template"].removeprefix("<image>\n").strip()
            template = template.replace("{}", "{expression}")
            template = template.replace("{class_name}", "{expression}").replace("{sent}", "{expression}")
            as_written = item["kind"] in KEEPS_CASE
        else:
            template = processor.question_templates[turn["question_template_index"]]
            as_written = False
        question = processor.question(turn["expression"], template, as_written)
        turns.append((question, turn["answer"]))
    for_generation = turns[-1][1] is None
    return processor.dialogue(turns, for_generation), [question for question, _ in turns]


def test_every_prompt(processors):
    picture = Image.fromarray(np.zeros((28, 28, 3), dtype=np.uint8))
    wrong = []
    for name, item in ITEMS:
        processor = processors[name]
        prompt, questions = prompt_of(processor, item)
        features = processor(images=picture, text=prompt, expressions="x", return_tensors="pt")
        ids = features["input_ids"][0]
        is_image = ids == processor.image_token_id
        num_tokens = (SIDES[name] // 14) ** 2
        assert is_image.sum() == num_tokens
        first = int(is_image.int().argmax())
        collapsed = [*ids[:first].tolist(), -200, *ids[first + num_tokens :].tolist()]
        if collapsed != item["input_ids"] or first != item["image_position"]:
            wrong.append(item["id"])
            continue
        assert processor.tokenizer.convert_tokens_to_ids("[SEG]") not in ids[:first]
        if "clip_texts" in item:
            assert questions == item["clip_texts"]

        seg = processor.tokenizer.convert_tokens_to_ids("[SEG]")
        for kept, positions in item["mask_state_positions_expanded"].items():
            kept = int(kept)
            plan = plan_compaction(is_image[None], torch.arange(kept)[None], [num_tokens])
            shortened = ids if plan is None else plan.apply(ids[None], 0)[0]
            assert ((shortened == seg).nonzero().flatten() - 1).tolist() == positions
    print(f"{len(ITEMS) - len(wrong)} of {len(ITEMS)} prompts have the ids and positions of the original")
    assert not wrong
    assert len(ITEMS) == 172 + 87


@pytest.mark.parametrize("name", SIDES)
def test_templates_are_those_of_the_originals(processors, name):
    golden, processor = FILES[name], processors[name]
    assert sorted(processor.answer_templates) == sorted(golden["answer_templates"])
    if name == "glamm":
        wanted = [text.replace("{class_name}", "{expression}") for text in golden["question_templates"]]
        assert processor.question_templates == wanted
        return
    texts = [*golden["short_templates"], *golden["long_templates"]]
    texts += [golden["eval_word_template"], golden["eval_sentence_template"]]
    for text in texts:
        text = text.removeprefix("<image>\n").strip()
        for field in ("{class_name}", "{sent}", "{}"):
            text = text.replace(field, "{expression}")
        assert text in processor.question_templates
    # What its evaluation of referring expressions asks and answers comes first.
    assert processor.question_templates[0] == golden["eval_word_template"][9:].replace("{}", "{expression}")
    assert processor.answer_templates[0] == "[SEG]."


def test_placeholder_ids_lie_behind_the_published_tables(processors):
    for name, rows in (("glamm", 32007), ("lisa", 32004)):
        assert (
            processors[name].image_token_id
            == rows
            == FILES[name]["tokenizer"]["added_tokens"]["[SEG]"] + (3 if name == "glamm" else 1)
        )


def test_chats_get_the_same_layout(processors):
    """The chat template, as users of Transformers call it, gives the original's open prompt."""
    for name, item in ITEMS:
        if item["kind"] not in ("open", "chat_open") or len(item["turns"]) > 1:
            continue
        question = item["turns"][0]["question"].removeprefix("<image>\n").strip()
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processors[name].apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == item["prompt_text"].replace("<im_end>\n ", "<im_end>\n")
