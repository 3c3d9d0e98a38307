"""UniPixel: every key of the published checkpoint, the real command on a tiny one, and what comes out of it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    LogitsProcessor,
    LogitsProcessorList,
    Sam2VideoConfig,
    Sam2VideoModel,
    pipeline,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoPromptEncoder

from tests.support.matrix import matrix
from tests.support.original_checkpoints import FIXTURES
from tests.support.tiny_llava import tiny_guidance_tokenizer
from tests.support.tiny_qwen2_5_vl import tiny_clip
from tests.support.tiny_unipixel import SEG, sam2_config, sam2_weights, seg_head, stock_qwen, write_unipixel
from tests.support.without_package import check_stub
from transformers_litelvlm import AutoModelForReferringSegmentation, Qwen2_5_VLLite, Qwen2_5_VLLiteModel
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.sam2 import sam2_renames
from transformers_litelvlm.conversion.recipes.unipixel import (
    RULES,
    unipixel_config,
    unipixel_conversion,
)
from transformers_litelvlm.conversion.renaming import Part, plan_renaming
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.conversion.weight_files import TensorInfo
from transformers_litelvlm.models.masks.sam2 import Video, track_hidden_tokens
from transformers_litelvlm.models.qwen2_5_vl_lite.modeling_qwen2_5_vl_lite import (
    Qwen2_5_VLLiteForReferringSegmentation,
)


INDEX = json.loads((FIXTURES / "unipixel_index.json").read_text())

# The published config.json of UniPixel-3B.
UNIPIXEL_3B = {
    "architectures": ["PixelQwen2_5_VLForConditionalGeneration"],
    "model_type": "pixel_qwen2_5_vl",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "rms_norm_eps": 1e-6,
    "vocab_size": 151936,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "ref_token_id": 151665,
    "seg_token_id": 151666,
    "mem_token_id": 151667,
    "sam2_config": "configs/sam2.1_hiera_b+",
    "sam2_image_size": 768,
    "sam2_hidden_tokens": 2,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048, "tokens_per_second": 2},
}


class KeyList:
    """A key list as a source."""

    def __init__(self, names):
        self._keys = {
            name: TensorInfo(tuple(about["shape"]), getattr(torch, about["dtype"]), "index") for name, about in names
        }

    def tensors(self):
        return self._keys

    def read_json(self, name):
        return None


def keys_of(kind):
    names = list(INDEX["keys"].items())
    if kind == "current":
        names = [(about["module_name"], about) for _, about in names]
    if kind == "stored head":
        names += list(INDEX["optional_keys"].items())
    return KeyList(names)


@pytest.mark.parametrize("kind", ["legacy", "current", "stored head"])
def test_every_key_of_unipixel_3b(kind):
    source = keys_of(kind)
    config = unipixel_config(source, UNIPIXEL_3B)
    with torch.device("meta"):
        model = Qwen2_5_VLLiteForReferringSegmentation(config)
    tied = dict(model.all_tied_weights_keys)
    assert tied == {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    if kind == "stored head":
        tied = {}
    targets = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    plan = plan_renaming([Part("unipixel", source, RULES)], targets, tied)

    used, dropped = {move.source for move in plan.moves}, plan.dropped["unipixel"]
    assert len(source.tensors()) == {"legacy": 1475, "current": 1475, "stored head": 1476}[kind]
    assert used | set(dropped) == set(source.tensors()) and not used & set(dropped)
    assert len(dropped) == INDEX["groups"]["ref_mem"]["keys"] == 31
    needed = {about["module_name"] for about in INDEX["keys"].values() if about["needed"]}
    unneeded = {about["module_name"] for about in INDEX["keys"].values() if not about["needed"]}
    assert set(dropped) == unneeded and len(needed) == 1444
    assert set(plan.targets) | set(tied) == set(targets)


def test_config_of_unipixel_3b():
    config = unipixel_config(keys_of("legacy"), UNIPIXEL_3B)
    text = config.text_config
    assert text.rope_parameters["rope_theta"] == 1e6 and text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (2048, 36, 151936)
    assert config.seg_token_id == 151666 and config.vision_config.tokens_per_second == 2
    assert config.mask_config.vision_config.backbone_config.hidden_size == 112
    assert config.mask_config.memory_attention_rope_feat_sizes == [48, 48]
    assert config.mask_config.image_size == 768


@pytest.fixture(scope="module", params=["legacy", "current", "untied"])
def converted(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("unipixel")
    write_unipixel(folder / "source", legacy=request.param != "current", tied=request.param != "untied")
    assert main(["convert", "unipixel", str(folder / "source"), str(folder / "lite")]) == 0
    return folder / "lite", request.param != "untied"


def load(folder, **kwargs):
    model, info = AutoModelForReferringSegmentation.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model, AutoProcessor.from_pretrained(folder)


def picture(height, width, seed=0):
    """Soft shapes, so that neighbouring sizes of it look alike."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def close(actual, expected, tolerance=1e-3):
    difference = (actual.float() - expected.float()).abs().max().item()
    print(f"largest difference {difference:.1e} (tolerance {tolerance:.0e})")
    return actual.shape == expected.shape and difference < tolerance


