"""Prompts, pictures and sentences of noise, in the shapes that the processors make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from transformers_litelvlm.models.masks.grounding import GroundingConfig


# A picture of COCO, height and width.
PICTURE_SIZE = (480, 640)
QWEN_WORDS = 150_000  # ids below are words in Qwen's vocabulary


@dataclass(frozen=True)
class PromptLengths:
    """Tokens of a prompt about one picture beside its visual tokens."""

    before: int  # in front of the picture: system prompt, role, marker
    turn: int  # after it: marker, question, and for masks the answer with [SEG]
    further_turn: int | None  # every later sentence of the same dialogue; `None` if each has a dialogue of its own
    sentence: int  # of a sentence for the guidance, end markers included
    after_seg: int = 2  # of a turn, what follows [SEG]: full stop and end of the answer


@dataclass(frozen=True)
class Workload:
    """What a model is given."""

    inputs: dict[str, Any]  # of `segment` or, for models without masks, of `generate`
    one_by_one: list[dict[str, Any]]  # the same sentences in calls of their own; empty if there is one sentence

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


def random_workload(
    prompt: PromptLengths, grid: tuple[int, int] | None, config: Any, batch_size: int, sentences: int
) -> Workload:
    """Inputs for `batch_size` pictures with `sentences` sentences each; the same every time. `grid` has the rows and
    columns of visual tokens; it is `None` if the config of the model decides."""

    def build(chosen: list[int]) -> dict[str, Any]:
        if grid is None:
            return _llava_inputs(prompt, config, batch_size, chosen)
        return _qwen_inputs(prompt, grid, config, batch_size, chosen)

    everything = list(range(sentences))
    return Workload(build(everything), [build([which]) for which in everything] if sentences > 1 else [])


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
    lengths: PromptLengths, placeholders: torch.Tensor, sentences: list[int], vocabulary: int, seg_token_id: int | None
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
    prompt: PromptLengths, placeholders: torch.Tensor, guidance: torch.Tensor, sentences: list[int], config: Any
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the text of all dialogues becomes, and the picture that each is about.

    Args:
        placeholders: of a picture.
        guidance: ids (B, T, length) of the sentences; a dialogue is guided by its own.
        sentences: which of each picture.
    """
    split = [[which] for which in sentences] if prompt.further_turn is None else [sentences]
    rows = [dialogue(prompt, placeholders, chosen, _vocabulary(config), config.seg_token_id) for chosen in split]
    ids = torch.stack(rows).repeat(len(guidance), 1)
    guidance = guidance.reshape(len(ids), len(split[0]), -1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "guidance_input_ids": guidance,
        "guidance_attention_mask": torch.ones_like(guidance),
    }
    return inputs, torch.arange(len(ids)) // len(split)


def _vocabulary(config: Any) -> int:
    """Ids below are words: neither special tokens nor placeholders, which have the highest ids."""
    highest = (config.text_config.vocab_size, config.image_token_id, config.seg_token_id or config.image_token_id)
    return min(*highest, QWEN_WORDS)


def _llava_inputs(prompt: PromptLengths, config: Any, batch_size: int, sentences: list[int]) -> dict[str, Any]:
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    placeholders = torch.full(((side // patch) ** 2,), config.image_token_id)
    guidance = clip_sentences(config.guidance_text_config, batch_size, sentences, prompt.sentence)
    inputs, about = _dialogues(prompt, placeholders, guidance["guidance_input_ids"], sentences, config)
    inputs["pixel_values"] = random_pixels(batch_size, 3, side, side)
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


def _qwen_inputs(
    prompt: PromptLengths, grid_size: tuple[int, int], config: Any, batch_size: int, sentences: list[int]
) -> dict[str, Any]:
    vision, (rows, columns) = config.vision_config, grid_size
    merge = vision.spatial_merge_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    has_masks = config.mask_config is not None
    # UniPixel gives a picture as a video of one frame.
    is_video = has_masks and (config.grounding_config or GroundingConfig()).pictures_as == "video"
    placeholder = config.video_token_id if is_video else config.image_token_id
    size = (batch_size, prompt.sentence)
    guidance = torch.stack([random_words(size, _vocabulary(config), 100 + which) for which in sentences], dim=1)
    inputs, about = _dialogues(prompt, torch.full((rows * columns,), placeholder), guidance, sentences, config)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == placeholder).int() * (2 if is_video else 1)
    pixels = random_pixels(batch_size * rows * columns * merge**2, patch)
    inputs["pixel_values_videos" if is_video else "pixel_values"] = pixels
    grid = torch.tensor([[1, rows * merge, columns * merge]] * batch_size)
    inputs["video_grid_thw" if is_video else "image_grid_thw"] = grid
    if is_video:
        inputs["second_per_grid_ts"] = torch.ones(batch_size)  # two frames at two per second
    if has_masks:
        inputs.update(_mask_inputs(batch_size, config.mask_config.image_size))
        inputs["dialogue_images"] = about
    return inputs


def _mask_inputs(batch_size: int, side: int) -> dict[str, torch.Tensor]:
    return {
        "mask_pixel_values": random_pixels(batch_size, 3, side, side, seed=1),
        "original_sizes": torch.tensor([PICTURE_SIZE] * batch_size),
    }
