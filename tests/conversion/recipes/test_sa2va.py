"""Sa2VA: every key of the published checkpoints, the real command on tiny ones, and what the official code made of
them (tests/fixtures/golden/checkpoints/tiny_sa2va_*; how close results must be stands in that data's description)."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    pipeline,
)

from tests.support.golden_masks import assert_close
from tests.support.original_checkpoints import FIXTURES
from tests.support.small_evaluations import results
from tests.support.tiny_sa2va import (
    ASKED,
    CLIPS,
    VARIANTS,
    as_picture,
    case_inputs,
    convert,
    copy_source,
    expected,
    load,
    photo,
)
from tests.support.tiny_videos import VIDEOS as FRAMES
from tests.support.tiny_videos import write_referring
from tests.support.without_package import check_stub
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.sa2va import (
    GROUNDING_MEDIA,
    MAX_PIXELS,
    MIN_PIXELS,
    RULES,
    sa2va_config,
    sa2va_conversion,
)
from transformers_litelvlm.conversion.recipes.sa2va import (
    VARIANTS as CLASSES,
)
from transformers_litelvlm.conversion.renaming import Part, plan_renaming
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.conversion.weight_files import TensorInfo
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.models.masks.grounding import GroundingConfig
from transformers_litelvlm.models.masks.sam2 import KEPT_FRAMES, decode_hidden_tokens, normalized
from transformers_litelvlm.models.processing.grounding_media import GroundingMedia


CASES = ["one", "three", "dialogue", "video4", "video8"]
PICTURES, VIDEOS = CASES[:3], CASES[3:]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def folder(variant, tmp_path_factory):
    return convert(variant, tmp_path_factory.mktemp(variant))


@pytest.fixture(scope="module")
def loaded(folder, variant):
    return load(folder, variant)


@pytest.fixture
def model(loaded):
    model, _ = loaded
    yield model
    model.config.pruning_config = PruningConfig()
    model.mask_model.config.remembers_in_bfloat16 = True


@pytest.fixture
def processor(loaded):
    _, processor = loaded
    yield processor
    processor.one_expression_per_dialogue = True


# ---- golden cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_pictures(name, variant, processor):
    about, tensors = expected(variant)
    inputs = case_inputs(processor, variant, name)
    ids = tensors[f"{name}.input_ids"].tolist()  # without the line break after the answer
    assert inputs["input_ids"][0].tolist()[: len(ids)] == ids and inputs["input_ids"].shape[1] <= len(ids) + 1
    assert torch.equal(inputs["image_grid_thw"], tensors[f"{name}.image_grid_thw"].long())
    patches = processor.image_processor(
        [as_picture(values) for values in tensors[f"{about['cases'][name]['pictures_of']}.lm_resized_rgb"]],
        do_resize=False,
        return_tensors="pt",
    )["pixel_values"]
    assert_close("patches", inputs["pixel_values"], patches[: len(inputs["pixel_values"])], 1e-6)
    if name == "one" and variant == "qwen2_5_vl":
        assert_close("patches of the official code", inputs["pixel_values"], tensors["one.pixel_values"], 1e-6)


def test_pictures_for_masks(variant, model, processor):
    _, tensors = expected(variant)
    inputs = case_inputs(processor, variant, "one")
    assert torch.equal(inputs["mask_pixel_values"][0].permute(1, 2, 0), tensors["one.sam_resized_rgb"][0])
    pixels = normalized(model.mask_model, inputs["mask_pixel_values"])
    assert_close("normalised", pixels[:, :, :16], tensors["one.sam_pixel_values_rows_0_16"], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_masks(name, variant, model, processor):
    _, tensors = expected(variant)
    golden = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
    inputs = case_inputs(processor, variant, name)
    read = model.read(inputs)
    columns = (read.input_ids == model.config.seg_token_id)[0].nonzero().flatten()
    assert columns.tolist() == golden["seg_positions"].tolist()
    assert_close("states", read.states[0, columns], golden["seg_hidden_states"], 1e-4)
    positions = model.model.full_positions({**inputs, "inputs_embeds": None})[-3:, 0]
    assert torch.equal(positions[:, : golden["position_ids"].shape[1]], golden["position_ids"].long())

    output = model.decode(read, inputs)
    assert_close("prompts", output.seg_embeddings[0, :, 0], golden["prompts"], 5e-4)
    low, expected_low = output.pred_masks[0], golden["low_res_masks"]
    scores, masks = output.object_scores[0], output.masks[0]
    if name in PICTURES:
        low, scores = low.unsqueeze(1), scores.unsqueeze(1)
    num_prompted = min(low.shape[1], GROUNDING_MEDIA["num_frames"])
    assert_close("prompted", low[:, :num_prompted], expected_low[:, :num_prompted], 2e-2)
    assert_close("scores", scores[:, :num_prompted], golden["object_score_logits"][:, :num_prompted], 1e-2)
    assert_close("IoU", output.iou_scores[0], golden["iou"][:, 0].amax(-1), 2e-4)
    if low.shape[1] > num_prompted:
        assert_close("tracked, memory in bfloat16", low[:, num_prompted:], expected_low[:, num_prompted:], 0.5)
    if "mask_logits" in golden:
        assert_close("at the original size", output.mask_logits[0], golden["mask_logits"], 2e-2)
    changed = masks != golden["masks"].bool()
    print(f"{int(changed.sum())} of {changed.numel()} pixels changed")
    assert changed.float().mean() <= (0.0005 if low.shape[1] > num_prompted else 0)
    if (golden["object_score_logits"] <= 0).any():  # not blanked
        assert low[golden["object_score_logits"] <= 0].max() > 0


@torch.no_grad()
def test_mask_candidates(variant, model, processor):
    _, tensors = expected(variant)
    for name in PICTURES:
        features = model.encode_for_masks(case_inputs(processor, variant, name))
        if name == "one":
            assert_close("image features", features[-1], tensors["one.image_features"], 2e-4)
        decoded = decode_hidden_tokens(model.mask_model, features, tensors[f"{name}.prompts"][None, :, None])
        assert_close("candidates", decoded.candidates[0], tensors[f"{name}.mask_candidates"], 2e-2)
        assert_close("IoU", decoded.candidate_scores[0], tensors[f"{name}.iou"][:, 0], 2e-4)
        assert_close("pointers", decoded.object_pointers[0], tensors[f"{name}.object_pointers"][:, 0], 1e-3)
        assert torch.equal(decoded.candidate_scores[0].argmax(-1), tensors[f"{name}.best"][:, 0].long())


@torch.no_grad()
def test_video_with_float32_memory(variant, folder, processor):
    _, tensors = expected(variant)
    model, _ = load(folder, variant)
    model.mask_model.config.remembers_in_bfloat16 = False
    output = model.segment(**case_inputs(processor, variant, "video8"))
    tracked = tensors["video8.low_res_masks_tracked_float32_memory"]
    assert_close("tracked, memory in float32", output.pred_masks[0][:, 5:], tracked, 1e-2)


@torch.no_grad()
@pytest.mark.parametrize(
    "part, setting, smallest",
    [
        ("grounding_config", {"reads": "before"}, 1.0),
        ("grounding_config", {"before_norm": None}, 1.0),
        ("mask_config", {"blanks_absent": True}, 1.0),
        ("mask_config", {"num_prompted_frames": 1}, 0.1),
        ("mask_config", {"resizes_twice": False}, 0.1),
    ],
)
def test_what_a_wrong_setting_costs(part, setting, smallest, variant, folder):
    """Each of the settings decides: with another one, logits at the original size differ."""
    model, processor = load(folder, variant)
    inputs = case_inputs(processor, variant, "video8")
    before = model.segment(**inputs).mask_logits[0]
    model, processor = load(folder, variant, config=changed(model.config, part, setting))
    difference = (model.segment(**inputs).mask_logits[0] - before).abs().max().item()
    print(f"{setting}: {difference:.2g}")
    assert difference > smallest


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"reads": "after"}, "`grounding_config.reads` must be one of 'before', 'at', got 'after'"),
        ({"pictures_as": "images"}, "must be one of 'image', 'video', got 'images'"),
        ({"num_prompt_tokens": 0}, "`grounding_config.num_prompt_tokens` must be a whole number above 0, got 0"),
        ({"head_activation": "silu"}, "must be one of 'gelu', 'relu', got 'silu'"),
        ({"before_norm": "yes"}, "must be one of True, False, got 'yes'"),
    ],
)
def test_settings_that_do_not_exist(setting, message):
    with pytest.raises(ValueError, match=message):
        GroundingConfig(**setting)


def test_numbers_of_images_that_do_not_fit(model, processor):
    inputs = processor.segmentation_inputs(videos=CLIPS, expressions=ASKED[3:])
    for counts, message in (
        ([5], "`num_prompt_images` must have a number above 0 for each of 2 pictures or videos, got \\[5\\]"),
        ([0, 8], "number above 0"),
        ([5, 4], r"`pixel_values` holds 8 pictures or videos, but `dialogue_images` names 9 \(with `num_prompt"),
    ):
        with pytest.raises(ValueError, match=message):
            model.segment(**{**inputs, "num_prompt_images": torch.tensor(counts)})


def changed(config, part, setting):
    config = copy.deepcopy(config)
    settings = getattr(config, part)
    for name, value in setting.items():
        setattr(settings, name, not getattr(settings, name) if value is None else value)
    return config


def test_further_prompts(variant, processor):
    about, _ = expected(variant)
    assert len(about["prompts"]) == 24
    for prompt in about["prompts"]:
        question = prompt["text"].replace("<image>", "")
        num_frames = {"text": 0, "image": 1}.get(prompt["kind"], 3)
        text = processor.dialogue([(question, "")], for_generation=True, num_frames=num_frames)
        assert text == prompt["prompt_text"]
        assert processor.tokenizer(text)["input_ids"] == prompt["input_ids_one_pad"]


def test_sizes_of_pictures(variant, processor):
    about, _ = expected(variant)
    assert len(about["picture_sizes_at_published_limits"]) == 12
    image_processor, media = processor.image_processor, GroundingMedia.of(GROUNDING_MEDIA)
    factor = image_processor.patch_size * image_processor.merge_size
    for case in about["picture_sizes_at_published_limits"]:
        height, width = case["original_size"]
        resized = media.resize_image(Image.new("RGB", (width, height)), factor, MIN_PIXELS, MAX_PIXELS)
        grid = [1, resized.height // image_processor.patch_size, resized.width // image_processor.patch_size]
        assert grid == case["image_grid_thw"]
        assert resized.height * resized.width // factor**2 == case["tokens_per_image"]
    assert about["published_min_pixels"] == MIN_PIXELS and about["published_max_pixels"] == MAX_PIXELS


@torch.no_grad()
def test_a_mask_token_in_the_question_makes_a_mask_too(variant, model, processor):
    about, _ = expected(variant)
    question = about["seg_in_question"]
    inputs = dict(case_inputs(processor, variant, "one"))
    text = processor.dialogue([(question["text"].replace("<image>", ""), question["answer"])])
    [count] = inputs["image_grid_thw"].prod(-1).tolist()
    text = text.replace(processor.image_token, processor.image_token * (count // 4))
    tokens = processor.tokenizer(text, return_tensors="pt")
    inputs |= {
        **tokens,
        "mm_token_type_ids": torch.tensor(processor.create_mm_token_type_ids(tokens["input_ids"].tolist())),
    }
    assert len(model.segment(**inputs).masks[0]) == question["num_masks"] == 2


# ---- generation -----------------------------------------------------------------------------------------------------


class Forced(LogitsProcessor):
    """Writes given tokens after the prompt."""

    def __init__(self, ids, length):
        self.ids, self.length = ids, length

    def __call__(self, input_ids, scores):
        scores = torch.full_like(scores, -torch.inf)
        scores[:, self.ids[input_ids.shape[1] - self.length]] = 0
        return scores


@torch.no_grad()
@pytest.mark.parametrize("name", ["one", "three", "video8"])
@pytest.mark.parametrize("budget", [None, 4])
def test_generated_answers_make_the_same_masks(name, budget, variant, model, processor):
    model.config.pruning_budget = budget
    whole = model.segment(**case_inputs(processor, variant, name))
    prompt = case_inputs(processor, variant, name, for_generation=True)
    length = prompt["input_ids"].shape[1]
    answer = case_inputs(processor, variant, name)["input_ids"][0, length:].tolist()
    answer = answer[: answer.index(model.generation_config.eos_token_id) + 1]
    forced = LogitsProcessorList([Forced(answer, length)])
    output = model.generate_masks(**prompt, logits_processor=forced)
    assert output.sequences[0, length:].tolist() == answer
    assert_close("prompts", output.seg_embeddings, whole.seg_embeddings, 5e-4)
    assert torch.equal(output.masks[0], whole.masks[0])
    # A [SEG] that is the last token was not read again: it makes no mask.
    last = answer.index(model.config.seg_token_id) + 1
    output = model.generate_masks(**prompt, max_new_tokens=last, logits_processor=forced)
    assert output.sequences[0, -1] == model.config.seg_token_id and len(output.masks[0]) == 0


# ---- batches and pruning --------------------------------------------------------------------------------------------


IMAGES = [photo(40, 56, 0), photo(64, 30, 1), photo(50, 50, 2)]


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True], ids=["a dialogue each", "turns of one"])
@pytest.mark.parametrize(
    "pruning", [{}, {"method": "litelvlm", "retention_ratio": 1 / 3}, {"method": "divprune", "budget": 3}]
)
def test_a_batch_is_one_by_one(joint, pruning, variant, model, processor):
    """Three pictures and two videos of different size, each with one to three sentences, in one call."""
    processor.one_expression_per_dialogue = not joint
    model.config.pruning_config = PruningConfig(**pruning)
    # What is remembered in bfloat16 may be rounded the other way where states differ in their last bits.
    model.mask_model.config.remembers_in_bfloat16 = False
    inputs = processor.segmentation_inputs(images=IMAGES, videos=CLIPS, expressions=ASKED)
    assert inputs["mask_num_frames"].tolist() == [0, 0, 0, 7, 3]
    assert inputs["num_prompt_images"].tolist() == [1, 1, 1, 5, 3]
    together = model.segment(**inputs)
    media = [{"images": [image]} for image in IMAGES] + [{"videos": [clip]} for clip in CLIPS]
    for index, (medium, sentences) in enumerate(zip(media, ASKED, strict=True)):
        alone = model.segment(**processor.segmentation_inputs(**medium, expressions=[sentences]))
        assert len(alone.masks[0]) == len(sentences)
        assert_close("logits", together.mask_logits[index], alone.mask_logits[0], 2e-2)
        changed = together.masks[index] != alone.masks[0]  # by the rounding of sums, where a logit is almost 0
        print(f"{int(changed.sum())} of {changed.numel()} pixels changed")
        assert changed.sum() <= 1 and not (changed & (alone.mask_logits[0].abs() > 2e-3)).any()
    assert together.masks[2].shape == (3, 50, 50) and together.masks[3].shape == (2, 7, 36, 48)


STOCK = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}


def stock_twin(model, variant):
    """The stock language and vision model with the weights of ours."""
    config = model.config.to_dict()
    own = {name: config[name] for name in ("text_config", "vision_config", "image_token_id", "video_token_id")}
    own |= {"vision_start_token_id": model.config.vision_start_token_id, "tie_word_embeddings": False}
    stock = STOCK[variant](STOCK[variant].config_class(**own)).eval()
    ours = {n: v for n, v in model.state_dict().items() if not n.startswith(("mask_model.", "seg_head."))}
    stock.load_state_dict(ours)
    return stock


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1 / 3, 1 / 9])
@pytest.mark.parametrize("name", ["three", "video8"])
def test_pruned_equals_the_stock_model_on_the_kept_tokens(name, ratio, variant, model, processor):
    """The stock model reads the kept columns of its own embeddings at their own positions, layer for layer."""
    model.config.pruning_retention_ratio = ratio
    inputs = case_inputs(processor, variant, name)
    read = model.read(inputs)
    ours = model.decode(read, inputs)

    stock = stock_twin(model, variant)
    ids = inputs["input_ids"]
    media = {n: inputs[n] for n in ("pixel_values", "image_grid_thw")}
    features = stock.model.get_image_features(**media)
    embeds = stock.get_input_embeddings()(ids)
    is_image = ids == model.config.image_token_id
    embeds[is_image] = torch.cat(list(features.pooler_output))
    positions, _ = stock.model.get_rope_index(
        input_ids=ids,
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    sizes = [len(tokens) for tokens in features.pooler_output]
    offsets = np.cumsum([0, *sizes[:-1]])
    kept = torch.cat(
        [indices.sort().values + int(offset) for indices, offset in zip(read.kept.retained_indices, offsets)]
    )
    assert len(kept) < sum(sizes)
    columns = (~is_image[0]).nonzero().flatten().tolist() + is_image[0].nonzero().flatten()[kept].tolist()
    columns = torch.tensor(sorted(columns))
    language = stock.model.language_model
    before_norm = []
    hook = language.norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    deepstack = {}
    if variant == "qwen3_vl":
        mask = torch.zeros_like(columns, dtype=torch.bool)[None]
        mask[0] = is_image[0, columns]
        layers = [torch.cat(list(of_layer))[kept] for of_layer in features.deepstack_features]
        deepstack = {"visual_pos_masks": mask, "deepstack_visual_embeds": layers}
    after = language(
        inputs_embeds=embeds[:, columns], position_ids=positions[:, :, columns], **deepstack
    ).last_hidden_state
    hook.remove()
    states = before_norm[0] if variant == "qwen3_vl" else after
    at_seg = (ids[0, columns] == model.config.seg_token_id).nonzero().flatten()
    by_hand = model.prompts_of_seg(states[:, at_seg])
    assert_close("prompts", ours.seg_embeddings, by_hand, 5e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_all_kept_is_unpruned(name, variant, model, processor):
    inputs = case_inputs(processor, variant, name)
    plain = model.segment(**inputs)
    model.config.pruning_config = PruningConfig(method="litelvlm", retention_ratio=1.0)
    kept = model.segment(**inputs)
    assert torch.equal(kept.masks[0], plain.masks[0]) and torch.equal(kept.mask_logits[0], plain.mask_logits[0])
    assert torch.equal(kept.seg_embeddings, plain.seg_embeddings)


@torch.no_grad()
def test_a_budget_is_of_each_picture_and_frame(variant, model, processor):
    model.config.pruning_config = PruningConfig(method="litelvlm", budget=2)
    picture = model.segment(**processor.segmentation_inputs(IMAGES[:1], [["a cat", "the mug"]]))
    assert [len(kept) for kept in picture.retained_indices] == [2, 2]
    video = model.segment(**processor.segmentation_inputs(videos=CLIPS[:1], expressions=[["a cat", "the mug"]]))
    assert [len(kept) for kept in video.retained_indices] == [2] * 10  # five frames for each of two dialogues


@torch.no_grad()
def test_sweeps_encode_a_long_video_once(variant, model, processor):
    """Frames after those whose features are kept are encoded when they are needed, and nothing changes."""
    clip = [photo(20, 24, seed) for seed in range(4)] * (KEPT_FRAMES // 4 + 1)
    inputs = processor.segmentation_inputs(videos=[clip], expressions=[["a cat"]])
    features = model.encode_for_masks(inputs)
    assert len(features[0].features) == KEPT_FRAMES < len(clip)
    read = model.read(inputs)
    again = [model.decode(read, inputs, features).mask_logits[0] for _ in range(2)]
    once = model.decode(read, inputs).mask_logits[0]
    assert torch.equal(again[0], once) and torch.equal(again[1], once)


MEASURE = """
import resource, sys, torch
from tests.support.tiny_sa2va import load
from PIL import Image
model, processor = load({folder!r}, {variant!r})
frames = [Image.new("RGB", (64, 48), (i % 255, 0, 0)) for i in range({frames})]
inputs = processor.segmentation_inputs(videos=[frames], expressions=[["a cat"]])
with torch.no_grad():
    assert model.segment(**inputs).masks[0].shape == (1, {frames}, 48, 64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_of_a_long_video(variant, folder):
    if variant != "qwen3_vl":
        pytest.skip("SAM 2 is the same in both")
    peaks = {}
    for frames in (50, 500):
        code = MEASURE.format(folder=str(folder), variant=variant, frames=frames)
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # several make a model this small slower
        python = [sys.executable, "-c", code]
        output = subprocess.run(python, capture_output=True, text=True, check=True, env=one_thread).stdout
        peaks[frames] = int(output.split()[-1]) / 1024
    print({frames: f"{peak:.0f} MB" for frames, peak in peaks.items()})
    assert peaks[500] < 2 * peaks[50]
    # Beside the program itself: a frame is 27 kB for SAM 2, and its masks together about as much.
    assert peaks[500] - peaks[50] < 150


# ---- conversion -----------------------------------------------------------------------------------------------------


class KeyList:
    """A key list as a source."""

    def __init__(self, names):
        self._keys = {name: TensorInfo(tuple(shape), torch.float32, "index") for name, shape in names.items()}

    def tensors(self):
        return self._keys

    def read_json(self, name):
        return None


FULL = {"qwen2_5_vl": ("sa2va_qwen2_5_vl_3b_index.json", 1729), "qwen3_vl": ("sa2va_qwen3_vl_4b_index.json", 1618)}


@pytest.mark.parametrize("spelling", ["current", "before 4.52"])
def test_every_key_of_the_published_checkpoints(spelling, variant):
    name, count = FULL[variant]
    index = json.loads((FIXTURES / name).read_text())
    keys = {key: about["shape"] for key, about in index["keys"].items()}
    if spelling != "current":
        keys = {re.sub(r"^model\.model\.(visual\.)", r"model.\1", key): shape for key, shape in keys.items()}
        keys = {key.replace("model.model.language_model.", "model.model."): shape for key, shape in keys.items()}
    source = KeyList(keys)
    config = sa2va_config(source, published_config(variant, index), seg_token_id=151_665)
    with torch.device("meta"):
        model = CLASSES[f"{variant}_text"].model(config)
    assert not model.all_tied_weights_keys
    targets = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    plan = plan_renaming([Part("sa2va", source, RULES)], targets, {})
    used = {move.source for move in plan.moves}
    assert len(keys) == count and used == set(keys) and not plan.dropped.get("sa2va")
    assert set(plan.targets) == set(targets)
    # One matrix of SAM 2 is there twice.
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert stored == index["num_parameters"] + 256


def published_config(variant, index):
    shapes = {key: about["shape"] for key, about in index["keys"].items()}
    vocabulary, hidden = shapes["model.lm_head.weight"]
    if variant == "qwen2_5_vl":
        text = {"intermediate_size": 11_008, "num_attention_heads": 16, "num_key_value_heads": 2}
        rope = {"rope_type": "default", "mrope_section": [16, 24, 24]}
        vision = {"hidden_size": 1280, "out_hidden_size": hidden, "intermediate_size": 3420, "depth": 32}
    else:
        text = {"intermediate_size": 9728, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
        rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        vision = {
            "hidden_size": 1024,
            "out_hidden_size": hidden,
            "intermediate_size": 4096,
            "depth": 24,
            "deepstack_visual_indexes": [5, 11, 17],
            "num_position_embeddings": 2304,
        }
    text |= {
        "model_type": f"{variant}_text",
        "hidden_size": hidden,
        "num_hidden_layers": 36,
        "vocab_size": vocabulary,
        "rope_scaling": rope,
        "rope_theta": 1e6 if variant == "qwen2_5_vl" else 5e6,
        "architectures": ["Sa2VAChatModelQwen"],
    }
    return {
        "model_type": "sa2va_chat",
        "template": "qwen_chat",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "tie_word_embeddings": False,
        "auto_map": {"AutoModel": "modeling_sa2va_qwen.Sa2VAChatModelQwen"},
    }


def test_files(folder, variant, capsys):
    card = (folder / "README.md").read_text()
    assert "Sa2VA" in card and "[SEG]" not in card.split("---")[1]
    config = json.loads((folder / "config.json").read_text())
    assert config["grounding_config"]["reads"] == "at"
    assert config["grounding_config"]["before_norm"] is (variant == "qwen3_vl")
    assert config["mask_config"]["num_prompted_frames"] == 5 and config["mask_config"]["blanks_absent"] is False
    assert "auto_map" not in config or all("sa2va" not in value for value in config["auto_map"].values())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == expected(variant)[0]["generation"]["eos_token_id"]


@torch.no_grad()
def test_round_trip(folder, variant, model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load(tmp_path, variant)
    inputs, inputs_again = (case_inputs(p, variant, "video8") for p in (processor, processor_again))
    assert all(torch.equal(inputs[name], inputs_again[name]) for name in inputs)
    assert torch.equal(model.segment(**inputs).masks[0], again.segment(**inputs_again).masks[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "internvl_chat", "text_config": None, "llm_config": {}}, "an InternVL without masks"),
        ({"sam2_config": "x", "model_type": "pixel_qwen2_5_vl", "text_config": None}, "convert unipixel"),
        ({"mm_vision_tower": "clip", "model_type": "llava", "text_config": None}, "convert glamm"),
        ({"model_type": "qwen2_5_vl"}, "stock Qwen model"),
        ({"text_config": {"model_type": "llama"}}, "looks like no Sa2VA"),
        ({"text_config": "x"}, "looks like no Sa2VA"),
    ],
)
def test_other_checkpoints(change, message, variant, tmp_path):
    source = copy_source(variant, tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=message):
        sa2va_conversion(CheckpointSource(source))


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "preprocessor_config.json"])
def test_missing_files(name, variant, tmp_path, capsys):
    source = copy_source(variant, tmp_path / "source")
    (source / name).unlink()
    assert main(["convert", "sa2va", str(source), str(tmp_path / "lite")]) != 0
    message = capsys.readouterr().err
    assert str(source) in message and "Traceback" not in message and not (tmp_path / "lite").exists()


