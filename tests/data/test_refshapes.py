"""
RefShapes: the same scenes always, no scene in two splits, no ambiguous sentence, and masks that are what was drawn.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from transformers_litelvlm.data.masks import decode_mask, encode_mask
from transformers_litelvlm.data.refshapes import generate_scene, load_refshapes
from transformers_litelvlm.data.refshapes_rendering import (
    COLOURS,
    SCENE_SIZE,
    SceneObject,
    draw_object,
    shape_region,
)


SPLITS = ("train", "validation", "test")
SCENES = [(split, index) for split in SPLITS for index in range(60)]


def answers(query: dict, objects: list[dict]) -> list[int]:
    """An independent reading of a query: the numbers of all objects that somebody could take it to mean."""

    def fits(item: dict, attributes: dict) -> bool:
        # A medium object may be called small or large by somebody.
        return all(
            item[name] == value or (name == "size" and item[name] == "medium") for name, value in attributes.items()
        )

    found = [item for item in objects if fits(item, query["attributes"])]
    word, relation = query["superlative"], query["relation"]
    if word is not None:
        measure, sign = {
            "leftmost": ("x", 1),
            "rightmost": ("x", -1),
            "topmost": ("y", 1),
            "bottommost": ("y", -1),
            "smallest": ("radius", 1),
            "largest": ("radius", -1),
        }[word]
        value = sorted(sign * item[measure] for item in found)[query["rank"] - 1]
        # Whatever comes near the value would be a possible answer, too.
        slack = 13.0 if measure != "radius" else 0.2 * abs(value)
        found = [item for item in found if abs(sign * item[measure] - value) <= slack]
    if relation is not None:
        (anchor,) = [item for item in objects if fits(item, query["anchor"])]
        if relation == "closest to":
            distances = {
                item["object_id"]: math.dist((item["x"], item["y"]), (anchor["x"], anchor["y"])) for item in found
            }
            found = [item for item in found if distances[item["object_id"]] < 1.49 * min(distances.values())]
        else:
            axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
            found = [item for item in found if sign * (item[axis] - anchor[axis]) > -13.0]
    return [item["object_id"] for item in found]


def as_dicts(scene) -> list[dict]:
    return [{**vars(item), "size": item.size} for item in scene.objects]


@pytest.mark.parametrize("split", SPLITS)
def test_scene_depends_on_its_arguments_alone(split):
    first = generate_scene(split, 3, seed=5)
    np.random.seed(0)
    generate_scene("train", 0)
    second = generate_scene(split, 3, seed=5)

    assert np.array_equal(first.image, second.image) and np.array_equal(first.id_map, second.id_map)
    assert first.objects == second.objects and first.expressions == second.expressions
    assert not np.array_equal(first.image, generate_scene(split, 4, seed=5).image)
    assert not np.array_equal(first.image, generate_scene(split, 3, seed=6).image)


def test_no_change_to_the_global_random_state():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    generate_scene("test", 0)
    assert np.array_equal(before, np.random.get_state()[1])


def test_splits_do_not_overlap():
    pictures = {generate_scene(split, index, seed).image.tobytes() for split, index in SCENES for seed in (0, 1)}
    assert len(pictures) == 2 * len(SCENES)


@pytest.mark.parametrize("num_objects", [(3, 3), (3, 5), (4, 7), (7, 7)])
def test_number_of_objects(num_objects):
    counts = {len(generate_scene("test", index, num_objects=num_objects).objects) for index in range(40)}
    assert counts == set(range(num_objects[0], num_objects[1] + 1))


@pytest.mark.parametrize("num_objects", [(2, 5), (5, 4), (3, 8), (3.0, 5), 4, (3, 4, 5)])
def test_number_of_objects_out_of_range(num_objects):
    with pytest.raises(ValueError, match="`num_objects` must be") as error:
        generate_scene("test", 0, num_objects=num_objects)
    assert repr(num_objects) in str(error.value)


def test_number_of_expressions_changes_nothing_else():
    few, many = generate_scene("test", 2, max_expressions=2), generate_scene("test", 2, max_expressions=10)
    assert np.array_equal(few.image, many.image)
    assert 1 <= len(few.expressions) <= 2 <= len(many.expressions) <= 10


@pytest.mark.parametrize(("split", "index"), SCENES[::2])
def test_every_sentence_means_exactly_one_object(split, index):
    scene = generate_scene(split, index, max_expressions=12)
    objects = as_dicts(scene)
    assert scene.expressions
    assert len({expression.sentence for expression in scene.expressions}) == len(scene.expressions)
    for expression in scene.expressions:
        assert answers(expression.query.to_dict(), objects) == [expression.target_id], expression.sentence


@pytest.mark.parametrize(("split", "index"), SCENES[::5])
def test_sentences_that_compare_have_rivals_with_all_attributes(split, index):
    scene = generate_scene(split, index)
    for expression in scene.expressions:
        alike = answers({**expression.query.to_dict(), "superlative": None, "relation": None}, as_dicts(scene))
        assert (len(alike) >= 2) == (expression.kind != "attribute"), expression.sentence


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_sentences_need_the_picture(split):
    kinds = [expression.kind for index in range(80) for expression in generate_scene(split, index).expressions]
    assert set(kinds) == {"attribute", "superlative", "relation"}
    assert sum(kind != "attribute" for kind in kinds) >= len(kinds) / 2


@pytest.mark.parametrize("index", range(8))
def test_mask_is_the_region_that_was_drawn(index):
    scene = generate_scene("test", index)
    free = np.ones((SCENE_SIZE, SCENE_SIZE), dtype=bool)
    # From the last object drawn to the first: what is not yet taken is visible.
    for item in reversed(scene.objects):
        rows, columns = np.mgrid[:SCENE_SIZE, :SCENE_SIZE].astype(np.float32)
        dx, dy = (columns - item.x) / item.radius, (rows - item.y) / item.radius
        cosine, sine = np.cos(item.angle), np.sin(item.angle)
        region = shape_region(item.shape, cosine * dx + sine * dy, cosine * dy - sine * dx)
        assert np.count_nonzero(scene.mask(item.object_id) ^ (region & free)) <= 2  # rounding of float32 at the edge
        free &= ~region
    assert scene.mask(0).any()


def test_later_objects_hide_earlier_ones():
    canvas, id_map = np.zeros((SCENE_SIZE, SCENE_SIZE, 3)), np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    rng = np.random.default_rng(0)
    draw_object(canvas, id_map, SceneObject(0, "square", "red", "plain", 18.0, 60.0, 60.0, 0.0), rng)
    alone = np.count_nonzero(id_map == 1)
    draw_object(canvas, id_map, SceneObject(1, "circle", "blue", "plain", 10.0, 60.0, 60.0, 0.0), rng)
    assert np.count_nonzero(id_map == 1) == alone - np.count_nonzero(id_map == 2)
    assert np.allclose(canvas[60, 60], COLOURS["blue"], atol=13)


@pytest.mark.parametrize("shape", [(5, 7), (144, 144)])
def test_encoded_mask_comes_back(shape):
    mask = np.random.default_rng(0).random(shape) < 0.4
    assert np.array_equal(decode_mask(json.loads(json.dumps(encode_mask(mask)))), mask)


def test_rows_of_the_data_set():
    rows = load_refshapes("validation", num_scenes=3, seed=2)
    assert len(rows) == 3 and rows["image_id"] == [0, 1, 2]
    for index, row in enumerate(rows):
        scene = generate_scene("validation", index, seed=2)
        assert np.array_equal(np.asarray(row["image"]), scene.image)
        assert [entry["sentence"] for entry in row["expressions"]] == [entry.sentence for entry in scene.expressions]
        assert len(row["objects"]) == len(scene.objects)
        for entry in row["expressions"]:
            target = row["objects"][entry["target_id"]]
            assert target["object_id"] == entry["target_id"] and target["shape"] == entry["category"]
            assert answers(json.loads(entry["query"]), row["objects"]) == [entry["target_id"]]
            assert np.array_equal(decode_mask(entry["mask"]), scene.mask(entry["target_id"]))


@pytest.mark.parametrize(
    ("arguments", "named", "value"),
    [
        ({"split": "dev"}, "split", "'dev'"),
        ({"num_scenes": 0}, "num_scenes", "0"),
        ({"num_scenes": 2.5}, "num_scenes", "2.5"),
        ({"seed": -1, "num_scenes": 1}, "seed", "-1"),
        ({"max_expressions": 1, "num_scenes": 1}, "max_expressions", "1"),
        ({"max_expressions": True, "num_scenes": 1}, "max_expressions", "True"),
    ],
)
def test_bad_arguments_are_named_with_their_value(arguments, named, value):
    with pytest.raises(ValueError, match=f"`{named}`.*{value}"):
        load_refshapes(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named"), [(("test", -1), "index"), (("test", "3"), "index"), (("TEST", 0), "split")]
)
def test_bad_scene_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        generate_scene(*arguments)