def stock_sam2():
    sam2 = Sam2VideoModel(Sam2VideoConfig(**sam2_config())).eval()
    weights = sam2_weights()
    source = KeyList((name, {"shape": value.shape, "dtype": "float32"}) for name, value in weights.items())
    targets = {name: tuple(value.shape) for name, value in sam2.state_dict().items()}
    pieces = {}
    for move in plan_renaming([Part("sam2", source, sam2_renames(r"sam2\."))], targets).moves:
        pieces.setdefault(move.target, {})[move.row or 0] = weights[move.source]
    sam2.load_state_dict({name: torch.cat([rows[row] for row in sorted(rows)]) for name, rows in pieces.items()})
    return sam2


class Prompted(Sam2VideoPromptEncoder):
    """Upstream's prompt encoder with two tokens more."""

    hidden_tokens = None

    def forward(self, *args, **kwargs):
        sparse, dense = super().forward(*args, **kwargs)
        return torch.cat((sparse, self.hidden_tokens[None, None]), dim=2), dense


def hand_wired(inputs, tied):
    """Masks of stock Qwen2.5-VL and stock SAM 2, one dialogue after the other."""
    qwen, head, sam2 = stock_qwen(tied), seg_head(), stock_sam2()
    sam2.prompt_encoder.__class__ = Prompted
    before_norm = []
    qwen.model.language_model.norm.register_forward_pre_hook(lambda module, args: before_norm.append(args[0]))
    masks, scores = [], []
    pixels = inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(-1).tolist())
    for row, medium in enumerate(inputs["dialogue_images"].tolist()):
        real = inputs["attention_mask"][row].bool()
        ids = inputs["input_ids"][row][real][None]
        qwen(
            input_ids=ids,
            pixel_values_videos=pixels[medium],
            video_grid_thw=inputs["video_grid_thw"][medium : medium + 1],
            mm_token_type_ids=inputs["mm_token_type_ids"][row][real][None],
            second_per_grid_ts=inputs["second_per_grid_ts"][medium : medium + 1],
        )
        [position] = (ids[0] == SEG).nonzero()[0] - 1
        sam2.prompt_encoder.hidden_tokens = head(before_norm.pop()[0, position]).view(2, -1)
        output = sam2._single_frame_forward(pixel_values=inputs["mask_pixel_values"][medium][None])
        size = inputs["original_sizes"][medium].tolist()
        masks.append(torch.nn.functional.interpolate(output.pred_masks, size, mode="bilinear")[0, 0])
        scores.append(output.object_score_logits.flatten())
    return masks, torch.cat(scores)


