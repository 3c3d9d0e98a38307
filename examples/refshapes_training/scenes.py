"""Training scenes drawn once into arrays on disk, and batches of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from multiprocessing import Pool

import numpy as np
from tqdm import tqdm

from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.data.refshapes_rendering import SCENE_SIZE


# More sentences than `load_refshapes` gives: the cost of a training step is in the picture, and further sentences come
# almost for free.
MAX_EXPRESSIONS = 10


@dataclass(frozen=True)
class SceneCache:
    """Scenes of one split.

    Args:
        images: `(scenes, 144, 144, 3)` uint8.
        id_maps: `(scenes, 144, 144)` uint8, object number plus one, 0 for the background.
        records: per scene `objects` (attributes and positions) and `expressions` (sentence, kind, query, target).
    """

    images: np.ndarray
    id_maps: np.ndarray
    records: list[dict]

    def __len__(self) -> int:
        return len(self.records)


def _draw(arguments: tuple[str, int, int, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, str]:
    split, index, seed, num_objects = arguments
    scene = generate_scene(split, index, seed, MAX_EXPRESSIONS, num_objects)
    objects = [{**vars(item), "size": item.size} for item in scene.objects]
    expressions = [
        {
            "sentence": expression.sentence,
            "kind": expression.kind,
            "target_id": expression.target_id,
            "query": expression.query.to_dict(),
        }
        for expression in scene.expressions
    ]
    return scene.image, scene.id_map, json.dumps({"objects": objects, "expressions": expressions})


def scene_cache(
    folder: str, split: str, num_scenes: int, seed: int, num_objects: tuple[int, int], workers: int = 2
) -> SceneCache:
    """Opens the drawn scenes of a split, and draws them first where they are not there yet.

    Args:
        folder: where the arrays lie.
        split: a split of RefShapes.
        num_scenes: number of scenes.
        seed: seed of the data set.
        num_objects: smallest and largest number of objects per scene.
        workers: drawing processes.

    Returns:
        The arrays are memory-mapped.
    """
    os.makedirs(folder, exist_ok=True)
    stem = os.path.join(folder, f"{split}_{seed}_{num_scenes}_{num_objects[0]}to{num_objects[1]}")
    paths = f"{stem}_images.npy", f"{stem}_ids.npy", f"{stem}.jsonl"
    # The text file is written last, so that it exists only where the drawing was finished.
    if not os.path.exists(paths[2]):
        shape = (num_scenes, SCENE_SIZE, SCENE_SIZE)
        images = np.lib.format.open_memmap(paths[0], mode="w+", dtype=np.uint8, shape=(*shape, 3))
        id_maps = np.lib.format.open_memmap(paths[1], mode="w+", dtype=np.uint8, shape=shape)
        lines = []
        with Pool(workers) as pool:
            asked = ((split, index, seed, num_objects) for index in range(num_scenes))
            drawn = pool.imap(_draw, asked, chunksize=64)
            for index, (image, id_map, line) in enumerate(tqdm(drawn, total=num_scenes, desc=f"drawing {split}")):
                images[index], id_maps[index] = image, id_map
                lines.append(line)
        images.flush()
        id_maps.flush()
        with open(f"{paths[2]}.part", "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines))
        os.replace(f"{paths[2]}.part", paths[2])
    with open(paths[2], encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    return SceneCache(np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r"), records)
