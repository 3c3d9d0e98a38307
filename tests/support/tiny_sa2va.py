"""The golden tiny Sa2VA checkpoints: converted by the real command, and what the official code made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

from tests.support.original_checkpoints import FIXTURES
from transformers_litelvlm import AutoModelForReferringSegmentation
from transformers_litelvlm.cli.main import main


VARIANTS = ["qwen2_5_vl", "qwen3_vl"]


def golden_folder(variant: str) -> Path:
    return FIXTURES / f"tiny_sa2va_{variant}_reference"


def expected(variant: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = golden_folder(variant)
    return json.loads((folder / "expected.json").read_text()), load_file(folder / "expected.safetensors")


def sam2_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `Sam2VideoConfig` from the sizes in expected.json."""
    side, channels = sizes["image_size"], sizes["dim"]
    widths = [sizes["trunk_embed"] * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": sizes["trunk_heads"],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [sizes["trunk_heads"] * 2**stage for stage in range(4)],
        "blocks_per_stage": sizes["stages"],
        "window_size_per_stage": sizes["window_spec"],
        "global_attention_blocks": sizes["global_blocks"],
        "window_positional_embedding_background_size": sizes["bkg"],
        "image_size": [side, side],
    }
    return {
        "vision_config": {
            "backbone_config": backbone,
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[side // shrunk] * 2 for shrunk in (4, 8, 16)],
            "fpn_hidden_size": channels,
        },
        "prompt_encoder_config": {"hidden_size": channels, "image_size": side},
        "mask_decoder_config": {
            "hidden_size": channels,
            "num_hidden_layers": sizes["dec_depth"],
            "mlp_dim": sizes["dec_mlp"],
            "iou_head_hidden_dim": sizes["iou_hidden"],
        },
        "image_size": side,
        "memory_attention_hidden_size": channels,
        "memory_attention_num_layers": sizes["mem_layers"],
        "memory_attention_feed_forward_hidden_size": sizes["ff"],
        "memory_attention_rope_feat_sizes": [side // 16] * 2,
        "memory_encoder_hidden_size": channels,
        "memory_encoder_output_channels": sizes["mem_dim"],
        "mask_downsampler_embed_dim": channels,
        "memory_fuser_num_layers": sizes["fuser_layers"],
        "memory_fuser_embed_dim": channels,
        "memory_fuser_intermediate_dim": 4 * channels,
        "enable_temporal_pos_encoding_for_object_pointers": False,
        "enable_occlusion_spatial_embedding": False,
    }


def copy_source(variant: str, folder: Path) -> Path:
    """The published layout, with a file for the sizes of its SAM 2."""
    shutil.copytree(
        golden_folder(variant), folder, ignore=shutil.ignore_patterns("expected.*"), copy_function=shutil.copyfile
    )
    folder.chmod(0o755)
    about, _ = expected(variant)
    (folder / "sam2_config.json").write_text(json.dumps(sam2_sizes(about["sam2_config"])))
    return folder


def convert(variant: str, folder: Path) -> Path:
    """As users have it, in float32."""
    source = copy_source(variant, folder / "source")
    assert main(["convert", "sa2va", str(source), str(folder / "lite"), "--dtype", "float32"]) == 0
    return folder / "lite"


def load(folder: Path, variant: str, **kwargs: Any) -> tuple[Any, Any]:
    """Model and processor; the limits of pictures are those of the golden cases."""
    model, info = AutoModelForReferringSegmentation.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    processor, (about, _) = AutoProcessor.from_pretrained(folder), expected(variant)
    processor.image_processor.size = {"shortest_edge": about["min_pixels"], "longest_edge": about["max_pixels"]}
    return model, processor


def case_inputs(processor: Any, variant: str, name: str, **kwargs: Any) -> Any:
    """What a golden case asks: of texts of the official code, "<image>" goes, and what follows stays."""
    about, tensors = expected(variant)
    case = about["cases"][name]
    pictures = case["pictures_of"]
    if case["num_frames"] == 1:
        media = {"images": [as_picture(tensors[f"{pictures}.image_rgb"])]}
    else:
        frames = tensors[f"{pictures}.frames_rgb"][: case["num_frames"]]
        media = {"videos": [[as_picture(frame) for frame in frames]]}
    turns = case.get("turns") or [{"question": case["text"], "answer": case["answer"]}]
    questions = [turn["question"].replace("<image>", "") for turn in turns]
    templates = [question[: len(question) - len(question.lstrip())] + "{expression}" for question in questions]
    processor.one_expression_per_dialogue = False
    return processor.segmentation_inputs(
        **media,
        expressions=[[question.strip() for question in questions]],
        question_template=[templates],
        answer_template=[[turn["answer"] for turn in turns]],
        as_written=True,
        **kwargs,
    )


def as_picture(values: torch.Tensor) -> Image.Image:
    return Image.fromarray(np.asarray(values))


def photo(height, width, seed):
    """Soft shapes."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# Two videos, and what is asked of three pictures and of these.
CLIPS = [[photo(36, 48, seed) for seed in range(7)], [photo(44, 40, seed) for seed in range(10, 13)]]
ASKED = [["a red mug", "the cat"], ["a dog on the left"], ["x", "y", "z z"], ["the ball", "a man"], ["one thing"]]