def questions(processor, **kwargs):
    images = [picture(40, 56), picture(64, 30, seed=1)]
    return processor.segmentation_inputs(images, [["The red mug.", "a cat"], ["dog on the left"]], **kwargs)


@torch.no_grad()
def test_equals_hand_wired_stock_models(converted):
    folder, tied = converted
    model, processor = load(folder)
    inputs = questions(processor)
    output = model.segment(**inputs)
    assert [tuple(masks.shape) for masks in output.masks] == [(2, 40, 56), (1, 64, 30)]
    masks, scores = hand_wired(inputs, tied)
    assert close(torch.cat(output.object_scores), scores, 1e-4)
    for ours, stock in zip([*output.mask_logits[0], *output.mask_logits[1]], masks):
        assert close(ours, stock, 1e-3)
    assert (scores > 0).any() and not torch.equal(masks[0], masks[1])


@torch.no_grad()
def test_round_trip(converted, tmp_path):
    folder, tied = converted
    model, processor = load(folder)
    weights = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], value) for name, value in weights.items())
    model_again, processor_again = load(tmp_path)
    inputs, inputs_again = questions(processor), questions(processor_again)
    assert inputs.keys() == inputs_again.keys()
    assert all(torch.equal(inputs[name], inputs_again[name]) for name in inputs)
    output, output_again = model.segment(**inputs), model_again.segment(**inputs_again)
    assert torch.equal(output.pred_masks, output_again.pred_masks)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_unipixel")
    write_unipixel(folder / "source")
    main(["convert", "unipixel", str(folder / "source"), str(folder / "lite")])
    return folder / "lite"


@pytest.fixture(scope="module")
def loaded(tiny):
    return load(tiny)


@pytest.fixture
def model(loaded):
    model, _ = loaded
    yield model
    model.config.pruning_budget = None


@pytest.fixture
def processor(loaded):
    return loaded[1]


@torch.no_grad()
def test_with_a_clip(tmp_path, model, processor):
    source, clip = write_unipixel(tmp_path / "source"), tmp_path / "clip"
    tiny_clip().save_pretrained(clip)
    tiny_guidance_tokenizer().save_pretrained(clip)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(clip)
    assert main(["convert", "unipixel", str(source), str(tmp_path / "lite"), "--clip", str(clip)]) == 0
    shutil.rmtree(clip)
    guided, with_clip = load(tmp_path / "lite")
    assert guided.config.guidance == "clip"
    weights = tiny_clip().vision_model.state_dict()
    assert all(torch.equal(value, weights[n]) for n, value in guided.model.guidance.vision_model.state_dict().items())
    inputs = questions(with_clip)
    assert inputs["guidance_pixel_values"].shape == (2, 3, 32, 32)  # of two pictures, three dialogues
    assert torch.equal(guided.segment(**inputs).pred_masks, model.segment(**questions(processor)).pred_masks)
    guided.config.pruning_budget = model.config.pruning_budget = 10
    kept, intrinsic = guided.segment(**inputs).retained_indices, model.segment(**questions(processor)).retained_indices
    assert [len(of_dialogue) for of_dialogue in kept] == [10] * 3 and not torch.equal(kept[0], intrinsic[0])
    video = with_clip.segmentation_inputs(videos=[[picture(40, 56, seed=n) for n in range(4)]], expressions=["cat"])
    assert guided.segment(**video).masks[0].shape == (1, 4, 40, 56)


