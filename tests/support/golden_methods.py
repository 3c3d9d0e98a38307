"""The golden data of the rivals: what the authors' published code returned for random inputs. Data only.

Kinds of cases: `direct` cases hold what the selection itself reads; `tower` cases hold a whole tiny CLIP, which runs
through the evidence that models use; `llm` cases a whole tiny Llama.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from tests.support.evidence import RandomEvidence
from transformers_litelvlm.models.guidance.clip import ClipGuidance, ClipTowerEvidence
from transformers_litelvlm.models.guidance.vision_tower import TowerStates


GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "rivals"
# The bar for merged features, relative to the largest of them where that is above one.
TOLERANCE = 1e-4


def load(method: str, case: int) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and metadata of a case."""
    prefix = f"case{case}."
    with safe_open(GOLDEN / f"{method}_reference.safetensors", "pt") as file:
        tensors = {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
        return tensors, json.loads(file.metadata()[f"case{case}"])


def direct_evidence(about: dict, num_texts: int = 1, **stored: torch.Tensor) -> RandomEvidence:
    """Evidence with stored tensors, and random ones where a method must not look."""
    evidence = RandomEvidence([num_texts] * about["batch"], grid=(about["grid"], about["grid"]))
    for name, value in stored.items():
        setattr(evidence, name, value)
    return evidence


def at_layer(layer: int, query: torch.Tensor, keys: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heads of one layer, with nonsense in the other one that a method could read."""
    return {
        "head_query": torch.stack((query, -query) if layer == -1 else (-query, query), dim=1),
        "head_keys": torch.stack((keys, keys.flip(2)) if layer == -1 else (keys.flip(2), keys), dim=1),
    }


def tower_evidence(tensors: dict[str, torch.Tensor], about: dict, attention: str = "sdpa") -> ClipTowerEvidence:
    """Evidence of the stored tower for the stored pictures (and sentences)."""

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}

    config = CLIPVisionConfig(**about["vision"])
    config._attn_implementation = attention
    tower = CLIPVisionModel(config).eval()
    tower.load_state_dict(part("vision.vision_model.") or part("vision."))
    states = TowerStates.of(tower, tensors["pixel_values"], config.num_hidden_layers - 1)
    projector = torch.nn.Identity()
    if "projector.weight" in tensors:
        projector = torch.nn.Linear(*tensors["projector.weight"].T.shape)
        projector.load_state_dict(part("projector."))
    if "text" not in about:
        return ClipTowerEvidence(states, None, projector)
    guidance = ClipGuidance(CLIPTextConfig(**about["text"]), config.hidden_size, config.projection_dim).eval()
    guidance.load_state_dict({**part("text."), "visual_projection.weight": tensors["vision.visual_projection.weight"]})
    mask = tensors.get("clip_attention_mask")
    mask = None if mask is None else mask[:, None]
    return ClipTowerEvidence(states, guidance, projector, tensors["clip_input_ids"][:, None], mask)


def llm_of(tensors: dict[str, torch.Tensor], about: dict, attention: str = "sdpa") -> LlamaModel:
    """The stored language model."""
    config = LlamaConfig(**about["llm"])
    config._attn_implementation = attention
    model = LlamaModel(config).eval()
    model.load_state_dict({name.removeprefix("llm."): tensors[name] for name in tensors if name.startswith("llm.")})
    return model


def visual_mask(about: dict) -> torch.Tensor:
    """Where the visual tokens are in the stored prompt, bool (1, L)."""
    place = torch.arange(about["seq_len"])[None] - about["image_start"]
    return (place >= 0) & (place < about["num_image_tokens"])


def assert_close(name: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Prints the largest difference; `pytest -s` shows it."""
    difference = (actual - expected).abs().max().item()
    largest = max(1.0, expected.abs().max().item())
    print(f"\n{name}: largest difference {difference:.1e}, largest value {expected.abs().max().item():.1f}", end="")
    assert difference < TOLERANCE * largest
