"""Prompts with images and videos of any size, for tiny models of Qwen2.5-VL, and what one run of them shows."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tiny_qwen2_5_vl import VISION_END, VISION_START, prompt, random_guidance, random_media


SECONDS = 0.75  # per temporal patch; with 4 tokens per second 3 positions


def inputs_of(rows, num_expressions=1, guided=True):
    """Everything that the model takes for rows of media, with text before, between and after them."""
    prompts, grids = [], {"image": [], "video": []}
    for index, row in enumerate(rows):
        items = [10 + index]
        for t, height, width in row:
            kind = "video" if t else "image"
            grids[kind].append((max(t, 1), height, width))
            items += [VISION_START, (kind, max(t, 1) * height * width), VISION_END, 30 + len(items)]
        prompts.append([*items, 40, *range(50, 52 + index)])
    inputs = prompt(*prompts)
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if grids[kind]:
            pixels, grid = random_media(grids[kind], seed=len(suffix))
            inputs.update({f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grid})
    if grids["video"]:
        inputs["second_per_grid_ts"] = torch.full((len(grids["video"]),), SECONDS)
    num_media = len(grids["image"]) + len(grids["video"])
    return {**inputs, **random_guidance(num_media, num_expressions)} if guided else inputs


def without_guidance(inputs):
    return {name: value for name, value in inputs.items() if not name.startswith("guidance_")}


class Received:
    """The `position_ids` of every call of the language model."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.positions = []
        language_model = self.model.model.language_model
        record = lambda module, args, kwargs: self.positions.append(kwargs["position_ids"])  # noqa: E731
        self.handle = language_model.register_forward_pre_hook(record, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()


def columns_that_stay(inputs, output):
    """For every row the columns of the full prompt that should be left, by plain Python."""
    media = {1: iter(output.retained_indices or ()), 2: iter(output.retained_video_indices or ())}
    sizes = {
        1: iter([int(row.prod()) // 4 for row in inputs.get("image_grid_thw", ())]),
        2: iter([int(row.prod()) // 4 for row in inputs.get("video_grid_thw", ())]),
    }
    rows = []
    for types, mask in zip(inputs["mm_token_type_ids"].tolist(), inputs["attention_mask"].tolist()):
        columns, column = [], 0
        while column < len(types):
            if types[column]:
                columns += [column + index for index in next(media[types[column]]).tolist()]
                column += next(sizes[types[column]])
            else:
                columns += [column] if mask[column] else []
                column += 1
        rows.append(columns)
    return rows


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.elements = max(self.elements, tensor.numel())
        return result
