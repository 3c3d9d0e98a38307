"""Presets have the shapes of the published checkpoints; nothing is allocated to find out."""

import pytest
import torch

from transformers_litelvlm.benchmark import subjects
from transformers_litelvlm.benchmark.presets import PRESETS, get_preset
from transformers_litelvlm.benchmark.stages import StagedModel
from transformers_litelvlm.benchmark.subjects import check_memory, weight_bytes


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# As the cards of the checkpoints say, or from shapes: Llama with V rows has 2 * V * D + L * (4 D^2 + 3 D I + 2 D)
# + D, GLaMM and LISA add text_hidden_fcs (D^2 + D + 256 D + 256), SAM ViT-H has 641,090,608 and the 2 x 128 matrix of
# its positions, which is a parameter in Transformers.
LLAMA_7B = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
SEG_HEAD = 4096**2 + 4096 + 256 * 4096 + 256
SAM_VIT_H = 641_090_608 + 256
CLIP_336, CLIP_224 = 303_507_456, 303_179_776


def qwen3_5(width, layers, groups, mlp):
    """From shapes: embeddings and head; 3 of 4 layers recurrent, with 16 heads of keys and 32 of values, of 128; the
    4th with 16 heads of 256, and a gate of the same size; a tower of 27 layers, of 1152 and 4304, and its merger."""
    recurrent = width * (8192 + 4096 + 2 * 32) + 4 * 8192 + 2 * 32 + 128 + 4096 * width
    attention = width * (2 * 4096 + 2 * 256 * groups) + 4096 * width + 2 * 256
    decoder = layers * (3 * recurrent + attention) // 4 + layers * (mlp + 2 * width) + width
    block = 1152 * (4 * 1152 + 2 * 4304) + 3 * 1152 + 1152 + 4304 + 1152 + 4 * 1152
    merger = 2 * 1152 + 4608 * (4608 + 1) + (4608 + 1) * width
    return 2 * 248_320 * width + decoder + 27 * block + 1152 * (3 * 2 * 16**2 + 1 + 2304) + merger


EXPECTED = {
    "llava-1.5-7b": 7_063_427_072,
    "glamm-7b": LLAMA_7B + 2 * 32_007 * 4096 + SEG_HEAD + CLIP_336 + 20_979_712 + SAM_VIT_H,
    "lisa-7b": LLAMA_7B + 2 * 32_004 * 4096 + SEG_HEAD + CLIP_224 + 1025 * 4096 + SAM_VIT_H,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3.5-9b": qwen3_5(4096, 32, groups=4, mlp=3 * 4096 * 12288),
    # 256 experts and one that all tokens use, 512 wide, with a router for each.
    "qwen3.5-35b-a3b": qwen3_5(2048, 40, groups=2, mlp=257 * (3 * 2048 * 512 + 2048)),
    # The sums of the key lists in tests/fixtures/golden/checkpoints, without the 2 x 128 matrix of SAM 2's positions,
    # which is a buffer in Transformers.
    "sa2va-qwen2.5-vl-3b": 4_293_849_650 - 256,
    "sa2va-qwen3-vl-4b": 5_057_072_690 - 256,
    "unipixel-3b": 3_754_622_976 + 2048 + 2048**2 + 2048 + 512 * 2048 + 512 + 80_850_178,
}
VISUAL_TOKENS = {"lisa-7b": 256, "qwen2.5-vl-3b": 1000, "qwen2.5-vl-7b": 1000, "unipixel-3b": 391, "tiny": 64}
VISUAL_TOKENS |= {"sa2va-qwen2.5-vl-3b": 540, "sa2va-qwen3-vl-4b": 432}
VISUAL_TOKENS |= dict.fromkeys(("qwen3-vl-4b", "qwen3-vl-8b", "qwen3.5-9b", "qwen3.5-35b-a3b"), 1000)


