"""GLaMM, LISA and stock LLaVA converted by the real command, and what the results compute.

Golden: tests/fixtures/golden/checkpoints/tiny_glamm_reference, a GLaMM in the original layout with the selections,
[SEG] embeddings and masks of the original codes in float64.
"""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMaskGeneration,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.support.matrix import matrix
from tests.support.original_checkpoints import FIXTURES, TINY_GLAMM, TOKENIZER_MODEL, write_glamm, write_lisa
from tests.support.random_weights import asymmetric_
from tests.support.tiny_llava import tiny_config, tiny_guidance_tokenizer, tiny_processor
from tests.support.without_package import check_stub
from transformers_litelvlm import (
    LlavaLiteConfig,
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    LlavaLiteProcessor,
    PruningConfig,
)
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.conversion.recipes import glamm as glamm_recipe
from transformers_litelvlm.conversion.recipes import lisa as lisa_recipe
from transformers_litelvlm.conversion.recipes.original_llava import CLIP_RULES, LLAMA_FIELDS, grounding_config
from transformers_litelvlm.conversion.renaming import Part, plan_renaming
from transformers_litelvlm.conversion.weight_files import TensorInfo
from transformers_litelvlm.models.guidance.encoded import Guidance
from transformers_litelvlm.models.guidance.frames import group_frames
from transformers_litelvlm.models.guidance.selection import Chosen, project


HAS_TOKENIZER = TOKENIZER_MODEL.exists()
REAL_TOKENIZER = TOKENIZER_MODEL if HAS_TOKENIZER else None
needs_tokenizer = pytest.mark.skipif(not HAS_TOKENIZER, reason=f"{TOKENIZER_MODEL} is not here")
EXPECTED = json.loads((TINY_GLAMM / "expected.json").read_text())
CASES = EXPECTED["cases"]
RUNS = [(case, run) for case, about in CASES.items() for run in about["runs"]]
IMAGE_ID, SEG_ID = 32007, 32004
DEFERRED = "mask_model.prompt_encoder.shared_embedding.positional_embedding"  # tied, so not stored


def run_convert(*arguments) -> None:
    assert main(["convert", *map(str, arguments)]) == 0


@pytest.fixture(scope="module")
def glamm(tmp_path_factory):
    """The folder that `litelvlm convert glamm` made of the golden checkpoint."""
    folder = tmp_path_factory.mktemp("glamm")
    source = write_glamm(folder / "original", REAL_TOKENIZER)
    run_convert("glamm", source, folder / "converted", "--clip", source / "clip")
    return folder / "converted"


@pytest.fixture(scope="module")
def lisa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lisa")
    source = write_lisa(folder / "original", REAL_TOKENIZER)
    run_convert("lisa", source, folder / "converted", "--clip", source / "clip")
    return folder / "converted"


@pytest.fixture(scope="module")
def golden():
    return load_file(TINY_GLAMM / "expected.safetensors")


@pytest.fixture(scope="module")
def glamm_model(glamm):
    model, info = AutoModelForMaskGeneration.from_pretrained(glamm, dtype=torch.float32, output_loading_info=True)
    assert type(model) is LlavaLiteForReferringSegmentation and not any(info.values()), info
    return model.eval()


class Largest:
    """Compares, and remembers the largest difference of every quantity."""

    def __init__(self):
        self.seen = {}

    def check(self, what, actual, expected, tolerance):
        difference = (actual.double() - expected.double().reshape(actual.shape)).abs().max().item()
        self.seen[what] = max(self.seen.get(what, 0.0), difference)
        assert difference < tolerance, (what, difference)


@pytest.fixture(scope="module")
def largest():
    largest = Largest()
    yield largest
    for what, difference in largest.seen.items():
        print(f"{what}: largest difference {difference:.1e}")


