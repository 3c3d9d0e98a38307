"""Prompts of Qwen3-VL and Qwen3.5 with images and videos, and where their kept tokens stand."""

from __future__ import annotations

from tests.support.tiny_qwen2_5_vl import VISION_END, VISION_START, prompt, random_guidance, random_media


IMAGES = {"one image": [[(0, 4, 5)]], "several": [[(0, 4, 4), (0, 2, 6)]], "in two rows": [[(0, 3, 4)], [(0, 2, 2)]]}
VIDEOS = {
    "a video": [[(3, 2, 4)]],
    "of two lengths": [[(2, 2, 3)], [(4, 2, 2), (0, 2, 3)]],
    "mixed": [[(0, 2, 3), (2, 3, 2)]],
}
MEDIA = {**IMAGES, **VIDEOS}
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}


def inputs_of(rows, guided=True, side="left"):
    """All that the model takes for rows of media: (0, h, w) is an image, (t, h, w) a video, text between frames."""
    prompts, grids = [], {"image": [], "video": []}
    for index, row in enumerate(rows):
        items = [10 + index]
        for t, height, width in row:
            kind = "video" if t else "image"
            grids[kind].append((max(t, 1), height, width))
            for frame in range(max(t, 1)):
                items += [60 + frame] * bool(t) + [VISION_START, (kind, height * width), VISION_END]
            items.append(30 + len(items))
        prompts.append([*items, 40, *range(50, 52 + index)])
    inputs = prompt(*prompts, padding_side=side)
    for kind, suffix in (("image", ""), ("video", "_videos")):
        if grids[kind]:
            pixels, grid = random_media(grids[kind], seed=len(suffix))
            inputs.update({f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grid})
    count = sum(map(len, grids.values()))
    return {**inputs, **random_guidance(count)} if guided else inputs


def kept_columns(ids, output):
    """Row, columns and placeholder of the kept tokens of every image and video, from the indices that the output
    names; all columns if nothing was cut."""
    found = []
    for token, features in ((5, output.image_outputs), (6, output.video_outputs)):
        if getattr(features, "retained_indices", None) is None:
            found += [(row, (each == token).nonzero().flatten(), token) for row, each in enumerate(ids)]
            continue
        media = iter(zip(features.retained_indices, features.num_visual_tokens))
        for row, each in enumerate(ids):
            own = (each == token).nonzero().flatten()
            while len(own):
                indices, size = next(media)
                found.append((row, own[indices], token))
                own = own[size:]
    return found
