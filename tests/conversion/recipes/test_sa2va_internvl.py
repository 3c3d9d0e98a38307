"""Sa2VA of InternVL: the real command on a tiny checkpoint in the published layout, against the official computation
written out by hand (tests/support/tiny_sa2va_internvl.py)."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, pipeline

from tests.support.golden_masks import assert_close
from tests.support.small_evaluations import results
from tests.support.tiny_sa2va import ASKED, CLIPS, photo
from tests.support.tiny_sa2va import convert as convert_golden
from tests.support.tiny_sa2va_internvl import (
    TOKENS_OF_TILE,
    Official,
    pixels_of,
    prompt_of,
    published_names,
    tiles_of,
    write_source,
)
from tests.support.without_package import check_stub
from transformers_litelvlm import (
    AutoModelForReferringSegmentation,
    InternVLLiteForReferringSegmentation,
    PruningConfig,
)
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.recipes.internvl import INTERNVL_RULES, internvl_config
from transformers_litelvlm.conversion.recipes.sa2va import MASK_RULES, mask_parts, sa2va_conversion
from transformers_litelvlm.conversion.recipes.sam2 import sam2_large
from transformers_litelvlm.conversion.renaming import Part, plan_renaming
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.conversion.weight_files import TensorInfo
from transformers_litelvlm.demo.comparing import Comparer
from transformers_litelvlm.demo.pictures import draw_kept
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.runner import evaluate
from transformers_litelvlm.serving.answers import describe
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


IMAGES = [photo(40, 60, 0), photo(64, 30, 1), photo(50, 50, 2)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("sa2va") / "source")


@pytest.fixture(scope="module")
def folder(source):
    assert main(["convert", "sa2va", str(source), str(source.parent / "lite"), "--dtype", "float32"]) == 0
    return source.parent / "lite"


@pytest.fixture(scope="module")
def official(source):
    return Official(source)


def load(folder):
    model, info = AutoModelForReferringSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model, AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded(folder):
    return load(folder)


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


# ---- against the official computation -------------------------------------------------------------------------------


SIZES = [(16, 16), (32, 16), (17, 80), (80, 20), (100, 100), (7, 9), (48, 64), (64, 48), (30, 40), (200, 16), (1, 1)]


@pytest.mark.parametrize("size", [*SIZES, (33, 31)])
def test_tiles(processor, size):
    picture = photo(*size, seed=3)
    inputs = processor.segmentation_inputs([picture], [["a cat"]])
    tiles = tiles_of(picture)
    assert inputs["num_tiles"].tolist() == [len(tiles)]
    assert_close("pixels", inputs["pixel_values"], pixels_of(tiles), 1e-6)


def test_prompts(processor):
    processor.one_expression_per_dialogue = False
    inputs = processor.segmentation_inputs(IMAGES[:1], [["a cat", "the mug"]])
    counts = [TOKENS_OF_TILE * len(tiles_of(IMAGES[0]))]
    turns = [(f"\n Please segment {name} in this image.", "It is [SEG].") for name in ("a cat", "the mug")]
    assert processor.decode(inputs["input_ids"][0]) == prompt_of(turns, counts)
    inputs = processor.segmentation_inputs(videos=CLIPS[:1], expressions=["a cat"])
    expected = prompt_of([("\nPlease segment a cat.", "It is [SEG].")], [TOKENS_OF_TILE] * 5)
    assert processor.decode(inputs["input_ids"][0]) == expected
    assert "</img>\n<img>" in expected and inputs["num_prompt_images"].tolist() == [5]


@torch.no_grad()
@pytest.mark.parametrize("place", range(5))
def test_prompts_of_masks(place, model, processor, official):
    """Of pictures of several tiles, and of videos, from the pixels on."""
    medium = {"images": [IMAGES[place]]} if place < 3 else {"videos": [CLIPS[place - 3]]}
    processor.one_expression_per_dialogue = False
    inputs = processor.segmentation_inputs(**medium, expressions=[ASKED[place]])
    tiles = tiles_of(IMAGES[place]) if place < 3 else [frame.resize((16, 16), 3) for frame in CLIPS[place - 3][:5]]
    tokens = official.visual_tokens(pixels_of(tiles)).flatten(0, 1)
    special = (model.config.image_token_id, model.config.seg_token_id)
    expected = official.prompts_of_masks(inputs["input_ids"][0].tolist(), tokens, *special)
    output = model.segment(**inputs)
    assert len(expected) == len(ASKED[place])
    assert_close("prompts", output.seg_embeddings[0, :, 0], expected, 5e-4)


def test_masks_are_those_of_the_golden_checkpoint(model, tmp_path):
    """The same weights and settings as in the Sa2VA of Qwen2.5-VL, whose masks are golden."""
    golden, _ = load(convert_golden("qwen2_5_vl", tmp_path))
    assert model.config.mask_config.to_dict() == golden.config.mask_config.to_dict()
    assert model.config.grounding_config.to_dict() == golden.config.grounding_config.to_dict()
    ours, theirs = (each.mask_model.state_dict() for each in (model, golden))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1 / 3, 1 / 9])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_pruned_is_the_official_model_on_the_kept_tokens(ratio, positions, model, processor, official):
    model.config.pruning_config = PruningConfig(retention_ratio=ratio, position_ids=positions, token_order="raster")
    inputs = processor.segmentation_inputs(IMAGES[:1], [["a cat"]])
    output = model.segment(**inputs)
    ids, image_id = inputs["input_ids"][0], model.config.image_token_id
    [kept] = output.retained_indices
    tokens = official.visual_tokens(pixels_of(tiles_of(IMAGES[0]))).flatten(0, 1)
    places = (ids == image_id).nonzero().flatten()
    assert 0 < len(kept) == max(1, round(len(tokens) * ratio)) and kept.tolist() == sorted(kept.tolist())
    columns = torch.cat(((ids != image_id).nonzero().flatten(), places[kept])).sort().values
    short = ids[columns].tolist()
    embeds = official.language_model.get_input_embeddings()(ids[columns])[None]
    embeds[0, ids[columns] == image_id] = tokens[kept]
    where = columns if positions == "original" else torch.arange(len(columns))
    states = official.language_model.model(inputs_embeds=embeds, position_ids=where[None]).last_hidden_state
    by_hand = model.prompts_of_seg(states[:, [short.index(model.config.seg_token_id)]])
    assert_close("prompts", output.seg_embeddings, by_hand, 5e-4)


# ---- batches, generation, budgets -----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True], ids=["a dialogue each", "turns of one"])
@pytest.mark.parametrize(
    "pruning",
    [
        {},
        {"method": "litelvlm", "retention_ratio": 1 / 3},
        {"method": "divprune", "budget": 3},
        {"method": "fastv", "budget": 3},
    ],
)
def test_a_batch_is_one_by_one(joint, pruning, model, processor):
    """Three pictures and two videos of different size, each with one to three sentences, in one call."""
    processor.one_expression_per_dialogue = not joint
    model.config.pruning_config = PruningConfig(**pruning)
    model.mask_model.config.remembers_in_bfloat16 = False
    inputs = processor.segmentation_inputs(images=IMAGES, videos=CLIPS, expressions=ASKED)
    assert inputs["num_prompt_images"].tolist() == [1, 1, 1, 5, 3]
    assert inputs["num_tiles"].tolist() == [*(len(tiles_of(image)) for image in IMAGES), *[1] * 8]
    together = model.segment(**inputs)
    media = [{"images": [image]} for image in IMAGES] + [{"videos": [clip]} for clip in CLIPS]
    for index, (medium, sentences) in enumerate(zip(media, ASKED, strict=True)):
        alone = model.segment(**processor.segmentation_inputs(**medium, expressions=[sentences]))
        assert_close("logits", together.mask_logits[index], alone.mask_logits[0], 2e-2)
        changed = together.masks[index] != alone.masks[0]  # by the rounding of sums, where a logit is almost 0
        assert changed.sum() <= 1 and not (changed & (alone.mask_logits[0].abs() > 2e-3)).any()
    assert together.masks[2].shape == (3, 50, 50) and together.masks[3].shape == (2, 7, 36, 48)


@torch.no_grad()
def test_all_kept_is_unpruned(model, processor):
    inputs = processor.segmentation_inputs(images=IMAGES, videos=CLIPS, expressions=ASKED)
    plain = model.segment(**inputs)
    kept = model.segment(**inputs, pruning_config=PruningConfig(retention_ratio=1.0))
    assert all(torch.equal(*pair) for pair in zip(kept.mask_logits, plain.mask_logits, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("pruning", [{}, {"method": "fastv", "method_options": {"layer": 1}, "budget": 5}])
def test_features_of_tiles_that_were_encoded_before(pruning, model, processor):
    inputs = dict(processor.segmentation_inputs(IMAGES, ASKED[:3]))
    expected = model.segment(**inputs, pruning_config=PruningConfig(**pruning))
    pixels = inputs.pop("pixel_values")
    features = model.get_image_features(pixels, num_tiles=inputs["num_tiles"])
    assert len(features.pooler_output) == len(pixels) > len(IMAGES)
    output = model.segment(**inputs, mm_encoder_outputs={"image": features}, pruning_config=PruningConfig(**pruning))
    assert all(torch.equal(*pair) for pair in zip(output.masks, expected.masks, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 4])
def test_what_the_model_writes(budget, model, processor):
    """The first tokens of its own answer, and the states that a [SEG] among them would be read from."""
    model.config.pruning_budget = budget
    prompt = processor.segmentation_inputs(IMAGES[:1], [["a cat"]], for_generation=True)
    output = model.generate_masks(**prompt, max_new_tokens=6)
    plain = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(output.sequences, plain) and plain.shape[1] > prompt["input_ids"].shape[1]
    count = (plain[0, prompt["input_ids"].shape[1] : -1] == model.config.seg_token_id).sum()
    assert len(output.masks[0]) == count


@torch.no_grad()
def test_a_budget_is_of_a_picture_and_of_each_frame(model, processor):
    model.config.pruning_config = PruningConfig(budget=5)
    picture = model.segment(**processor.segmentation_inputs(IMAGES[:1], [["a cat", "the mug"]]))
    assert [len(kept) for kept in picture.retained_indices] == [5, 5]
    tiles = {int(index) // TOKENS_OF_TILE for index in picture.retained_indices[0]}
    assert len(tiles) == 5  # spread over its tiles
    model.config.pruning_config = PruningConfig(budget=2)
    video = model.segment(**processor.segmentation_inputs(videos=CLIPS[:1], expressions=[["a cat", "the mug"]]))
    assert [len(kept) for kept in video.retained_indices] == [2] * 10  # five frames for each of two dialogues


# ---- the conversion -------------------------------------------------------------------------------------------------


def test_report_and_config(source, folder):
    report = json.loads((folder / "conversion_report.json").read_text())
    stored = load_file(source / "model.safetensors")
    assert set(report["mapped"]["sa2va"]) == set(stored) and not report["missing"] and not report["tied"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "internvl_lite" and config["tie_word_embeddings"] is False
    assert config["architectures"] == [InternVLLiteForReferringSegmentation.__name__]
    assert all("sa2va" not in value for value in config["auto_map"].values())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 302  # <|im_end|>, not what the published config says of the language model


def test_round_trip(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load(tmp_path)
    inputs, inputs_again = (p.segmentation_inputs(IMAGES, ASKED[:3]) for p in (processor, processor_again))
    assert inputs.keys() == inputs_again.keys()
    assert all(torch.equal(inputs[name], inputs_again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(model.segment(**inputs).masks[0], again.segment(**inputs_again).masks[0])


def test_a_head_that_is_not_stored_is_the_table_of_embeddings(tmp_path):
    source = write_source(tmp_path / "source", stores_head=False)
    assert main(["convert", "sa2va", str(source), str(tmp_path / "lite"), "--dtype", "float32"]) == 0
    model, _ = load(tmp_path / "lite")
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.get_input_embeddings().weight


def test_the_dtype_of_the_config(tmp_path):
    """A reader that asks for "auto" gets what was published, not what happens to be the first tensor's."""
    source = write_source(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    assert main(["convert", "sa2va", str(source), str(tmp_path / "lite")]) == 0
    assert json.loads((tmp_path / "lite" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_tokenizer_without_its_fast_file(source, processor, tmp_path):
    """Older checkpoints have the files of the slow tokenizer alone."""
    older = write_source(tmp_path / "source")
    (older / "tokenizer.json").unlink()
    added = processor.tokenizer.get_added_vocab()
    (older / "added_tokens.json").write_text(json.dumps(added))
    assert main(["convert", "sa2va", str(older), str(tmp_path / "lite"), "--dtype", "float32"]) == 0
    _, again = load(tmp_path / "lite")
    inputs, inputs_again = (p.segmentation_inputs(IMAGES, ASKED[:3]) for p in (processor, again))
    assert torch.equal(inputs["input_ids"], inputs_again["input_ids"])


def test_a_tensor_that_does_not_split(source, tmp_path):
    """A row too many in the queries, keys and values, which are one tensor."""
    damaged = write_source(tmp_path / "source")
    tensors = load_file(damaged / "model.safetensors")
    name = "vision_model.encoder.layers.1.attn.qkv.weight"
    tensors[name] = torch.cat((tensors[name], tensors[name][:1]))
    save_file(tensors, damaged / "model.safetensors")
    conversion = sa2va_conversion(CheckpointSource(damaged))
    with pytest.raises(ConversionError, match=r"attn\.qkv\.weight` has the shape \[73, 24\]"):
        plan_renaming(conversion.parts, conversion.targets, conversion.tied)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"llm_config": {"model_type": "internlm2"}}, "llm_config.model_type is 'internlm2', but of InternVL only"),
        ({"llm_config": None}, "llm_config.model_type is None"),
        ({"vision_config": None}, "has no `vision_config`"),
        (
            {"template": "phi3_chat"},
            "template is 'phi3_chat', but of InternVL only models with 'qwen_chat' or 'internlm2",
        ),
        ({"use_thumbnail": False}, "use_thumbnail is False"),
        ({"dynamic_image_size": False}, "dynamic_image_size is False"),
        ({"force_image_size": 32}, "force_image_size is 32, but of InternVL only models with 16"),
        ({"max_dynamic_patch": "12"}, "`max_patches` must be whole numbers"),
        ({"max_dynamic_patch": 10**7}, "`max_patches` must be whole numbers from 1 to 100"),
        ({"vision_config": {"patch_size": 0, "image_size": 16}}, r"image_size and patch_size .* are \[16, 0\]"),
        ({"ps_version": "v1"}, "ps_version is 'v1'"),
        ({"select_layer": -4}, "select_layer is -4"),
        ({"model_type": "internvl_chat"}, "looks like an InternVL without masks"),
    ],
)
def test_checkpoints_that_are_not_known(change, message, source, tmp_path):
    other = write_source(tmp_path / "source")
    config = json.loads((other / "config.json").read_text()) | change
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConversionError, ValueError), match=message):
        sa2va_conversion(CheckpointSource(other))


