"""Videos of a few small frames with two moving objects, in the layouts of the public sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from transformers_litelvlm.data.masks import encode_mask


# Video -> number of frames.
VIDEOS = {"apple": 3, "boat": 1, "cat": 4}
SIZE = (40, 56)
NUM_OBJECTS = 2
NUM_EXPRESSIONS = 4 * NUM_OBJECTS
WORDS = ["red mug", "cat", "dog on the left", "sky", "the small one", "what moves", "boat", "a person"]


def objects(video: str, frame: int) -> np.ndarray:
    """Object numbers `(height, width)`; the second object is absent in the first frame of `cat`."""
    shift = 2 * frame + len(video)
    canvas = np.zeros(SIZE, np.uint8)
    canvas[4:20, shift : shift + 18] = 1
    if (video, frame) != ("cat", 0):
        canvas[18:36, 30 - shift : 48 - shift] = 2
    canvas[0, :3] = 255
    return canvas


def frame(video: str, number: int) -> Image.Image:
    noise = np.random.default_rng([len(video), number]).integers(0, 90, (*SIZE, 3))
    seen = objects(video, number)
    noise[seen == 1] += [150, 0, 0]
    noise[seen == 2] += [0, 120, 160]
    return Image.fromarray(noise.astype(np.uint8))


def _write_frames(folder: Path, ending: str, draw) -> None:
    for video, count in VIDEOS.items():
        (folder / video).mkdir(parents=True)
        for number in range(count):
            draw(video, number).save(folder / video / f"{number:05d}{ending}")


def _names(count: int) -> list[str]:
    return [f"{number:05d}" for number in range(count)]


def write_referring(root: Path, with_masks: bool = True) -> Path:
    """Refer-YouTube-VOS, and Ref-DAVIS17: expression `4 * object + annotator`."""
    _write_frames(root / "valid" / "JPEGImages", ".jpg", frame)
    if with_masks:
        _write_frames(
            root / "valid" / "Annotations", ".png", lambda video, number: Image.fromarray(objects(video, number))
        )
    videos = {
        video: {
            "expressions": {
                str(place): {"exp": f"{WORDS[place]}", "obj_id": str(place // 4 + 1)}
                for place in range(NUM_EXPRESSIONS)
            },
            "frames": _names(count),
        }
        for video, count in VIDEOS.items()
    }
    (root / "meta_expressions" / "valid").mkdir(parents=True)
    (root / "meta_expressions" / "valid" / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    return root


def write_mevis(root: Path) -> Path:
    """MeViS, the split with masks; the last expression means both objects."""
    folder = root / "valid_u"
    _write_frames(folder / "JPEGImages", ".jpg", frame)
    videos, masks = {}, {}
    for place, (video, count) in enumerate(VIDEOS.items()):
        for item in (1, 2):
            tracks = [objects(video, number) == item for number in range(count)]
            masks[str(2 * place + item)] = [encode_mask(mask) if mask.any() else None for mask in tracks]
        meant = [[1], [2], [1, 2]]
        expressions = {
            str(number): {"exp": WORDS[number], "obj_id": of, "anno_id": [2 * place + item for item in of]}
            for number, of in enumerate(meant)
        }
        height, width = SIZE
        videos[video] = {"expressions": expressions, "frames": _names(count), "height": height, "width": width}
    (folder / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    (folder / "mask_dict.json").write_text(json.dumps(masks))
    return root
