"""Prompts, pictures and sentences of noise, in the shapes that the processors make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from transformers_litelvlm.benchmark.presets import PICTURE_SIZE, Preset, PromptLengths


QWEN_WORDS = 150_000  # ids below are words in Qwen's vocabulary


@dataclass(frozen=True)
class Workload:
    """
    What a model is given.

    Args:
        inputs (`dict`): Of `segment` or, for models without masks, of `generate`.
        one_by_one (`list[dict]`): The same sentences in calls of their own; empty if there is one sentence.
    """

    inputs: dict[str, Any]
    one_by_one: list[dict[str, Any]]

    def to(self, device: torch.device, dtype: torch.dtype) -> Workload:
        """On a device, pixels in a dtype."""

        def move(inputs: dict[str, Any]) -> dict[str, Any]:
            return {
                name: value.to(device, dtype if "pixel" in name else None)
                if isinstance(value, torch.Tensor)
                else value
                for name, value in inputs.items()
            }

        return Workload(move(self.inputs), [move(inputs) for inputs in self.one_by_one])


def random_workload(preset: Preset, config: Any, batch_size: int, sentences: int) -> Workload:
    """Inputs for `batch_size` pictures with `sentences` sentences each; the same every time."""
    build = _qwen_inputs if preset.grid is not None else _llava_inputs
    everything = list(range(sentences))
    inputs = build(preset, config, batch_size, everything)
    one_by_one = [build(preset, config, batch_size, [sentence]) for sentence in everything] if sentences > 1 else []
    return Workload(inputs, one_by_one)


def random_words(size: tuple[int, ...], vocabulary: int, seed: int) -> torch.Tensor:
    """Ids of words, without the ids that tokenizers put first."""
    return torch.randint(3, vocabulary, size, generator=torch.Generator().manual_seed(seed))


def random_pixels(*size: int, seed: int = 0) -> torch.Tensor:
    """Noise as normalised pixels are."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def clip_sentences(text_config: Any, batch_size: int, sentences: list[int], length: int) -> dict[str, torch.Tensor]:
    """Sentences of random words with CLIP's markers, (B, T, length); `sentences` names which of each picture."""
    vocabulary = min(text_config.bos_token_id, text_config.eos_token_id)
    ids = torch.stack([random_words((batch_size, length), vocabulary, seed=100 + which) for which in sentences], dim=1)
    ids[..., 0], ids[..., -1] = text_config.bos_token_id, text_config.eos_token_id
    return {"guidance_input_ids": ids, "guidance_attention_mask": torch.ones_like(ids)}


def dialogue(
    lengths: PromptLengths,
    placeholders: torch.Tensor,
    sentences: list[int],
    vocabulary: int,
    seg_token_id: int | None,
) -> torch.Tensor:
    """Ids of one dialogue: what comes before the picture, its placeholders, and a turn for each sentence."""
    parts = [random_words((lengths.before,), vocabulary, seed=1), placeholders]
    for place, which in enumerate(sentences):
        turn = random_words((lengths.turn,), vocabulary, seed=10 + which)
        turn = turn if place == 0 else turn[: lengths.further_turn]
        if seg_token_id is not None:
            turn[-1 - lengths.after_seg] = seg_token_id
        parts.append(turn)
    return torch.cat(parts)


def _dialogues(
    preset: Preset, placeholders: torch.Tensor, batch_size: int, sentences: list[int], config: Any
) -> tuple[torch.Tensor, list[list[int]], torch.Tensor]:
    """Ids (B, L) of all dialogues, the sentences of each, and the picture that each is about."""
    split = [[which] for which in sentences] if preset.prompt.further_turn is None else [sentences]
    rows = [
        dialogue(preset.prompt, placeholders, of_dialogue, _vocabulary(config), config.seg_token_id)
        for of_dialogue in split
    ]
    about = torch.arange(batch_size).repeat_interleave(len(split))
    return torch.stack(rows).repeat(batch_size, 1), split, about


def _vocabulary(config: Any) -> int:
    """Ids below are words: neither special tokens nor placeholders, which have the highest ids."""
    highest = (config.text_config.vocab_size, config.image_token_id, config.seg_token_id or config.image_token_id)
    return min(*highest, QWEN_WORDS)


def _llava_inputs(preset: Preset, config: Any, batch_size: int, sentences: list[int]) -> dict[str, Any]:
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    placeholders = torch.full(((side // patch) ** 2,), config.image_token_id)
    ids, split, about = _dialogues(preset, placeholders, batch_size, sentences, config)
    of_pictures = clip_sentences(config.guidance_text_config, batch_size, sentences, preset.prompt.sentence)
    guidance = {
        name: rows.reshape(len(ids), len(split[0]), -1)
        for name, rows in of_pictures.items()  # a dialogue is guided by its own sentences
    }
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": random_pixels(batch_size, 3, side, side),
        **guidance,
    }
    if config.mask_config is None:
        return inputs
    mask_side = config.mask_config.vision_config.image_size
    inputs.update(_mask_inputs(batch_size, mask_side))
    scale = mask_side / max(PICTURE_SIZE)
    resized = [int(length * scale + 0.5) for length in PICTURE_SIZE]
    inputs["reshaped_input_sizes"] = torch.tensor([resized] * batch_size)
    if len(about) != batch_size:
        inputs["dialogue_images"] = about
    return inputs


def _qwen_inputs(preset: Preset, config: Any, batch_size: int, sentences: list[int]) -> dict[str, Any]:
    vision, (rows, columns) = config.vision_config, preset.grid
    merge = vision.spatial_merge_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    # UniPixel gives a picture as a video of one frame.
    is_video = config.mask_config is not None
    placeholder = config.video_token_id if is_video else config.image_token_id
    ids, split, about = _dialogues(preset, torch.full((rows * columns,), placeholder), batch_size, sentences, config)
    size = (batch_size, preset.prompt.sentence)
    guidance = torch.stack([random_words(size, _vocabulary(config), 100 + which) for which in sentences], dim=1)
    guidance = guidance.reshape(len(ids), len(split[0]), -1)
    pixels = random_pixels(batch_size * rows * columns * merge**2, patch)
    grid = torch.tensor([[1, rows * merge, columns * merge]] * batch_size)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == placeholder).int() * (2 if is_video else 1),
        "pixel_values_videos" if is_video else "pixel_values": pixels,
        "video_grid_thw" if is_video else "image_grid_thw": grid,
        "guidance_input_ids": guidance,
        "guidance_attention_mask": torch.ones_like(guidance),
    }
    if is_video:
        inputs["second_per_grid_ts"] = torch.ones(batch_size)  # two frames at two per second
        inputs.update(_mask_inputs(batch_size, config.mask_config.image_size))
        inputs["dialogue_images"] = about
    return inputs


def _mask_inputs(batch_size: int, side: int) -> dict[str, torch.Tensor]:
    return {
        "mask_pixel_values": random_pixels(batch_size, 3, side, side, seed=1),
        "original_sizes": torch.tensor([PICTURE_SIZE] * batch_size),
    }