def test_a_clip_is_not_used(source):
    with pytest.raises(ConversionError, match="--clip is not for a Sa2VA of InternVL"):
        sa2va_conversion(CheckpointSource(source), clip="openai/clip-vit-large-patch14-336")


class Published:
    """A source of names and shapes alone."""

    def __init__(self, names):
        self.names = names

    def tensors(self):
        return {name: TensorInfo(tuple(shape), torch.bfloat16) for name, shape in self.names.items()}

    def __str__(self):
        return "published"


# Decoders of Sa2VA-1B (Qwen2.5-0.5B), -4B (3B), -InternVL3-2B, -8B and -14B, by the configs of Qwen2.5.
DECODERS = {
    "1B": (896, 4864, 24, 14, 2),
    "4B": (2048, 11008, 36, 16, 2),
    "InternVL3-2B": (1536, 8960, 28, 12, 2),
    "InternVL3-8B": (3584, 18944, 28, 28, 4),
    "InternVL3-14B": (5120, 13824, 48, 40, 8),
}


@pytest.mark.parametrize("size", DECODERS)
def test_names_of_the_published_sizes(size, processor):
    """Every name has one place, every parameter has a source, and nothing is random; SAM 2's names are golden."""
    fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {**dict(zip(fields, DECODERS[size])), "vocab_size": 151_674, "model_type": "qwen2"}
    source = Published(published_names(24, 1024, 4096, text))
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 448, "patch_size": 14, "qkv_bias": True, "norm_type": "layer_norm"}
    published = {"llm_config": text, "vision_config": vision}
    masks = mask_parts(sam2_large(1024), False, 7)
    del masks["tie_word_embeddings"]
    config = internvl_config(source, published, processor.tokenizer, **masks)
    assert config.image_seq_length == 256
    with torch.device("meta"):
        model = InternVLLiteForReferringSegmentation(config)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours = {name: shape for name, shape in ours.items() if not name.startswith(("mask_model.", "seg_head."))}
    plan = plan_renaming([Part("sa2va", source, [*INTERNVL_RULES, *MASK_RULES])], ours, {})
    assert {move.source for move in plan.moves} == set(source.names) and plan.targets.keys() == ours.keys()
    print(f"{size}: {len(source.names)} names, {len(ours)} parameters")