def golden_inputs(golden, case) -> dict:
    """What the processor would give, from stored ids and pixels."""
    ids = golden[f"{case}.input_ids"].flatten()
    at = int((ids == -200).int().argmax())
    num_tokens = EXPECTED["num_patches"]
    expanded = torch.cat((ids[:at], torch.full((num_tokens,), IMAGE_ID), ids[at + 1 :]))
    return {
        "input_ids": expanded[None],
        "attention_mask": torch.ones_like(expanded)[None],
        "pixel_values": golden["clip_pixel_values"].reshape(1, 3, 84, 84),
        "mask_pixel_values": golden["sam_pixel_values"].reshape(1, 3, 96, 96),
        "guidance_input_ids": golden[f"{case}.clip_input_ids"][None],
        "guidance_attention_mask": golden[f"{case}.clip_attention_mask"][None],
        "original_sizes": torch.tensor([EXPECTED["original_size"]]),
        "reshaped_input_sizes": torch.tensor([EXPECTED["resized_size"]]),
    }


def check_run(model, inputs, golden, case, run, largest):
    budget = CASES[case]["runs"][run]["budget"]
    model.config.pruning_config = PruningConfig(budget=budget)
    inputs = dict(inputs)
    if budget == EXPECTED["num_patches"]:
        # A budget of all tokens means "unpruned"; the golden run wants them in LiteLVLM's order.
        encoded, settings = model.encode(inputs), model.model.settings()
        [group] = group_frames(encoded.grids, [budget])
        evidence = encoded.evidence(group, Guidance.of(inputs))
        chosen = Chosen(group, evidence, [settings.pruner.select(evidence, budget)])
        inputs["mm_encoder_outputs"] = {"image": project(encoded, [chosen], settings)}
        del inputs["pixel_values"]
    output = model.segment(**inputs)
    if budget is not None:
        assert output.retained_indices[0].tolist() == golden[f"{case}.{run}.retained_indices"].tolist()
        largest.check("similarity", output.similarity[0], golden[f"{case}.similarity"], 1e-4)
    for what, actual, tolerance in (
        ("seg_embeddings", output.seg_embeddings[0, :, 0], 2e-4),
        ("low_res_masks", output.pred_masks[0], 1e-3),
        ("iou", output.iou_scores[0], 2e-4),
        ("mask_logits", output.mask_logits[0], 1e-3),
    ):
        largest.check(what, actual, golden[f"{case}.{run}.{what}"], tolerance)


@pytest.mark.parametrize("case, run", RUNS)
def test_golden_glamm_from_ids(glamm_model, golden, largest, case, run):
    check_run(glamm_model, golden_inputs(golden, case), golden, case, run, largest)


@needs_tokenizer
@pytest.mark.parametrize("case, run", RUNS)
def test_golden_glamm_from_picture_and_sentences(glamm, glamm_model, golden, largest, case, run):
    processor = AutoProcessor.from_pretrained(glamm)
    turns = CASES[case]["turns"]
    inputs = processor.segmentation_inputs(
        Image.fromarray(golden["image_rgb"].numpy()),
        [turn["expression"] for turn in turns],
        question_template=[processor.question_templates[turn["question_template_index"]] for turn in turns],
        answer_template=[processor.answer_templates[turn["answer_template_index"]] for turn in turns],
    )
    expected = golden_inputs(golden, case)
    for name in (
        "input_ids",
        "guidance_input_ids",
        "guidance_attention_mask",
        "original_sizes",
        "reshaped_input_sizes",
    ):
        assert torch.equal(inputs[name], expected[name]), name
    for name in ("pixel_values", "mask_pixel_values"):
        largest.check(name, inputs[name], expected[name], 1e-5)
    check_run(glamm_model, inputs, golden, case, run, largest)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_golden_glamm_language_model_head(glamm_model, golden, largest, case):
    glamm_model.config.pruning_config = PruningConfig()
    inputs = golden_inputs(golden, case)
    names = ("input_ids", "attention_mask", "pixel_values")
    output = glamm_model(**{name: inputs[name] for name in names}, output_hidden_states=True)
    positions = golden[f"{case}.full.positions"]
    largest.check("hidden_states", output.hidden_states[-1][0, positions], golden[f"{case}.full.hidden_states"], 2e-4)
    logits = output.logits[0, positions]
    assert logits.shape[-1] == 32007  # the placeholder has no row here either
    largest.check("logits", logits[:, -64:], golden[f"{case}.full.logits_last_64"], 2e-4)
    assert logits.argmax(-1).tolist() == golden[f"{case}.full.argmax_next_token"].flatten().tolist()


