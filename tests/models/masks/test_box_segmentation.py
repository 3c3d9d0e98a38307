"""A chat model joined to a mask model: which masks come of which answers, and what pruning has to do with it."""

import pytest
import torch

from tests.support import tiny_internvl
from tests.support.box_models import answer_with, noise, save_tiny_sam, save_tiny_sam2
from tests.support.hub_cache import put_into_cache
from tests.support.tiny_llava import save_tiny_checkpoint, tiny_guidance_tokenizer
from tests.support.tiny_qwen2_5_vl import QWEN2_5_VL, tiny_tokenizer
from tests.support.tiny_qwen3_5 import QWEN3_5
from tests.support.tiny_qwen3_vl import QWEN3_VL
from transformers_litelvlm import (
    InternVLLiteForConditionalGeneration,
    PruningConfig,
    Qwen2_5_VLLite,
    Qwen3_5Lite,
    Qwen3_VLLite,
)
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.models.devices import to_model
from transformers_litelvlm.models.masks.box_segmentation import BoxSegmentation
from transformers_litelvlm.models.masks.boxes import LocatedObject
from transformers_litelvlm.models.outputs import PrunedGenerateOutput
from transformers_litelvlm.models.prompt.pruned_prompt import prune_prompt
from transformers_litelvlm.models.upstream import NO_OBJ_SCORE


CHATS = {
    "qwen2_5": (QWEN2_5_VL, Qwen2_5_VLLite),
    "qwen3": (QWEN3_VL, Qwen3_VLLite),
    "qwen3_5": (QWEN3_5, Qwen3_5Lite),
    "internvl": (tiny_internvl, InternVLLiteForConditionalGeneration),
}
PRUNINGS = [{}, {"budget": 4}, {"budget": 4, "method": "fastv"}]
# No method works inside the recurrent layers of Qwen3.5.
CASES = [(name, pruning) for name in CHATS for pruning in PRUNINGS if (name, "method" in pruning) != ("qwen3_5", True)]
PICTURES = [noise(96, 64), noise(64, 80, seed=1)]
ANSWERS = {
    "the dog": '[{"bbox_2d": [100, 100, 500, 600], "label": "dog"}]',
    "all animals": '[{"bbox_2d": [100, 100, 500, 600]}, {"bbox_2d": [600, 200, 900, 900]}]',
    "the unicorn": "[]",
    "the riddle": "It is hard to tell.",
    "the tail": "(250, 300)",
}
UNPRUNED = PruningConfig(budget=None)


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    return save_tiny_sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


def joined(sam, name="qwen3", **pruning):
    tiny, _ = CHATS[name]
    return BoxSegmentation.join(tiny.tiny_model(**pruning), tiny.tiny_processor(), sam)


def scripted(monkeypatch, sam, answers=None, **pruning):
    model = joined(sam, **pruning)
    answer_with(monkeypatch, Qwen3_VLLite, model.processor.chat, ANSWERS if answers is None else answers)
    return model


def segment(model, pictures, expressions, **arguments):
    inputs = model.processor.segmentation_inputs(images=pictures, expressions=expressions)
    return model.segment(**inputs, **arguments)


# ---- answers to masks -----------------------------------------------------------------------------------------------


def test_masks_follow_the_boxes(monkeypatch, sam):
    model = scripted(monkeypatch, sam)
    output = segment(model, PICTURES[:1], [["the dog", "all animals", "the tail"]])
    dog, animals, tail = output.answers[0]
    assert dog.objects == (LocatedObject((pytest.approx(9.6), 6.4, 48, pytest.approx(38.4)), (), "dog"),)
    assert [len(answer.objects) for answer in (dog, animals, tail)] == [1, 2, 1]
    assert tail.objects[0].points == ((24.0, pytest.approx(19.2)),)
    assert output.masks[0].shape == (3, 64, 96)
    assert [masks.shape for masks in output.object_masks[0]] == [(1, 64, 96), (2, 64, 96), (1, 64, 96)]
    for mask, objects in zip(output.masks[0], output.object_masks[0], strict=True):
        assert torch.equal(mask, objects.any(0))
    assert torch.equal(output.object_masks[0][0][0], output.object_masks[0][1][0])  # the same box
    assert not torch.equal(output.object_masks[0][1][0], output.object_masks[0][1][1])
    assert output.object_scores is None and 0.5 < output.scores[0].max() <= 1