def test_files(tiny):
    card = (tiny / "README.md").read_text()
    assert "UniPixel" in card and "as many visual tokens as its size asks for" in card and "faithful" not in card
    report = json.loads((tiny / "conversion_report.json").read_text())
    assert json.dumps(report).count("msk_proj") == 1
    places = report["mapped"]["unipixel"]["sam2.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert places.split(", ") == [
        "mask_model.shared_image_embedding.positional_embedding",
        "mask_model.prompt_encoder.shared_embedding.positional_embedding",
    ]
    generation = json.loads((tiny / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2 and not generation.get("do_sample")


@pytest.mark.parametrize("model_class", [Qwen2_5_VLLite, Qwen2_5_VLLiteModel])
def test_other_classes_read_the_same_folder(tiny, model_class):
    _, info = model_class.from_pretrained(tiny, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_prompt(processor):
    inputs = questions(processor, question_template="Please segment the {expression} in this {medium}.")
    texts = [processor.decode(ids[mask.bool()]) for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    tokens = inputs["video_grid_thw"].prod(-1) // 4
    assert texts[0] == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{'<|video_pad|>' * tokens[0]}<|vision_end|>"
        "Please segment the red mug in this image.<|im_end|>\n"
        "<|im_start|>assistant\nThe target is <|seg|>.<|im_end|>\n"
    )
    assert "segment the cat in this image" in texts[1] and inputs["dialogue_images"].tolist() == [0, 0, 1]
    video = processor.segmentation_inputs(videos=[[picture(40, 56)] * 3], expressions=["The cat"], as_written=True)
    assert "segment the The cat in this video." in processor.decode(video["input_ids"][0])
    assert video["video_grid_thw"][0, 0] == 2 and video["mask_num_frames"].tolist() == [3]
    assert video["second_per_grid_ts"].tolist() == [1.0]  # 2 frames per temporal patch at 2 frames per second


def test_long_video(processor):
    frames = [Image.new("RGB", (56, 40), (n, n, n)) for n in range(33)]
    inputs = processor.segmentation_inputs(videos=[frames], expressions=["cat"])
    assert inputs["video_grid_thw"].tolist()[0][0] == 8 and len(inputs["mask_pixel_values"]) == 33


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": [], "videos": []}, "There is no picture: give at least one"),
        ({"expressions": ["cat"]}, "Give `images`, `videos`, or both"),
        ({"images": [picture(40, 56)], "expressions": ["<|seg|>"]}, "special token <|seg|>"),
        ({"images": [picture(40, 56)], "expressions": ["."]}, "must say what to find, got '.'"),
        ({"videos": ["video.mp4"], "expressions": ["cat"]}, "`videos` is a list of such videos"),
        ({"videos": [picture(40, 56)] * 3, "expressions": ["cat"]}, "`videos` is a list of such videos"),
        ({"videos": [[]], "expressions": ["cat"]}, r"`videos\[0\]` has no frames"),
        ({"videos": [[picture(40, 56), picture(41, 56)]], "expressions": ["cat"]}, "frames of different sizes"),
    ],
)
def test_bad_input(processor, arguments, message):
    with pytest.raises(ValueError, match=message.replace("<|", r"<\|").replace("|>", r"\|>")):
        processor.segmentation_inputs(**arguments)


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 10])
def test_batch_is_one_by_one(model, processor, budget):
    model.config.pruning_budget = budget
    images = [picture(40, 56), picture(64, 30, seed=1)]
    sentences = [["The red mug.", "a cat"], ["dog on the left"]]
    together = model.segment(**processor.segmentation_inputs(images, sentences))
    for index in range(2):
        alone = model.segment(**processor.segmentation_inputs([images[index]], [sentences[index]]))
        assert close(alone.mask_logits[0], together.mask_logits[index])
    if budget is None:
        assert together.retained_indices is None
    else:
        assert [len(kept) for kept in together.retained_indices] == [10, 10, 10]
        assert not torch.equal(together.retained_indices[0], together.retained_indices[1])


@torch.no_grad()
def test_pruning_changes_masks_and_full_budget_does_not(model, processor):
    inputs = questions(processor)
    full = model.segment(**inputs)
    model.config.pruning_retention_ratio = 1.0
    assert torch.equal(model.segment(**inputs).pred_masks, full.pred_masks)
    model.config.pruning_budget = 5
    assert not close(model.segment(**inputs).pred_masks, full.pred_masks)