@pytest.mark.parametrize("name", PRESETS)
def test_sizes(name):
    preset = get_preset(name)
    model = preset.meta_model(torch.bfloat16)
    inputs = preset.workload(model.config, batch_size=1, sentences=1).inputs
    assert StagedModel(model).num_visual_tokens(inputs) == VISUAL_TOKENS.get(name, 576)
    if name in EXPECTED:
        guidance = getattr(model.model, "guidance", None)  # not in the published checkpoints
        assert count(model) - (0 if guidance is None else count(guidance)) == EXPECTED[name]
    elif name != "tiny":
        assert 1.1e9 < count(model.model.language_model) + count(model.lm_head) < 1.11e9
    assert len(preset.description) < 120 and "\n" not in preset.description


def test_towers_of_qwen2_5_vl_attend_in_windows():
    vision = get_preset("qwen2.5-vl-3b").build_config().vision_config
    assert vision.window_size == 112 and list(vision.fullatt_block_indexes) == [7, 15, 23, 31]


def test_a_prompt_has_the_lengths_of_the_golden_ones():
    preset = get_preset("glamm-7b")
    config = preset.build_config()
    workload = preset.workload(config, batch_size=2, sentences=3)
    ids = workload.inputs["input_ids"]
    assert ids.shape == (2, 36 + 576 + 36 + 32 + 32)  # medians of tests/fixtures/golden/checkpoints: 36, 36, 67, 99.5
    assert (ids == config.image_token_id).sum(1).tolist() == [576, 576]
    assert (ids == config.seg_token_id).sum(1).tolist() == [3, 3]
    assert workload.inputs["guidance_input_ids"].shape == (2, 3, 15)
    assert [inputs["guidance_input_ids"].shape for inputs in workload.one_by_one] == [(2, 1, 15)] * 3
    for which, inputs in enumerate(workload.one_by_one):
        assert inputs["guidance_input_ids"][:, 0].equal(workload.inputs["guidance_input_ids"][:, which])
        assert inputs["pixel_values"].equal(workload.inputs["pixel_values"])


def test_a_dialogue_for_every_sentence():
    preset = get_preset("lisa-7b")
    inputs = preset.workload(preset.build_config(), batch_size=2, sentences=3).inputs
    assert inputs["input_ids"].shape == (6, 35 + 256 + 27) and inputs["guidance_input_ids"].shape == (6, 1, 15)
    assert inputs["dialogue_images"].tolist() == [0, 0, 0, 1, 1, 1] and len(inputs["mask_pixel_values"]) == 2
    assert len(inputs["pixel_values"]) == 2 and not inputs["pixel_values"][0].equal(inputs["pixel_values"][1])


def test_random_weights_are_made_once_in_their_dtype_and_repeat():
    state = torch.get_rng_state()
    first, second = (get_preset("tiny").build(torch.bfloat16, torch.device("cpu")) for _ in range(2))
    assert torch.get_rng_state().equal(state), "the global generator is untouched"
    assert {parameter.dtype for parameter in first.parameters()} == {torch.bfloat16} and not first.training
    for (name, mine), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        assert mine.equal(theirs), name
    assert all(mine.equal(theirs) for mine, theirs in zip(first.buffers(), second.buffers(), strict=True))
    norm = first.model.language_model.norm.weight.float()
    assert 0.9 < norm.min() and norm.max() < 1.1 and norm.std() > 0
    other = get_preset("tiny").build(torch.bfloat16, torch.device("cpu"), seed=1)
    assert not other.lm_head.weight.equal(first.lm_head.weight)


def test_bytes_of_tied_weights_count_once():
    model = get_preset("qwen2.5-vl-3b").meta_model(torch.bfloat16)
    assert 2 * 3_754_622_976 <= weight_bytes(model) < 2 * 3_754_622_976 + 100_000  # and some buffers


def test_a_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr(subjects, "free_memory", lambda device: 4e9)
    with pytest.raises(ValueError, match=r"need 15.7 GB in bfloat16, but cpu has 4.0 GB left"):
        get_preset("glamm-7b").build(torch.bfloat16, torch.device("cpu"))
    check_memory(get_preset("tiny").meta_model(), torch.device("cpu"))


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="Unknown preset 'glam'. Known presets: tiny, grounding-1b, .*unipixel-3b"):
        get_preset("glam")