def test_pictures_are_encoded_for_masks_beside_the_language_model(monkeypatch, sam):
    model = scripted(monkeypatch, sam)
    asked = (PICTURES, [["the dog"], ["all animals"]])
    for one, other in zip(segment(model, *asked).masks, segment(model, *asked, overlap_masks=True).masks, strict=True):
        assert torch.equal(one, other) and one.any()


def test_pixels_for_masks_keep_the_precision_of_the_mask_model(monkeypatch, sam2):
    """The chat model is in half precision, the mask model beside it is not."""
    model = scripted(monkeypatch, sam2)
    model.chat.to(torch.bfloat16)
    inputs = model.processor.segmentation_inputs(images=PICTURES[:1], expressions=["the dog"])
    moved = to_model(inputs, model)
    assert (moved["pixel_values"].dtype, moved["input_ids"].dtype) == (torch.bfloat16, torch.long)
    exact, rounded = model.segment(**moved), model.segment(**inputs.to("cpu", dtype=model.dtype))
    inputs = model.processor.segmentation_inputs(images=PICTURES[:1], expressions=["the dog"])
    assert torch.equal(exact.mask_logits[0], model.segment(**inputs).mask_logits[0])
    assert not torch.equal(exact.mask_logits[0], rounded.mask_logits[0])


def test_a_processor_of_transformers_is_refused(sam):
    chat = QWEN3_VL.tiny_model()
    with pytest.raises(ValueError, match="models of CLIPTokenizer write boxes: .* this package's classes"):
        BoxSegmentation.join(chat, tiny_guidance_tokenizer(), sam)


def test_nothing_located_is_an_empty_mask_that_says_why(monkeypatch, sam2):
    model = scripted(monkeypatch, sam2)
    output = segment(model, PICTURES[:1], [["the unicorn", "the riddle", "the dog"]])
    assert [answer.says_none for answer in output.answers[0]] == [True, False, False]
    assert [len(masks) for masks in output.object_masks[0]] == [0, 0, 1]
    assert not output.masks[0][:2].any() and output.scores[0][:2].tolist() == [0, 0]
    assert output.iou_scores[0][:2].tolist() == [0, 0] and output.iou_scores[0][2] != 0
    assert output.object_scores[0][:2].tolist() == [NO_OBJ_SCORE] * 2 and output.object_scores[0][2] > NO_OBJ_SCORE
    assert output.answers[0][1].text == "It is hard to tell."


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_a_batch_is_its_pictures_one_by_one(monkeypatch, request, kind):
    model = scripted(monkeypatch, request.getfixturevalue(kind), pruning_budget=4)
    expressions = [["the dog", "the unicorn"], ["all animals"]]
    together = segment(model, PICTURES, expressions)
    assert len(together.masks) == 2 and together.masks[1].shape == (1, 80, 64)
    for index, (picture, of_picture) in enumerate(zip(PICTURES, expressions, strict=True)):
        alone = segment(model, [picture], [of_picture])
        assert alone.answers[0] == together.answers[index]
        # With two threads on a processor with AVX-512, 2.3e-4 was seen.
        torch.testing.assert_close(alone.mask_logits[0], together.mask_logits[index], rtol=1e-5, atol=1e-3)