@torch.no_grad()
def test_pruning_inside_the_language_model(model, processor):
    """Pictures and videos; the head reads the state before the final norm, at the place that [SEG] had."""
    model.config.set_pruning(pruning_method="fastv", pruning_budget=10, pruning_method_options={"layer": 1})
    try:
        inputs = questions(processor)
        output = model.segment(**inputs)
        assert [len(kept) for kept in output.retained_indices] == [10, 10, 10]
        left_aside = ("mask_pixel_values", "original_sizes", "mask_num_frames", "dialogue_images")
        given = {name: value for name, value in inputs.items() if name not in left_aside}
        about, pixels = inputs["dialogue_images"], inputs["pixel_values_videos"]
        of_pictures = pixels.split(inputs["video_grid_thw"].prod(-1).tolist())
        given["pixel_values_videos"] = torch.cat([of_pictures[picture] for picture in about])
        given.update({name: inputs[name][about] for name in ("video_grid_thw", "second_per_grid_ts")})
        states = model.model(**given, output_hidden_states=[-1])
        before_norm = states.hidden_states[-1]
        assert torch.equal(model.model.language_model.norm(before_norm), states.last_hidden_state)
        columns = (inputs["input_ids"] == model.config.seg_token_id).int().argmax(dim=1) - 1
        expected = model.seg_head(before_norm[torch.arange(3), columns]).unflatten(-1, (2, -1))
        assert torch.equal(output.seg_embeddings[:, 0], expected)
        alone = model.segment(**processor.segmentation_inputs([picture(64, 30, seed=1)], [["dog on the left"]]))
        assert close(alone.mask_logits[0], output.mask_logits[1])
        answer = model.generate_masks(**questions(processor, for_generation=True), max_new_tokens=3)
        assert [tuple(masks.shape) for masks in answer.masks] == [(0, 40, 56), (0, 64, 30)]
        videos = [[picture(40, 56, seed=n) for n in range(4)]]
        video = model.segment(**processor.segmentation_inputs(videos=videos, expressions=["cat"]))
        assert video.masks[0].shape == (1, 4, 40, 56) and [len(kept) for kept in video.retained_indices] == [10]
    finally:
        model.config.set_pruning(pruning_method="litelvlm", pruning_budget=None)


@torch.no_grad()
def test_videos(model, processor):
    videos = [[picture(40, 56, seed=n) for n in range(4)], [picture(30, 30, seed=9)] * 2]
    inputs = processor.segmentation_inputs(videos=videos, expressions=[["cat"], ["dog", "mug"]])
    output = model.segment(**inputs)
    assert [tuple(m.shape) for m in output.masks] == [(1, 4, 40, 56), (2, 2, 30, 30)]
    assert [tuple(s.shape) for s in output.scores] == [(1, 4), (2, 2)]
    frames = inputs["mask_pixel_values"].split([4, 2])
    masks, scores, _ = track_hidden_tokens(model.mask_model, Video(frames[1]), output.seg_embeddings[1:, 0])
    assert close(output.pred_masks[1], masks) and close(output.object_scores[1], scores)
    # A video of one frame is a picture, but for the word in the question.
    word = {"question_template": "Segment {expression}."}
    image = model.segment(**processor.segmentation_inputs([videos[0][0]], ["cat"], **word))
    one = model.segment(**processor.segmentation_inputs(videos=[videos[0][:1]], expressions=["cat"], **word))
    assert close(one.mask_logits[0][:, 0], image.mask_logits[0]) and one.mask_logits[0].shape[1] == 1