# ---- LISA: one projector layer, another vocabulary, a dialogue per expression ---------------------------------------


def test_lisa_is_configuration(lisa):
    model, info = AutoModelForMaskGeneration.from_pretrained(lisa, dtype=torch.float32, output_loading_info=True)
    assert type(model) is LlavaLiteForReferringSegmentation and not any(info.values()), info
    assert {name: tuple(part.shape) for name, part in model.model.multi_modal_projector.named_parameters()} == {
        "linear_1.weight": (model.config.text_config.hidden_size, model.config.vision_config.hidden_size),
        "linear_1.bias": (model.config.text_config.hidden_size,),
    }
    assert model.config.text_config.vocab_size == 32004 and model.config.image_token_id == 32004
    assert model.config.seg_token_id == 32003
    assert model.config.text_config.rms_norm_eps == 1e-6


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 9])
def test_lisa_computes_what_its_parts_compute(lisa, golden, budget):
    """Against stock CLIP, Llama and SAM on the original tensors, wired here by hand; two sentences, two dialogues."""
    original = torch.load(lisa.parent / "original" / "pytorch_model.bin", weights_only=True)
    clip = CLIPModel.from_pretrained(lisa.parent / "original" / "clip").eval()
    published = json.loads((lisa.parent / "original" / "config.json").read_text())
    llama = LlamaForCausalLM(
        LlamaConfig(
            **{name: published[name] for name in LLAMA_FIELDS if name in published},
            vocab_size=32004,
        )
    ).eval()
    names = {name for name in original if name.startswith(("model.layers", "model.norm", "model.embed", "lm_head"))}
    llama.load_state_dict({name: original[name].float() for name in names if "inv_freq" not in name})

    model = AutoModelForMaskGeneration.from_pretrained(lisa, dtype=torch.float32, pruning_budget=budget).eval()
    processor = AutoProcessor.from_pretrained(lisa)
    picture = Image.fromarray(golden["image_rgb"].numpy())
    inputs = processor.segmentation_inputs(picture, ["the Man", "a dog"])
    assert inputs["input_ids"].shape[0] == 2 == len(inputs["dialogue_images"])
    assert inputs["mask_pixel_values"].shape[0] == 1  # SAM sees the picture once
    output = model.segment(**inputs)
    assert len(output.masks) == 1 and output.masks[0].shape == (2, 70, 100)

    features = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    for row in range(2):
        kept = range(36) if budget is None else output.retained_indices[row].tolist()
        projected = torch.nn.functional.linear(
            features[0, list(kept)],
            original["model.mm_projector.weight"].float(),
            original["model.mm_projector.bias"].float(),
        )
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        at = int((ids == 32004).int().argmax())
        before, after = ids[:at], ids[at + 36 :]
        embed = llama.model.embed_tokens
        states = llama.model(inputs_embeds=torch.cat((embed(before), projected, embed(after)))[None])
        place = at + len(kept) + int((after == 32003).int().argmax()) - 1
        state = states.last_hidden_state[0, place]
        for layer in ("0", "2"):
            weight, bias = (original[f"model.text_hidden_fcs.0.{layer}.{kind}"].float() for kind in ("weight", "bias"))
            state = torch.nn.functional.linear(state, weight, bias)
            state = state.relu() if layer == "0" else state
        difference = (output.seg_embeddings[row, 0] - state).abs().max().item()
        print(f"LISA, budget {budget}: [SEG] embedding differs by {difference:.1e}")
        assert difference < 2e-4
    if budget is not None:
        assert output.retained_indices.shape == (2, budget)
        assert not torch.equal(output.retained_indices[0], output.retained_indices[1])


def test_lisa_dialogues_do_not_see_each_other(lisa, golden):
    picture = Image.fromarray(golden["image_rgb"].numpy())
    model = AutoModelForMaskGeneration.from_pretrained(lisa, dtype=torch.float32, pruning_budget=9).eval()
    processor = AutoProcessor.from_pretrained(lisa)
    other = picture.transpose(Image.Transpose.ROTATE_90)
    together = model.segment(
        **processor.segmentation_inputs([picture, other], [["the man", "a much longer expression"], ["a dog"]])
    )
    assert [tuple(logits.shape) for logits in together.mask_logits] == [(2, 70, 100), (1, 100, 70)]
    alone = [
        model.segment(**processor.segmentation_inputs(image, sentence)).mask_logits[0][0]
        for image, sentence in ((picture, "the man"), (picture, "a much longer expression"), (other, "a dog"))
    ]
    found = [*together.mask_logits[0], *together.mask_logits[1]]
    for one, other_way in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other_way, atol=1e-4, rtol=1e-4)


