"""A tiny UniPixel in its published layout, put together from a random Qwen2.5-VL and the golden SAM 2."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

from tests.support.original_checkpoints import FIXTURES
from tests.support.random_weights import asymmetric_
from tests.support.tiny_qwen2_5_vl import (
    CHAT_TEMPLATE,
    MERGE,
    PATCH,
    TEMPORAL,
    VOCABULARY,
    stock_config,
    tiny_config,
    tiny_tokenizer,
)
from transformers_litelvlm.cli.main import main


SAM2 = FIXTURES / "sam2_reference.safetensors"
# As in the published checkpoints, the table of embeddings is larger than the tokenizer.
ROWS = VOCABULARY + 9
REF, SEG, MEM = VOCABULARY, VOCABULARY + 1, VOCABULARY + 2


def sam2_config() -> dict:
    with safe_open(SAM2, "pt") as file:
        config = json.loads(file.metadata()["hf_config"])
    config["vision_config"]["backbone_config"]["model_type"] = "sam2_hiera_det_model"
    return config


def sam2_weights() -> dict[str, torch.Tensor]:
    """In UniPixel's names, float32."""
    with safe_open(SAM2, "pt") as file:
        return {name: file.get_tensor(name).float() for name in file.keys() if name.startswith("sam2.")}


def unipixel_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", special=True) for name in ("ref", "seg", "mem")], special_tokens=True
    )
    return tokenizer


def stock_qwen(tied: bool = True, seed: int = 3) -> Qwen2_5_VLForConditionalGeneration:
    config = stock_config(tiny_config())
    config.text_config.vocab_size = ROWS
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = tied
    return asymmetric_(Qwen2_5_VLForConditionalGeneration(config), seed)


def seg_head(seed: int = 5) -> nn.Sequential:
    head = nn.Sequential(Qwen2_5_VLRMSNorm(48), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 2 * 128))
    asymmetric_(head, seed)
    with torch.no_grad():
        head[3].weight.mul_(4)  # prompts that the decoder notices
    return head


def unipixel_weights(qwen: Qwen2_5_VLForConditionalGeneration, head: nn.Module, legacy: bool = True) -> dict:
    """Everything that UniPixel saves; `legacy` are the names of transformers 4.53."""
    weights = {}
    for name, value in qwen.state_dict().items():
        if name == "lm_head.weight" and qwen.config.tie_word_embeddings:
            continue
        if legacy:
            name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        weights[name] = value
    weights.update({f"seg_head.{name}": value for name, value in head.state_dict().items()})
    weights.update(sam2_weights())
    for name in (
        "ref_encoder.no_mask_embed.weight",
        "ref_proj_single.bias",
        "ref_proj_double.bias",
        "ref_proj.1.bias",
    ):
        weights[name] = torch.ones(2)
    for name in ("tem_pe.positional_encoding_gaussian_matrix", "tem_emb.weight", "tem_proj.bias", "msk_proj.0.bias"):
        weights[name] = torch.ones(2)
    return {name: value.detach().clone().contiguous() for name, value in weights.items()}


def write_unipixel(folder: Path, legacy: bool = True, tied: bool = True) -> Path:
    """The checkpoint as a folder, with a file for the sizes of its SAM 2, which the published ones imply."""
    qwen, head = stock_qwen(tied), seg_head()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(unipixel_weights(qwen, head, legacy), folder / "model.safetensors", metadata={"format": "pt"})
    config = qwen.config.to_dict()
    text = config.pop("text_config")
    # As 4.53 writes it: the fields of the language model at the top.
    flat = {**{k: v for k, v in text.items() if k not in ("model_type", "rope_parameters", "dtype")}, **config}
    flat.update(
        architectures=["PixelQwen2_5_VLForConditionalGeneration"],
        model_type="pixel_qwen2_5_vl",
        base_model="qwen2_5_vl",
        rope_theta=1e4,
        rope_scaling={"type": "mrope", "mrope_section": [2, 2, 2]},
        torch_dtype="float32",
        tie_word_embeddings=tied,
        ref_token_id=REF,
        seg_token_id=SEG,
        mem_token_id=MEM,
        sam2_config="configs/sam2.1_hiera_b+",
        sam2_image_size=128,
        sam2_hidden_tokens=2,
    )
    (folder / "config.json").write_text(json.dumps(flat, default=str))
    (folder / "sam2_config.json").write_text(json.dumps(sam2_config()))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "do_sample": True, "temperature": 1e-6})
    )
    tokenizer = unipixel_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    settings = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    Qwen2VLImageProcessorPil(**settings).save_pretrained(folder)
    return folder


def tiny_checkpoint(folder: Path, clip: Path | None = None) -> Path:
    """A tiny converted UniPixel, as users have it."""
    write_unipixel(folder / "source")
    target = folder / "lite"
    words = ["convert", "unipixel", str(folder / "source"), str(target)]
    assert main([*words, *([] if clip is None else ["--clip", str(clip)])]) == 0
    return target