# ---- as users run it ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_command_and_pipeline(folder, model, processor, tmp_path, capsys):
    photo(60, 90, 0).save(tmp_path / "picture.png")
    sentences = ["The red mug.", "cat"]
    arguments = ["--model", str(folder), "--budget", "5", "--output", str(tmp_path / "out"), "--json"]
    assert main(["segment", str(tmp_path / "picture.png"), *sentences, *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [len(kept) for kept in report["retained_indices"]] == [5, 5] and report["num_kept_tokens"] == 5
    assert (tmp_path / "out" / "kept_tokens_1.png").is_file()
    model.config.pruning_budget = 5
    expected = model.segment(**processor.segmentation_inputs([tmp_path / "picture.png"], [sentences])).masks[0]
    assert [mask["area"] for mask in report["masks"]] == expected.sum((1, 2)).tolist()
    segment = pipeline("referring-segmentation", model=str(folder), model_kwargs={"pruning_budget": 5})
    found = segment(str(tmp_path / "picture.png"), sentences)
    assert all(np.array_equal(np.array(r["mask"]) > 0, mask) for r, mask in zip(found, expected.numpy(), strict=True))


def test_served_and_compared(loaded, tmp_path):
    """Kept tokens are those of all tiles, and drawn where these are."""
    path = tmp_path / "picture.png"
    photo(60, 90, 0).save(path)
    comparison = Comparer(Segmenter(*loaded, Limits()), "tiny").compare(
        str(path), "a mug", method="litelvlm", budget=9
    )
    assert comparison.grid == (4, 6) and comparison.num_tokens == 28  # 3 x 2 tiles of 2 x 2 tokens, and the thumbnail
    [kept] = comparison.pruned.kept
    described = describe(comparison.job, comparison.pruned)
    assert len(kept) == 9 and described["retained_indices"] == [kept] and described["token_grid"] == [14, 2]
    assert comparison.places[kept].max() < 24 and (comparison.places[kept] == -1).sum() in (1, 2)
    assert draw_kept(comparison).width > 90


def test_evaluation(folder, tmp_path):
    arguments = EvaluationArguments(
        output_dir=str(tmp_path / "out"),
        model=str(folder),
        dataset="refshapes",
        split="test",
        methods=["none", "litelvlm", "divprune"],
        budgets=[2],
        seeds=[0],
        max_images=2,
        batch_size=2,
    )
    evaluate(arguments)
    runs = {run["run_id"]: run for run in results(tmp_path / "out")["runs"]}
    assert runs["litelvlm@2"]["num_kept_mean"] == runs["divprune@2"]["num_kept_mean"] == 2
    assert runs["none"]["num_kept_mean"] > 2


def test_stub(folder):
    check_stub(folder)