def test_a_tokenizer_without_the_mask_token(variant, tmp_path):
    source = copy_source(variant, tmp_path / "source")
    for path in source.glob("*.json"):
        if path.name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
            path.write_text(path.read_text().replace("[SEG]", "[OTHER]"))
    with pytest.raises(ConversionError, match=r"no \[SEG\]"):
        sa2va_conversion(CheckpointSource(source))


# ---- as users run it ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_command_and_pipeline(variant, folder, model, processor, tmp_path, capsys):
    photo(60, 90, 0).save(tmp_path / "picture.png")
    small = tmp_path / "lite"  # with the limits of the golden cases
    shutil.copytree(folder, small)
    processor.save_pretrained(small)
    sentences = ["The red mug.", "cat"]
    arguments = ["--model", str(small), "--budget", "3", "--output", str(tmp_path / "out"), "--json"]
    assert main(["segment", str(tmp_path / "picture.png"), *sentences, *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(kept) for kept in report["retained_indices"]] == [3, 3] and report["num_kept_tokens"] == 3
    assert (tmp_path / "out" / "kept_tokens_1.png").is_file()
    model.config.pruning_budget = 3
    expected_masks = model.segment(**processor.segmentation_inputs([tmp_path / "picture.png"], [sentences])).masks[0]
    assert [mask["area"] for mask in report["masks"]] == expected_masks.sum((1, 2)).tolist()
    segment = pipeline("referring-segmentation", model=str(small), model_kwargs={"pruning_budget": 3})
    results = segment(str(tmp_path / "picture.png"), sentences)
    assert [result["label"] for result in results] == sentences
    assert all(np.array_equal(np.array(r["mask"]) > 0, mask) for r, mask in zip(results, expected_masks.numpy()))


@pytest.mark.parametrize("dataset", ["refshapes", "ref-davis17"])
def test_evaluation(dataset, variant, folder, processor, tmp_path):
    """Of pictures and of videos; a budget counts the tokens of a frame, and the report those of a dialogue."""
    small = tmp_path / "lite"
    shutil.copytree(folder, small)
    processor.save_pretrained(small)
    source = None if dataset == "refshapes" else str(write_referring(tmp_path / "davis"))
    arguments = EvaluationArguments(
        output_dir=str(tmp_path / "out"),
        model=str(small),
        dataset=dataset,
        split="test" if dataset == "refshapes" else "valid",
        source=source,
        methods=["none", "litelvlm", "divprune"],
        budgets=[3],
        seeds=[0],
        max_images=2,
        batch_size=1,
    )
    evaluate(arguments)
    runs = {run["run_id"]: run for run in results(tmp_path / "out")["runs"]}
    assert {"none", "litelvlm@3", "divprune@3"} <= set(runs)
    num_frames = 1 if dataset == "refshapes" else sum(list(FRAMES.values())[:2]) / 2  # of the first two videos
    assert runs["litelvlm@3"]["num_kept_mean"] == runs["divprune@3"]["num_kept_mean"] == 3 * num_frames
    assert runs["none"]["num_kept_mean"] > 3 * num_frames


def test_a_dialogue_of_several_turns(processor):
    processor.one_expression_per_dialogue = False
    inputs = processor.segmentation_inputs(IMAGES[:1], [["a cat", "the mug"]])
    assert len(inputs["input_ids"]) == 1 and inputs["guidance_input_ids"].shape[:2] == (1, 2)
    text = processor.decode(inputs["input_ids"][0])
    assert text.count("<|vision_start|>") == 1 and text.count("[SEG]") == 2
    assert "\n Please segment a cat in this image.<|im_end|>\n<|im_start|>assistant\nIt is [SEG].<|im_end|>" in text
    processor.one_expression_per_dialogue = True
    text = processor.decode(processor.segmentation_inputs(videos=CLIPS[:1], expressions=["a cat"])["input_ids"][0])
    assert "<|vision_end|>\nPlease segment a cat.<|im_end|>" in text and text.count("<|vision_start|>") == 5


def test_stub(folder):
    check_stub(folder)