def test_boxes_of_internvl_are_on_the_whole_picture(monkeypatch, sam):
    """Whatever its tiles are."""
    model = joined(sam, "internvl")
    answers = {"the dog": "<ref>the dog</ref><box>[[100, 100, 500, 600]]</box>"}
    answer_with(monkeypatch, InternVLLiteForConditionalGeneration, model.processor.chat, answers)
    pictures = [noise(96, 64), noise(32, 96)]
    inputs = model.processor.segmentation_inputs(images=pictures, expressions=[["the dog"]] * 2)
    assert "mm_token_type_ids" not in inputs and min(inputs["num_tiles"]) > 1
    output = model.segment(**inputs)
    for picture, [answer], masks in zip(pictures, output.answers, output.masks, strict=True):
        width, height = picture.size
        assert answer.enclosing_box == pytest.approx((0.1 * width, 0.1 * height, 0.5 * width, 0.6 * height))
        assert masks.shape == (1, height, width)


def test_pixels_of_the_resized_picture(monkeypatch, sam):
    """Qwen2.5-VL's units, whatever the size of the picture."""
    model = joined(sam, "qwen2_5")
    sizes = []

    def answer(width, height):
        sizes.append((width, height))
        return f'{{"bbox_2d": [{width // 2}, 0, {width}, {height // 2}]}}'

    answer_with(monkeypatch, Qwen2_5_VLLite, model.processor.chat, {"the dog": answer})
    picture = noise(301, 203)
    [box] = segment(model, [picture], [["the dog"]]).answers[0][0].objects
    assert sizes[0] != picture.size  # so it was resized
    assert box.box == pytest.approx((150.5, 0, 301, 101.5), abs=1)


# ---- the chat model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, pruning", CASES, ids=str)
def test_answers_are_those_of_generate(sam, name, pruning):
    """A batch about two pictures of different sizes, one asked twice, against `generate` for each prompt alone."""
    tiny, _ = CHATS[name]
    model = joined(sam, name)
    model.max_new_tokens = 6
    options = {"layer": 1} if pruning.get("method") == "fastv" else {}
    setting = PruningConfig(**{"method": "divprune", **pruning, "method_options": options}) if pruning else UNPRUNED
    expressions = [["the dog", "the cat on the left"], ["it"]]
    inputs = model.processor.segmentation_inputs(images=PICTURES, expressions=expressions)
    read = model.read(inputs, settings=model.model.settings(setting))
    assert (read.kept is not None) == bool(pruning)
    row = 0
    for picture, of_picture in zip(PICTURES, expressions, strict=True):
        for expression in of_picture:
            question = model.processor.question_templates[0].replace("{expression}", expression)
            prompt = model.processor.dialogue(question)
            alone = tiny.tiny_processor()(images=[picture], text=[prompt], expressions=expression, return_tensors="pt")
            full = model.chat.generate(**alone, pruning_config=setting, do_sample=False, max_new_tokens=6)
            answer = full[0, alone["input_ids"].shape[1] :]
            assert torch.equal(read.new_ids[row][: len(answer)], answer)
            row += 1
    assert row == len(read.new_ids) == 3


def test_the_generation_config_of_the_chat_model_limits_answers(sam):
    model = joined(sam)
    model.chat.generation_config.max_new_tokens = 3
    inputs = model.processor.segmentation_inputs(images=PICTURES[:1], expressions=[["the dog"]])
    assert model.read(inputs).new_ids.shape[1] <= 3


def test_what_was_kept_is_told(sam):
    model = joined(sam, pruning_budget=4, pruning_method="uniform")
    model.max_new_tokens = 2
    output = segment(model, PICTURES[:1], [["the dog", "the cat"]])
    assert [len(kept) for kept in output.retained_indices] == [4, 4]
    assert segment(model, PICTURES[:1], [["the dog"]], pruning_config=UNPRUNED).retained_indices is None


