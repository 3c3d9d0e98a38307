"""What is refused before a model is built, and what becomes of a stock checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from vllm import EngineArgs, SamplingParams
from vllm.lora.request import LoRARequest

from tests.vllm_engines.text import LLAVA, NEW_TOKENS, QWEN, answer_of, answers, chat, ours, questions, requests
from transformers_litelvlm import Qwen2_5_VLLiteConfig, Qwen3_VLLiteConfig
from transformers_litelvlm.serving.vllm import servable


def model_config(path: str, **overrides):
    return EngineArgs(path, dtype="float32", hf_overrides=overrides, max_model_len=1024).create_model_config()


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("talkative", {"pruning_method": "fastv", "pruning_budget": 48}, "works inside the language model"),
        (
            "talkative",
            {"pruning_method": "trim", "pruning_budget": 48, "pruning_config": {"method_options": {"adaptive": True}}},
            "picture decides",
        ),
        ("talkative", {"pruning_config": {"budget": -1}}, "budget"),
        ("talkative", {"pruning_bugdet": 5}, "pruning_bugdet"),
        ("talkative", {"image_pruning_rate": 1.5}, "image_pruning_rate"),
        ("talkative", {"image_pruning_rate": 0.5, "pruning_budget": 5}, "exclude each other"),
        ("talkative", {"image_pruning_method": "fastv", "image_pruning_rate": 0.5}, "works inside the language model"),
        ("qwen3_vl-stock", {"image_pruning_method": "trim", "pruning_method": "trim"}, "exclude each other"),
        ("qwen2_5_vl", {"pruning_config": {"retention_ratio": 0.5, "position_ids": "compact"}}, "compact"),
        ("qwen2_5_vl-stock", {"pruning_method": "fastv", "pruning_retention_ratio": 0.5}, "inside the language model"),
        ("qwen2_5_vl-stock", {"pruning_config": {"method": "fastv", "budget": 5}}, "inside the language model"),
        ("qwen3_vl-stock", {"pruning_config": {"bugdet": 5}}, "bugdet"),
    ],
)
def test_refused(checkpoint, name, overrides, message):
    with pytest.raises(ValueError, match=message):
        model_config(checkpoint(name), **overrides)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ({"model_type": "qwen2"}, "'qwen2'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "'linear'"),
    ],
)
def test_original_positions_of_other_language_models(checkpoint, tmp_path, text, named):
    """The class that reads them is vLLM's Llama: it would leave the biases of another model aside, without a sign."""
    folder = shutil.copytree(checkpoint("talkative"), tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{named}.*'compact'"):
        model_config(str(folder), pruning_config={"budget": 48, "position_ids": "original"})
    model_config(str(folder), pruning_config={"budget": 48, "position_ids": "compact"})


def test_settings_of_requests_are_none_of_the_server(checkpoint):
    with pytest.raises(ValueError, match="--hf-overrides"):
        arguments = EngineArgs(checkpoint("talkative"), mm_processor_kwargs={"pruning_budget": 5}, max_model_len=1024)
        arguments.create_model_config()


@pytest.mark.parametrize("name", ["talkative", "qwen2_5_vl", "qwen2_5_vl-stock"])
def test_names_of_vllm(checkpoint, name):
    found = model_config(checkpoint(name), image_pruning_rate=0.75, image_pruning_method="divprune").hf_config
    assert found.architectures[0].partition("For")[0].endswith("Lite")
    pruning = found.pruning_config
    assert (pruning.method, pruning.budget, pruning.retention_ratio) == ("divprune", None, 0.25)


def test_stock_llava_without_guidance_is_refused(checkpoint, start_engine, tmp_path):
    """Its CLIP cannot be loaded: what is raised has one line, and says which and what to do."""
    path, missing = checkpoint("stock_llava"), str(tmp_path / "clip")
    overrides = {"pruning_config": {"budget": 48}, "guidance_model": missing}
    with pytest.raises(ValueError, match="guidance_model") as raised:
        start_engine(path, {}, runner="generate", hf_overrides=overrides)
    assert missing in str(raised.value) and "\n" not in str(raised.value)


def test_other_versions_are_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(servable, "TESTED", (("0.1", "5.24"),))
    with pytest.raises(ValueError, match="was not tested"):
        model_config(checkpoint("talkative"))
    # Somebody else's model is none of our business.
    model_config(checkpoint("qwen2_5_vl-stock"))


@pytest.mark.parametrize(
    ("name", "stock", "ours", "config_class"),
    [
        ("qwen2_5_vl-stock", "Qwen2_5_VL", "Qwen2_5_VLLite", Qwen2_5_VLLiteConfig),
        ("qwen3_vl-stock", "Qwen3VL", "Qwen3_VLLite", Qwen3_VLLiteConfig),
    ],
)
def test_stock_checkpoints(checkpoint, name, stock, ours, config_class):
    """Only pruning settings make one of ours of it."""
    plain = model_config(checkpoint(name))
    assert plain.architecture == f"{stock}ForConditionalGeneration"
    assert not isinstance(plain.hf_config, config_class)
    pruned = model_config(checkpoint(name), pruning_config={"retention_ratio": 0.25})
    assert pruned.architecture == f"{ours}ForConditionalGeneration"
    assert isinstance(pruned.hf_config, config_class)
    assert pruned.hf_config.pruning_config.retention_ratio == 0.25
    assert pruned.hf_text_config is pruned.hf_config.text_config
    assert pruned.uses_mrope and pruned.multimodal_config.is_multimodal_pruning_enabled()


def test_too_many_pictures(checkpoint, start_engine):
    """With original positions they would reach beyond vLLM's table of angles, and end its engine."""
    path, pruning = checkpoint("talkative"), {**LLAVA, "budget": 4, "position_ids": "original"}
    engine = start_engine(path, pruning, runner="generate", limit_mm_per_prompt={"image": 99})
    model, processor = ours(path, pruning)
    [picture] = questions(path)[0][0]
    of_numbers = [
        {
            "prompt": chat(processor, "Tell me.", count),
            "multi_modal_data": {"image": [picture] * count},
            "mm_processor_kwargs": {"expressions": "the red circle"},
        }
        for count in (51, 52)
    ]
    assert answers(engine, of_numbers[:1]) == [answer_of(model, processor, of_numbers[0])]
    with pytest.raises(ValueError, match="at most 51"):
        answers(engine, of_numbers[1:])
    assert answers(engine, of_numbers[:1]) == [answer_of(model, processor, of_numbers[0])]


def test_weights_that_are_made_up(checkpoint, start_engine):
    """With `--load-format dummy`, no weights are loaded, and guidance has token embeddings nevertheless."""
    engine = start_engine(checkpoint("qwen2_5_vl"), QWEN, runner="generate", load_format="dummy")
    _, processor = ours(checkpoint("qwen2_5_vl"), QWEN)
    [answer] = answers(engine, requests(processor, "qwen2_5_vl")[:1])
    assert len(answer) == NEW_TOKENS


def test_lora(checkpoint, start_engine, tmp_path):
    """An adapter of the language model, for a checkpoint that has masks, too, is the same as merging it."""
    path, pruning = checkpoint("talkative"), {**LLAVA, "position_ids": "original"}
    model, processor = ours(path, pruning)
    asked = requests(processor, path)[:3]
    expected, weights = [[answer_of(model, processor, each) for each in asked]], {}
    for name, module in model.model.language_model.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            down, up = torch.randn(8, module.in_features) / 8, torch.randn(module.out_features, 8) / 8
            whole = f"base_model.model.model.language_model.{name}"
            weights |= {f"{whole}.lora_A.weight": down, f"{whole}.lora_B.weight": up}
            module.weight.data += up @ down
    expected.append([answer_of(model, processor, each) for each in asked])
    save_file(weights, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    engine = start_engine(path, pruning, runner="generate", enable_lora=True, max_lora_rank=8)
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    for lora, tokens in zip([None, LoRARequest("adapter", 1, str(tmp_path))], expected, strict=True):
        outputs = engine.generate(asked, params, use_tqdm=False, lora_request=lora)
        assert [list(output.outputs[0].token_ids) for output in outputs] == tokens
    assert expected[0] != expected[1]