@torch.no_grad()
def test_pictures_and_videos_in_one_batch(model, processor):
    image, video = picture(40, 56), [picture(30, 36, seed=n) for n in range(3)]
    inputs = processor.segmentation_inputs(images=[image], videos=[video], expressions=[["cat", "mug"], ["dog"]])
    assert inputs["mask_num_frames"].tolist() == [0, 3] and "num_prompt_images" not in inputs
    texts = processor.batch_decode(inputs["input_ids"])
    assert ["image" in text for text in texts] == [True, True, False] and "dog in this video" in texts[2]
    together = model.segment(**inputs)
    alone = model.segment(**processor.segmentation_inputs(images=[image], expressions=[["cat", "mug"]]))
    assert together.masks[0].shape == (2, 40, 56) and close(together.mask_logits[0], alone.mask_logits[0])
    alone = model.segment(**processor.segmentation_inputs(videos=[video], expressions=[["dog"]]))
    assert together.masks[1].shape == (1, 3, 30, 36) and close(together.mask_logits[1], alone.mask_logits[0], 5e-3)
    # Encoded before, as a sweep does.
    again = model.segment(**inputs, mask_features=model.encode_for_masks(inputs))
    assert torch.equal(again.masks[0], together.masks[0]) and torch.equal(again.masks[1], together.masks[1])


class Say(LogitsProcessor):
    """Forces an answer."""

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([next(self.ids)]), 0.0)


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 10])
def test_generated_answer_gives_the_masks_of_the_same_answer(model, processor, budget):
    model.config.pruning_budget = budget
    forced = model.segment(**questions(processor))
    inputs = questions(processor, for_generation=True)
    answer = processor.tokenizer("The target is <|seg|>.<|im_end|>")["input_ids"]
    say = LogitsProcessorList([Say(answer)])
    output = model.generate_masks(**inputs, logits_processor=say)
    assert output.sequences[:, inputs["input_ids"].shape[1] :].tolist() == [answer] * 3
    for ours, theirs in zip(output.mask_logits, forced.mask_logits):
        assert close(ours, theirs, 5e-3)
    nothing = model.generate_masks(**inputs, max_new_tokens=3)
    assert [tuple(masks.shape) for masks in nothing.masks] == [(0, 40, 56), (0, 64, 30)]


@torch.no_grad()
@pytest.mark.parametrize("on_disk", matrix([["mask_model"], ["model", "lm_head", "seg_head"]], ["mask_model"].__eq__))
def test_offloaded(tiny, model, processor, on_disk, tmp_path):
    device_map = {
        part: "disk" if part in on_disk else "cpu" for part in ("model", "lm_head", "seg_head", "mask_model")
    }
    offloaded, _ = load(tiny, device_map=device_map, offload_folder=tmp_path, offload_buffers=True)
    for inputs in (
        questions(processor),
        processor.segmentation_inputs(
            videos=[[picture(40, 56, seed=n) for n in range(3)]], expressions=[["cat", "dog"]]
        ),
    ):
        here, there = model.segment(**inputs), offloaded.segment(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(here.mask_logits, there.mask_logits))


def test_bfloat16(tiny, model, processor):
    half, _ = load(tiny, dtype=torch.bfloat16)
    for inputs in (
        questions(processor),
        processor.segmentation_inputs(videos=[[picture(40, 56)] * 3], expressions=["cat"]),
    ):
        whole, rounded = model.segment(**inputs), half.segment(**inputs.to("cpu", dtype=torch.bfloat16))
        assert rounded.mask_logits[0].dtype == torch.float32
        agree = [(a == b).float().mean().item() for a, b in zip(whole.masks, rounded.masks)]
        print("share of equal pixels:", agree)
        assert min(agree) > 0.8