class WhereItIs(Qwen3_VLLite):
    """Answers with the place that the language model is told for the visual token of one cell of the picture."""

    cell: int

    def generate(self, input_ids, **kwargs):
        settings = kwargs["pruning_config"]
        arguments = {name: kwargs[name] for name in self.model.prompt_arguments if name in kwargs}
        arguments["input_ids"] = input_ids
        prompt = prune_prompt(self.model, arguments, settings, positions=lambda: self._full_positions(arguments))
        inputs = prompt.inputs
        visual = (inputs["input_ids"][0] == self.config.image_token_id).nonzero()[:, 0]
        kept = prompt.kept("image")
        order = torch.arange(len(visual)) if kept is None else kept.retained_indices[0]
        column = visual[order.tolist().index(self.cell)]
        positions = inputs.get("position_ids")
        positions = self._full_positions(arguments) if positions is None else positions
        first = (input_ids[0] == self.config.image_token_id).nonzero()[0, 0]
        row, cell = (positions[-2:, 0, column] - first).tolist()
        rows, columns = (kwargs["image_grid_thw"][0, 1:] // 2).tolist()
        box = [1000 * cell / columns, 1000 * row / rows, 1000 * (cell + 1) / columns, 1000 * (row + 1) / rows]
        new = tiny_tokenizer()(str([round(value) for value in box]), return_tensors="pt")["input_ids"]
        return PrunedGenerateOutput(sequences=torch.cat((input_ids, new), dim=1), image_outputs=kept)


def test_boxes_stay_where_they_are_whatever_is_pruned(sam):
    chat = WhereItIs(QWEN3_VL.tiny_config()).eval()
    chat.load_state_dict(QWEN3_VL.tiny_model().state_dict())
    model = BoxSegmentation.join(chat, QWEN3_VL.tiny_processor(), sam)
    inputs = model.processor.segmentation_inputs(images=PICTURES[:1], expressions=[["the dog"]])
    [(_, rows, columns)] = model.processor.visual_token_grids(inputs)
    few = PruningConfig(method="uniform", budget=5)
    encoded = model.encode(inputs)
    features = model.model.select(encoded, None, model.model.settings(few))
    for cell in features.retained_indices[0].tolist():
        chat.cell = cell
        boxes = [model.segment(**inputs, pruning_config=each).answers[0][0].enclosing_box for each in (UNPRUNED, few)]
        assert boxes[0] == boxes[1]
        left, top = cell % columns * 96 / columns, cell // columns * 64 / rows
        assert boxes[0] == pytest.approx((left, top, left + 96 / columns, top + 64 / rows), abs=0.1)


# ---- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHATS)
def test_stock_and_saved_checkpoints_are_joined(tmp_path, sam, name):
    tiny, chat_class = CHATS[name]
    tiny.save_stock_checkpoint(tmp_path / "stock")
    model = BoxSegmentation.from_pretrained(tmp_path / "stock", sam, pruning_budget=3)
    assert type(model.chat) is chat_class and model.config.pruning_budget == 3 and not model.training
    model.chat.save_pretrained(tmp_path / "saved")
    model.processor.chat.save_pretrained(tmp_path / "saved")
    again, processor = load_for_segmentation(tmp_path / "saved", mask_model=sam)
    assert again.config.pruning_budget == 3 and processor is again.processor
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[n], found[n]) for n in expected)
    assert any(n.startswith("mask_model.") for n in found) and any(n.startswith("chat.") for n in found)


def test_both_are_in_the_same_cache(tmp_path, sam):
    """`revision` is that of the chat model."""
    QWEN3_VL.save_stock_checkpoint(tmp_path / "stock")
    list(put_into_cache(tmp_path / "cache", tmp_path / "stock", {"v1": "1" * 40}))
    list(put_into_cache(tmp_path / "cache", sam, {"main": "2" * 40}, "org/sam"))
    where = {"revision": "v1", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    model = BoxSegmentation.from_pretrained("org/tiny", "org/sam", **where)
    expected = BoxSegmentation.from_pretrained(tmp_path / "stock", sam).state_dict()
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


def test_a_chat_model_whose_boxes_are_not_known_is_refused(tmp_path, sam):
    save_tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="'llava_lite', and it is not known how such models write boxes.*qwen3_vl"):
        BoxSegmentation.from_pretrained(tmp_path, sam)


def test_unknown_inputs_are_refused(sam):
    model = joined(sam)
    with pytest.raises(ValueError, match=r"does not know the arguments \['budget'\].*`pruning_config`, such as"):
        segment(model, PICTURES[:1], [["the dog"]], budget=3)