# ---- full size, without weights -------------------------------------------------------------------------------------


class Index:
    """A published key list as a source."""

    def __init__(self, name):
        keys = json.loads((FIXTURES / f"{name}_index.json").read_text())["keys"]
        self.keys = keys
        self._tensors = {
            key: TensorInfo(tuple(about["shape"]), getattr(torch, about["dtype"]), "shard")
            for key, about in keys.items()
        }

    def __str__(self):
        return "index"

    def tensors(self):
        return self._tensors

    def read_json(self, name):
        return None


def clip_large(image_size):
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": image_size,
    }
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)


class StandInTokenizer:
    pad_token_id = 0

    def __init__(self, ids):
        self.convert_tokens_to_ids = ids.__getitem__


@pytest.mark.parametrize("name, image_size", [("glamm", 336), ("lisa", 224)])
def test_every_key_at_full_size(name, image_size):
    index, clip_config = Index(name), clip_large(image_size)
    with torch.device("meta"):
        clip = CLIPModel(clip_config)
    clip_part = Index.__new__(Index)
    clip_part._tensors = {key: TensorInfo(tuple(t.shape), t.dtype, "clip") for key, t in clip.state_dict().items()}
    published = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "mm_vision_select_layer": -2,
    }
    rows = {"glamm": 32007, "lisa": 32004}[name]
    tokenizer = StandInTokenizer({"<image>": rows, "[SEG]": {"glamm": 32004, "lisa": 32003}[name]})
    config = grounding_config(index, published, clip_config, tokenizer)
    config.guidance_text_config, config.guidance_projection_dim = clip_config.text_config, 768
    with torch.device("meta"):
        model = LlavaLiteForReferringSegmentation(config)
    targets = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    rules = {"glamm": glamm_recipe.RULES, "lisa": lisa_recipe.RULES}[name]
    parts = [Part(name, index, rules), Part("clip", clip_part, CLIP_RULES)]
    plan = plan_renaming(parts, targets, dict(model.all_tied_weights_keys))

    used = {move.source for move in plan.moves if move.part.label == name}
    needed = {key for key, about in index.keys.items() if about["needed"]}
    assert used == needed
    assert set(plan.dropped[name]) == set(index.keys) - needed
    assert len(index.keys) == {"glamm": 968, "lisa": 923}[name]
    assert all(plan.dropped[name].values())  # with reasons
    assert [move.target for move in plan.moves] and len({move.target for move in plan.moves}) == len(plan.moves)
    assert {move.target for move in plan.moves} | set(plan.tied) == set(targets)
    assert set(plan.tied) == {DEFERRED}
    assert config.image_seq_length == (image_size // 14) ** 2


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_what_was_converted_changes_no_bit(glamm, tmp_path, dtype):
    model = AutoModelForMaskGeneration.from_pretrained(glamm, dtype=dtype)
    stored = load_file(glamm / "model.safetensors")
    for name, value in model.state_dict().items():
        if name != DEFERRED:
            assert torch.equal(value, stored[name].to(dtype)), name
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(glamm).save_pretrained(tmp_path)
    again = AutoModelForMaskGeneration.from_pretrained(tmp_path, dtype=dtype)
    for (name, first), (other, second) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(first, second)
    assert again.config.to_dict().keys() == model.config.to_dict().keys()
    for file in (
        "tokenizer.json",
        "chat_template.jinja",
        "processor_config.json",
        "guidance_tokenizer/tokenizer.json",
    ):
        assert (tmp_path / file).read_text() == (glamm / file).read_text(), file


def test_every_tensor_keeps_its_dtype_unless_told(glamm, tmp_path):
    """The originals mix: SAM and the [SEG] projection in float32, the rest in bfloat16."""
    stored = load_file(glamm / "model.safetensors")
    kinds = {name.split(".")[0]: set() for name in stored}
    for name, value in stored.items():
        if not name.startswith(("model.guidance", "model.vision_tower")):
            kinds[name.split(".")[0]].add(value.dtype)
    assert kinds == {
        "lm_head": {torch.bfloat16},
        "mask_model": {torch.float32},
        "model": {torch.bfloat16},
        "text_hidden_fcs": {torch.float32},
    }
    source = glamm.parent / "original"
    run_convert("glamm", source, tmp_path / "half", "--clip", source / "clip", "--dtype", "float16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert AutoModelForMaskGeneration.from_pretrained(tmp_path / "half").dtype is torch.float16


@pytest.mark.parametrize("family", ["glamm", "lisa"])
def test_stub(request, family):
    check_stub(request.getfixturevalue(family))


@pytest.mark.parametrize("family", ["glamm", "lisa"])
def test_card(request, family):
    card = ModelCard.load(request.getfixturevalue(family) / "README.md")
    assert card.data.pipeline_tag == "image-segmentation" and "referring-segmentation" in card.data.tags
    name = {"glamm": "GLaMM", "lisa": "LISA"}[family]
    assert f"{name}, whose language model" in card.text and "converted by `litelvlm convert`" in card.text
    assert "Nothing was measured" in card.text and "in this image" not in card.text.split("## Prompts")[0]
    dialogue = "in a dialogue of its own" if family == "lisa" else "are asked about in one dialogue"
    assert dialogue in card.text.split("## Prompts")[1].split("## Limits")[0]


# ---- stock LLaVA ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock LLaVA folder in the names of the Hub, the CLIP that its vision tower comes from, and another CLIP."""
    folder = tmp_path_factory.mktemp("stock")
    guidance = {"vocab_size": 514, "eos_token_id": 513, "max_position_embeddings": 77}
    text_config = {**tiny_config().guidance_text_config.to_dict(), **guidance}
    lite = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config(vocabulary=261)))
    names = ("vision_config", "text_config")
    llava = LlavaForConditionalGeneration(
        LlavaConfig(**{name: lite.config.to_dict()[name] for name in names}, image_token_index=3, image_seq_length=16)
    )
    llava.load_state_dict({name: value for name, value in lite.state_dict().items() if ".guidance." not in name})
    llava.save_pretrained(folder / "llava", max_shard_size="40KB")
    processor = tiny_processor(with_masks=False)
    LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=processor.chat_template,
    ).save_pretrained(folder / "llava")
    clip = CLIPModel(
        CLIPConfig(text_config=text_config, vision_config=lite.config.vision_config.to_dict(), projection_dim=20)
    )
    asymmetric_(clip, seed=5).save_pretrained(folder / "other_clip")
    clip.vision_model.load_state_dict(lite.model.vision_tower.state_dict())
    clip.save_pretrained(folder / "clip")
    for name in ("clip", "other_clip"):
        tiny_guidance_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("names", matrix(["as published", "as saved today"], "as published".__eq__))