def test_command_and_pipeline(tiny, model, processor, tmp_path, capsys):
    picture(60, 90).save(tmp_path / "picture.png")
    sentences = ["The red mug.", "cat"]
    arguments = ["--model", str(tiny), "--budget", "20", "--output", str(tmp_path / "out"), "--json"]
    assert main(["segment", str(tmp_path / "picture.png"), *sentences, *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    rows, columns = report["token_grid"]
    assert rows * columns >= 128 and [len(kept) for kept in report["retained_indices"]] == [20, 20]
    assert (tmp_path / "out" / "kept_tokens_1.png").is_file()
    model.config.pruning_budget = 20
    expected = model.segment(**processor.segmentation_inputs([tmp_path / "picture.png"], [sentences]))
    assert [mask["area"] for mask in report["masks"]] == expected.masks[0].sum((1, 2)).tolist()
    results = pipeline("referring-segmentation", model=str(tiny), model_kwargs={"pruning_budget": 20})(
        str(tmp_path / "picture.png"), sentences
    )
    assert [result["label"] for result in results] == sentences
    assert all(np.array_equal(np.array(r["mask"]) > 0, mask) for r, mask in zip(results, expected.masks[0].numpy()))


def test_stub(tiny):
    check_stub(tiny)


def test_no_seg_in_the_prompt(model, processor):
    with pytest.raises(ValueError, match=r"needs a \[SEG\]"):
        model.segment(**questions(processor, for_generation=True))


def test_bad_sources(tmp_path):
    source = write_unipixel(tmp_path / "source")
    published = json.loads((source / "config.json").read_text())

    def error(**changes):
        (source / "config.json").write_text(json.dumps({k: v for k, v in {**published, **changes}.items() if v}))
        with pytest.raises(ConversionError) as caught:
            unipixel_conversion(CheckpointSource(source))
        return str(caught.value)

    assert "no checkpoint of UniPixel" in error(sam2_config=None)
    assert "sam2_hidden_tokens is 3" in error(sam2_hidden_tokens=3)
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    assert "has no chat template" in error()
    (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    unipixel_conversion(CheckpointSource(source))
    assert "disagree about the id of <|seg|>" in error(seg_token_id=7)
    (source / "sam2_config.json").unlink()
    assert "only sam2.1_hiera_b+ is known" in error(sam2_config="configs/sam2.1_hiera_l")
    (source / "config.json").unlink()
    with pytest.raises(ConversionError, match="has no config.json"):
        unipixel_conversion(CheckpointSource(source))


def test_damaged_source_is_one_line_and_leaves_nothing(tmp_path, capsys):
    source = write_unipixel(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["sam2.unknown"] = torch.zeros(1)
    save_file(weights, source / "model.safetensors")
    assert main(["convert", "unipixel", str(source), str(tmp_path / "lite")]) == 2
    assert "no rule for sam2.unknown" in capsys.readouterr().err
    assert not (tmp_path / "lite").exists()
    shutil.rmtree(source)


def test_a_stored_head_is_not_the_table_of_embeddings(tmp_path):
    """Whatever the config says, which readers of it other than transformers believe, and later calls of it, too."""
    source = write_unipixel(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, source / "model.safetensors")
    assert json.loads((source / "config.json").read_text())["tie_word_embeddings"] is True
    assert main(["convert", "unipixel", str(source), str(tmp_path / "lite")]) == 0
    model, _ = load(tmp_path / "lite")
    model.tie_weights()
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


def test_a_vocabulary_without_the_mask_token(tmp_path, capsys):
    """The tokenizer is that of another checkpoint; indexing the table of embeddings would fail, on CUDA for good."""
    source = write_unipixel(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:SEG].clone()
    save_file(weights, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": SEG}))
    assert main(["convert", "unipixel", str(source), str(tmp_path / "lite")]) == 2
    message = f"<|seg|> as token {SEG}, but the vocabulary in its config.json ends at {SEG - 1}"
    assert message in capsys.readouterr().err and not (tmp_path / "lite").exists()


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_attention_that_is_asked_for_is_that_of_all_parts(tiny, kernel):
    model = AutoModelForReferringSegmentation.from_pretrained(tiny, attn_implementation=kernel)
    for part in (model, model.model.visual, model.mask_model, model.mask_model.vision_encoder):
        assert part.config._attn_implementation == kernel
