"""RefShapes: a deterministic generator of small scenes with unambiguous referring sentences and exact masks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from transformers_litelvlm.data.masks import encode_mask
from transformers_litelvlm.data.refshapes_queries import Expression, sample_expressions, superlative_expressions
from transformers_litelvlm.data.refshapes_rendering import (
    COLOURS,
    LARGEST_RADIUS,
    SCENE_SIZE,
    SHAPES,
    SMALLEST_RADIUS,
    TEXTURES,
    SceneObject,
    render_scene,
)
from transformers_litelvlm.utils.extras import needs_extra


if TYPE_CHECKING:
    import datasets


# The random stream of a scene is keyed on (seed, split code, index). Different keys give independent streams, so that
# no two splits share a scene.
SPLIT_CODES = {"train": 0, "validation": 1, "test": 2}
NUM_OBJECTS = (3, 5)
DEFAULT_NUM_SCENES = {"train": 30000, "validation": 500, "test": 1000}


@dataclass(frozen=True)
class Scene:
    """One picture with its objects and sentences.

    Args:
        image: `(144, 144, 3)` uint8.
        id_map: `(144, 144)` uint8, the number of the visible object plus one, 0 for the background.
        objects: the objects, in drawing order.
        expressions: the sentences.
    """

    image: np.ndarray
    id_map: np.ndarray
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]

    def mask(self, object_id: int) -> np.ndarray:
        """The visible region of an object, by its number: `(144, 144)` booleans."""
        return self.id_map == object_id + 1


def generate_scene(
    split: str, index: int, seed: int = 0, max_expressions: int = 6, num_objects: tuple[int, int] = NUM_OBJECTS
) -> Scene:
    """Make one scene: always the same one for the same arguments, whatever was made before.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        index: number of the scene in its split, from 0.
        seed: seed of the whole data set, not negative.
        max_expressions: largest number of sentences, at least 2. It changes neither the picture nor the objects.
        num_objects: smallest and largest number of objects, between 3 and 7. More objects make harder scenes, and
            other ones under the same index.

    Returns:
        Picture, objects and sentences.

    Raises:
        ValueError: if an argument is out of range; the message names it and its value.

    Example:
        >>> scene = generate_scene("test", 0)
        >>> scene.image.shape
        (144, 144, 3)
    """
    _check_split(split)
    _check_integer("index", index, 0)
    _check_integer("seed", seed, 0)
    _check_integer("max_expressions", max_expressions, 2)
    _check_num_objects(num_objects)
    rng = np.random.default_rng([seed, SPLIT_CODES[split], index])
    objects = _sample_objects(rng, num_objects)
    image, id_map = render_scene(objects, rng)
    return Scene(image, id_map, objects, tuple(sample_expressions(objects, rng, max_expressions)))


class SceneRows:
    """The rows of [`load_refshapes`], each made when it is asked for: to draw a whole split takes seconds."""

    def __init__(self, split: str, num_scenes: int | None = None, **options: Any) -> None:
        _check_split(split)
        self.num_scenes = DEFAULT_NUM_SCENES[split] if num_scenes is None else num_scenes
        _check_integer("num_scenes", self.num_scenes, 1)
        self.split, self.options = split, options
        self.scene(0)  # so that wrong arguments are errors here

    def scene(self, index: int) -> Scene:
        return generate_scene(self.split, index, **self.options)

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.num_scenes:
            raise IndexError(index)
        return _row(index, self.scene(index))


def load_refshapes(
    split: str = "test",
    num_scenes: int | None = None,
    seed: int = 0,
    max_expressions: int = 6,
    num_objects: tuple[int, int] = NUM_OBJECTS,
) -> datasets.Dataset:
    """A split of RefShapes as a data set with one row per picture.

    Every row holds `image`, `image_id`, `objects` (attributes and positions in pixels) and `expressions`, a list with
    `sentence`, `kind`, `target_id`, `category`, `query` (JSON) and `mask` (COCO run-length encoding, as in the public
    sets).

    Args:
        split: `"train"`, `"validation"` or `"test"`. Splits never share a scene, whatever the seed.
        num_scenes: number of scenes, taken from the start of the split. Defaults to 30,000, 500 and 1,000 for the
            three splits.
        seed, max_expressions, num_objects: as in [`generate_scene`].

    Returns:
        The rows.

    Raises:
        ValueError: if an argument is out of range; the message names it and its value.

    Example:
        >>> rows = load_refshapes("validation", num_scenes=2)
        >>> sorted(rows.column_names)
        ['expressions', 'image', 'image_id', 'objects']
    """
    options = {"seed": seed, "max_expressions": max_expressions, "num_objects": num_objects}
    rows = SceneRows(split, num_scenes, **options)
    with needs_extra("eval", "A split of RefShapes as rows"):
        import datasets

    return datasets.Dataset.from_list([rows[index] for index in range(len(rows))], features=_features())


def _features() -> datasets.Features:
    import datasets

    text, number, pixels = (datasets.Value(kind) for kind in ("string", "int32", "float32"))
    return datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "expressions": [
                {
                    "sentence": text,
                    "kind": text,
                    "target_id": number,
                    "category": text,
                    "query": text,
                    "mask": {"size": datasets.List(number), "counts": text},
                }
            ],
            "objects": [
                {
                    "object_id": number,
                    **dict.fromkeys(("shape", "colour", "texture", "size"), text),
                    **dict.fromkeys(("radius", "x", "y", "angle"), pixels),
                }
            ],
        }
    )


def _row(index: int, scene: Scene) -> dict:
    masks = {item.object_id: encode_mask(scene.mask(item.object_id)) for item in scene.objects}
    expressions = [
        {
            "sentence": expression.sentence,
            "kind": expression.kind,
            "target_id": expression.target_id,
            "category": scene.objects[expression.target_id].shape,
            "query": json.dumps(expression.query.to_dict()),
            "mask": masks[expression.target_id],
        }
        for expression in scene.expressions
    ]
    objects = [{**asdict(item), "size": item.size} for item in scene.objects]
    image = Image.fromarray(scene.image)
    return {"image": image, "image_id": index, "expressions": expressions, "objects": objects}


def _sample_objects(rng: np.random.Generator, num_objects: tuple[int, int]) -> tuple[SceneObject, ...]:
    """A group of two or three alike, perhaps a second pair, and singles that often share a word with the group."""
    while True:
        looks, radii = _sample_looks(rng, num_objects)
        places = _sample_places(radii, rng)
        if places is None:
            continue
        order = rng.permutation(len(radii)).tolist()
        angles = rng.uniform(-0.25, 0.25, size=len(radii)).tolist()
        drawn = [(*looks[place], radii[place], *places[place], angles[place]) for place in order]
        objects = tuple(SceneObject(number, *fields) for number, fields in enumerate(drawn))
        # A single that happens to look like the group can leave nothing to compare: such scenes are drawn again.
        if superlative_expressions(objects):
            return objects


def _sample_looks(
    rng: np.random.Generator, num_objects: tuple[int, int]
) -> tuple[list[tuple[str, str, str]], list[float]]:
    """Shape, colour and texture, and radius, of every object of a scene."""
    names = tuple(COLOURS)

    def look() -> tuple[str, str, str]:
        shape, colour, texture = rng.integers((0, 0, 0), (len(SHAPES), len(names), len(TEXTURES) + 1)).tolist()
        return SHAPES[shape], names[colour], TEXTURES[max(texture - 1, 0)]

    total, leader_size = int(rng.integers(num_objects[0], num_objects[1] + 1)), int(rng.integers(2, 4))
    leader = look()
    looks, radii = [leader] * leader_size, _graded_radii(leader_size, rng)
    if total - leader_size >= 3 and rng.random() < 0.6:
        looks, radii = looks + [look()] * 2, radii + _graded_radii(2, rng)
    while len(looks) < total:
        shape, colour, texture = look()
        draw = rng.random()
        if draw < 0.35:
            shape = leader[0]
        elif draw < 0.6:
            colour = leader[1]
        elif draw < 0.7:
            shape, colour = looks[-1][:2]
        looks.append((shape, colour, texture))
        radii.append(float(rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS)))
    return looks, radii


def _graded_radii(count: int, rng: np.random.Generator) -> list[float]:
    """Radii in pixels, in random order, that differ clearly from one another."""
    bands = ((8.5, 9.4), (12.2, 13.0), (17.0, 18.5))[:: 2 if count == 2 else 1]
    return [float(rng.uniform(*bands[place])) for place in rng.permutation(count)]


def _sample_places(radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]] | None:
    """Centres in pixels without overlap, except that some scenes let edges touch; `None` if no room was found."""
    gap = -3.0 if rng.random() < 0.15 else 3.0
    placed: dict[int, tuple[float, float]] = {}
    for place in sorted(range(len(radii)), key=lambda number: -radii[number]):
        for x, y in rng.uniform(radii[place] + 1, SCENE_SIZE - radii[place] - 1, size=(25, 2)).tolist():
            if all(
                (x - other_x) ** 2 + (y - other_y) ** 2 > (radii[place] + radii[other] + gap) ** 2
                for other, (other_x, other_y) in placed.items()
            ):
                placed[place] = (x, y)
                break
        else:
            return None
    return [placed[place] for place in range(len(radii))]


def _check_num_objects(num_objects: tuple[int, int]) -> None:
    is_pair = isinstance(num_objects, tuple | list) and len(num_objects) == 2
    if not is_pair or {*map(type, num_objects)} != {int} or not 3 <= num_objects[0] <= num_objects[1] <= 7:
        raise ValueError(f"`num_objects` must be two integers, a range between 3 and 7, got {num_objects!r}")


def _check_split(split: str) -> None:
    if split not in SPLIT_CODES:
        raise ValueError(f"`split` must be one of {sorted(SPLIT_CODES)}, got {split!r}")


def _check_integer(name: str, value: int, smallest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ValueError(f"`{name}` must be an integer of at least {smallest}, got {value!r}")