def test_stock_llava(stock, tmp_path, names):
    source = stock / "llava"
    keys = set(json.loads((source / "model.safetensors.index.json").read_text())["weight_map"])
    assert "language_model.lm_head.weight" in keys  # the names of llava-hf/llava-1.5-7b-hf
    if names == "as saved today":
        model = LlavaForConditionalGeneration.from_pretrained(source)
        model.save_pretrained(tmp_path / "today", save_original_format=False)
        AutoProcessor.from_pretrained(source).save_pretrained(tmp_path / "today")
        source = tmp_path / "today"
        assert "model.language_model.embed_tokens.weight" in load_file(source / "model.safetensors")
    run_convert("llava", source, tmp_path / "converted", "--clip", stock / "clip", "--max-shard-size", "50KB")
    assert len(list((tmp_path / "converted").glob("model-*.safetensors"))) > 3
    converted, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "converted", output_loading_info=True)
    assert type(converted) is LlavaLiteForConditionalGeneration and not any(info.values()), info
    direct = LlavaLiteForConditionalGeneration.from_pretrained(stock / "llava", guidance_model=str(stock / "clip"))
    for (name, first), (other, second) in zip(
        converted.state_dict().items(), direct.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(first, second), name

    processor = AutoProcessor.from_pretrained(tmp_path / "converted")
    assert type(processor) is LlavaLiteProcessor
    converted.config.pruning_budget = direct.config.pruning_budget = 5
    inputs = processor(
        images=Image.new("RGB", (40, 30), "red"), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt"
    )
    assert "guidance_input_ids" in inputs
    assert torch.equal(
        converted.generate(**inputs, max_new_tokens=4, do_sample=False),
        direct.generate(**inputs, max_new_tokens=4, do_sample=False),
    )


def test_a_stock_llava_that_says_its_head_is_tied_and_stores_it(stock, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(stock / "llava", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    run_convert("llava", source, tmp_path / "converted", "--clip", stock / "clip")
    converted = LlavaLiteForConditionalGeneration.from_pretrained(tmp_path / "converted")
    assert not torch.equal(converted.lm_head.weight, converted.get_input_embeddings().weight)


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(capsys, target, *arguments) -> str:
    capsys.readouterr()
    assert main(["convert", *map(str, arguments)]) != 0
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and not target.exists() and not list(target.parent.glob(".*converting*"))
    return error


def test_a_clip_that_is_not_the_towers(stock, tmp_path, capsys):
    target = tmp_path / "converted"
    error = refused(capsys, target, "llava", stock / "llava", target, "--clip", stock / "other_clip")
    assert "other_clip is not the CLIP that the vision tower comes from" in error and "--clip" in error


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mm_use_im_start_end": False}, "mm_use_im_start_end is False, but only True can be converted"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"mm_vision_tower": None}, "no `mm_vision_tower`"),
        ({"num_hidden_layers": 3}, "nothing in .* fills model.language_model.layers.2"),
        ({"intermediate_size": 41}, "model.layers.0.mlp.gate_proj.weight"),
    ],
)
def test_configs_of_another_kind(tmp_path, capsys, change, message):
    source = write_glamm(tmp_path / "original")
    config = json.loads((source / "config.json").read_text())
    config.update(change)
    (source / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )
    target = tmp_path / "converted"
    assert re.search(message, refused(capsys, target, "glamm", source, target, "--clip", source / "clip"))


@pytest.mark.parametrize(
    "content, message",
    [
        ({"<im_start>": 32000}, r"added_tokens.json has no \[SEG\]"),
        ({"[SEG]": 32005}, r"\[SEG\] has the id 32005, but 32000 is the next one"),
        (None, "no added_tokens.json"),
    ],
)
def test_tokenizers_of_another_kind(tmp_path, capsys, content, message):
    source = write_glamm(tmp_path / "original")
    (source / "added_tokens.json").unlink()
    if content is not None:
        (source / "added_tokens.json").write_text(json.dumps(content))
    target = tmp_path / "converted"
    assert re.search(message, refused(capsys, target, "glamm", source, target, "--clip", source / "clip"))


def test_a_clip_that_is_not_there(tmp_path, capsys):
    """The golden checkpoint names its CLIP "clip", which is no repository on the Hub."""
    target = tmp_path / "converted"
    source = write_glamm(tmp_path / "original")
    error = refused(capsys, target, "glamm", source, target)
    assert "There is no folder 'clip' here" in error and "--clip names the CLIP" in error
    error = refused(capsys, target, "glamm", tmp_path, target)
    assert f"{tmp_path} has no config.json in that folder; give the folder" in error


def test_families_are_not_mixed_up(stock, tmp_path, capsys):
    target = tmp_path / "converted"
    glamm = write_glamm(tmp_path / "original")
    assert "convert glamm" in refused(capsys, target, "llava", glamm, target, "--clip", glamm / "clip")
    assert "model.region_encoder" in refused(capsys, target, "lisa", glamm, target, "--clip", glamm / "clip")
    assert "original GLaMM or LISA" in refused(capsys, target, "glamm", stock / "llava", target)
    with pytest.raises(ValueError, match="checkpoint of the original code .GLaMMForCausalLM.*litelvlm convert"):
        LlavaLiteForReferringSegmentation.from_pretrained(glamm)
    with pytest.raises(ValueError, match="`projector_type` must be one of"):
        LlavaLiteConfig(projector_type="qformer")
