"""A tiny Sa2VA of InternVL in the layout of the official code, and the official computation written out by hand.

There is no golden data of this variant. SAM 2, the head and the vocabulary are those of the golden tiny Sa2VA of
Qwen2.5-VL; vision tower, projector and language model have random weights under the published names. What the official
code makes of them is computed here from the description in ../shared/specs/sa2va.md and InternVL's paper, with none of
the code under test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, gelu, layer_norm, linear, relu
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from tests.support.tiny_sa2va import expected, golden_folder, sam2_sizes


LAYERS, WIDTH, HEADS, PATCH, SIDE = 3, 24, 4, 4, 16
TOKENS_OF_TILE = (SIDE // PATCH // 2) ** 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIG = {
    "architectures": ["Sa2VAChatModel"],
    "auto_map": {"AutoModel": "modeling_sa2va_chat.Sa2VAChatModel"},
    "model_type": "sa2va_chat",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": SIDE,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "qwen_chat",
    "use_thumbnail": True,
    "vision_config": {
        "model_type": "intern_vit_6b",
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "attention_dropout": 0.0,
        "drop_path_rate": 0.1,
        "use_flash_attn": True,
        "torch_dtype": "bfloat16",
    },
}
QWEN2 = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 300,
    "eos_token_id": 300,
}


def vision_names(layers: int, width: int, inner: int, patches: int, patch: int, norms: bool = False) -> dict:
    """Published names and shapes of the vision tower."""
    names = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.position_embedding": (1, patches + 1, width),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
    }
    for layer in range(layers):
        of_layer = {
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (inner, width),
            "mlp.fc1.bias": (inner,),
            "mlp.fc2.weight": (width, inner),
            "mlp.fc2.bias": (width,),
            **{f"norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")},
            **{f"ls{i}": (width,) for i in (1, 2)},
        }
        names |= {f"encoder.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return {f"vision_model.{name}": shape for name, shape in names.items()}


def projector_names(width: int, hidden: int) -> dict:
    """Published names and shapes of the projector."""
    return {
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (hidden, 4 * width),
        "mlp1.1.bias": (hidden,),
        "mlp1.3.weight": (hidden, hidden),
        "mlp1.3.bias": (hidden,),
    }


def write_source(folder: Path, stores_head: bool = True) -> Path:
    """A checkpoint in the published layout, with a file for the sizes of its SAM 2."""
    folder.mkdir()
    golden, (about, _) = golden_folder("qwen2_5_vl"), expected("qwen2_5_vl")
    tokenizer = Qwen2Tokenizer.from_pretrained(golden)
    tokenizer.add_tokens(["<img>", "</img>", "<IMG_CONTEXT>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()  # that of Qwen2.5-VL
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(golden / name, folder / name)
    text = Qwen2Config(**QWEN2, vocab_size=len(tokenizer), tie_word_embeddings=not stores_head)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "llm_config": text.to_dict()}))
    (folder / "sam2_config.json").write_text(json.dumps(sam2_sizes(about["sam2_config"])))

    torch.manual_seed(5)
    language = Qwen2ForCausalLM(text).state_dict()
    tensors = {f"language_model.{name}": 3 * torch.randn_like(value) * 0.1 for name, value in language.items()}
    tensors = {n: v + 1 if "norm" in n else v for n, v in tensors.items() if "lm_head" not in n or stores_head}
    names = vision_names(LAYERS, WIDTH, 40, (SIDE // PATCH) ** 2, PATCH) | projector_names(WIDTH, 32)
    tensors |= {name: torch.randn(shape) * (0.3 if len(shape) > 1 else 0.5) for name, shape in names.items()}
    for file in sorted(golden.glob("model-*.safetensors")):
        kept = load_file(file).items()
        tensors |= {n: v.float() for n, v in kept if n.startswith(("grounding_encoder.", "text_hidden_fcs."))}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


class Official:
    """What the official code computes of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.tensors = load_file(folder / "model.safetensors")
        self.config = json.loads((folder / "config.json").read_text())
        text = Qwen2Config(**self.config["llm_config"])
        self.language_model = Qwen2ForCausalLM(text).eval()
        own = {n.removeprefix("language_model."): v for n, v in self.tensors.items() if n.startswith("language_")}
        self.language_model.load_state_dict(own, strict="lm_head.weight" in own)

    def tower(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (tiles, 3, S, S) -> states with the class token (tiles, 1 + patches, C)."""
        t = {n.removeprefix("vision_model."): v for n, v in self.tensors.items() if n.startswith("vision_model.")}
        patch = t["embeddings.patch_embedding.weight"]
        states = conv2d(pixels, patch, t["embeddings.patch_embedding.bias"], stride=PATCH).flatten(2).mT
        states = torch.cat((t["embeddings.class_embedding"].expand(len(states), -1, -1), states), dim=1)
        states = states + t["embeddings.position_embedding"]
        for layer in range(LAYERS):
            p = {n.split(".", 3)[3]: v for n, v in t.items() if n.startswith(f"encoder.layers.{layer}.")}
            normed = layer_norm(states, (WIDTH,), p["norm1.weight"], p["norm1.bias"], 1e-6)
            qkv = linear(normed, p["attn.qkv.weight"], p["attn.qkv.bias"])
            q, k, v = qkv.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
            mixed = ((q @ k.mT) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
            mixed = linear(mixed.transpose(1, 2).flatten(2), p["attn.proj.weight"], p["attn.proj.bias"])
            states = states + mixed * p["ls1"]
            normed = layer_norm(states, (WIDTH,), p["norm2.weight"], p["norm2.bias"], 1e-6)
            inner = gelu(linear(normed, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
            states = states + linear(inner, p["mlp.fc2.weight"], p["mlp.fc2.bias"]) * p["ls2"]
        return states

    def visual_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(tiles, tokens, D): each token is a square of four patches, in rows."""
        t, side = self.tensors, SIDE // PATCH
        patches = self.tower(pixels)[:, 1:].unflatten(1, (side, side))
        squares = [patches[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        states = torch.cat(squares, dim=-1).flatten(1, 2)
        states = layer_norm(states, (4 * WIDTH,), t["mlp1.0.weight"], t["mlp1.0.bias"])
        states = gelu(linear(states, t["mlp1.1.weight"], t["mlp1.1.bias"]))
        return linear(states, t["mlp1.3.weight"], t["mlp1.3.bias"])

    def prompts_of_masks(self, ids: list[int], tokens: torch.Tensor, image_id: int, seg_id: int) -> torch.Tensor:
        """Of one dialogue, the prompt of each [SEG] (masks, C): from the state AT [SEG], after the final norm.

        Args:
            ids: with placeholders; those that are kept, where `tokens` are some of them.
            tokens: (placeholders, D).
        """
        embeds = self.language_model.get_input_embeddings()(torch.tensor([ids]))
        embeds[0, torch.tensor(ids) == image_id] = tokens
        states = self.language_model.model(inputs_embeds=embeds).last_hidden_state[0]
        t = {n.removeprefix("text_hidden_fcs."): v for n, v in self.tensors.items() if n.startswith("text_hidden_")}
        states = relu(linear(states[torch.tensor(ids) == seg_id], t["0.weight"], t["0.bias"]))
        return linear(states, t["2.weight"], t["2.bias"])


def tiles_of(picture: Image.Image, most: int = 12) -> list[Image.Image]:
    """Tiles of a picture, row by row, and the thumbnail if there are several."""
    shape, area = picture.width / picture.height, picture.width * picture.height
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most]
    best, smallest = (1, 1), float("inf")
    for w, h in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(shape - w / h)
        if difference < smallest or (difference == smallest and area > 0.5 * SIDE**2 * w * h):
            best, smallest = (w, h), difference
    w, h = best
    whole = picture.resize((w * SIDE, h * SIDE), Image.Resampling.BICUBIC)
    corners = [(column * SIDE, row * SIDE) for row in range(h) for column in range(w)]
    tiles = [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]
    return tiles if len(tiles) == 1 else [*tiles, picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)]


def pixels_of(tiles: list[Image.Image]) -> torch.Tensor:
    """(tiles, 3, S, S)."""
    values = torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    return (values - mean) / std


def prompt_of(turns: list[tuple[str, str]], counts: list[int]) -> str:
    """The official prompt: questions about pictures of so many tokens each, which stand on lines of their own."""
    pictures = "\n".join(f"<img>{'<IMG_CONTEXT>' * count}</img>" for count in counts)
    text = ""
    for question, answer in turns:
        text += f"<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        pictures = ""
    return text


def published_names(layers: int, width: int, inner: int, text: dict[str, Any]) -> dict[str, tuple]:
    """Names and shapes of a published vision tower, projector and Qwen2.5, as the official code stores them."""
    hidden, kv = text["hidden_size"], text["num_key_value_heads"] * text["hidden_size"] // text["num_attention_heads"]
    names = vision_names(layers, width, inner, 1024, 14) | projector_names(width, hidden)
    names["language_model.model.embed_tokens.weight"] = (text["vocab_size"], hidden)
    names["language_model.lm_head.weight"] = (text["vocab_size"], hidden)
    names["language_model.model.norm.weight"] = (hidden,)
    for layer in range(text["num_hidden_layers"]):
        of_layer = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (text["intermediate_size"], hidden),
            "mlp.up_proj": (text["intermediate_size"], hidden),
            "mlp.down_proj": (hidden, text["intermediate_size"]),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        prefix = f"language_model.model.layers.{layer}."
        names |= {f"{prefix}{name}.weight": shape for name, shape in of_layer.items()}
        biased = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        names |= {f"{prefix}{name}.bias": of_layer[name][:1] for name in biased}
    return names
