"""Boxes and points in answers: forty of them as models write them, hostile ones, and the way to the picture."""

import time

import pytest

from transformers_litelvlm.models.masks.boxes import MAX_OBJECTS, BoxAnswer, LocatedObject, box_iou, read_answer


DOG, CAT = (10, 20, 110, 220), (300, 40, 420, 260)
FENCED = (
    '```json\n[\n\t{"bbox_2d": [10, 20, 110, 220], "label": "dog"},'
    '\n\t{"bbox_2d": [300, 40, 420, 260], "label": "cat"}\n]\n```'
)
# Answer, boxes of its objects in order.
BOXES = {
    "fenced, of Qwen2.5-VL": ('```json\n[\n\t{"bbox_2d": [10, 20, 110, 220], "label": "dog"}\n]\n```', [DOG]),
    "fenced, several": (FENCED, [DOG, CAT]),
    "fenced, words around": (f"Here are the 2 animals (both):\n{FENCED}\nLet me know about [others].", [DOG, CAT]),
    "fence without a name": ('```\n{"bbox_2d": [10, 20, 110, 220]}\n```', [DOG]),
    "fence not closed": ('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}]', [DOG]),
    "bare list": ('[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}]', [DOG]),
    "bare object": ('{"bbox_2d": [10, 20, 110, 220], "label": "dog"}', [DOG]),
    "in a sentence": ('The dog is at {"bbox_2d": [10, 20, 110, 220]}, left of the cat.', [DOG]),
    "one object a line": ('{"bbox_2d": [10, 20, 110, 220]}\n{"bbox_2d": [300, 40, 420, 260]}', [DOG, CAT]),
    "numbers alone": ("[10, 20, 110, 220]", [DOG]),
    "numbers alone, several": ("[[10, 20, 110, 220], [300, 40, 420, 260]]", [DOG, CAT]),
    "of InternVL": ("<ref>dog</ref><box>[[10, 20, 110, 220]]</box>", [DOG]),
    "of InternVL, several": ("<ref>animal 2</ref><box>[[10, 20, 110, 220], [300, 40, 420, 260]]</box>", [DOG, CAT]),
    "of InternVL, with a quotation mark": ('<ref>12" dog</ref><box>[[10, 20, 110, 220]]</box>', [DOG]),
    "of InternVL, with a box in the words": (
        '<ref>the {"bbox": [1, 1, 1, 1]}</ref><box>[[10, 20, 110, 220]]</box> and <box>[[300, 40, 420, 260]]</box>',
        [DOG, CAT],
    ),
    "of InternVL, cut off": ("<ref>dog</ref><box>[[10, 20, 110, 220], [300, 40, 42", [DOG]),
    "of InternVL, without its special tokens": ("dog[[10, 20, 110, 220]]", [DOG]),
    "two corners, of Qwen2-VL": ("(10,20),(110,220)", [DOG]),
    "two corners, several": ("(10,20),(110,220) and (300,40),(420,260)", [DOG, CAT]),
    "two corners in a list": ('{"bbox_2d": [[10, 20], [110, 220]]}', [DOG]),
    "in Python's quotes": ("[{'bbox_2d': [10, 20, 110, 220], 'label': 'the boy's dog'}]", [DOG]),
    "as a text": ('{"bbox_2d": "[10, 20, 110, 220]", "label": "dog"}', [DOG]),
    "numbers as texts": ('{"bbox_2d": ["10", "20", "110", "220"]}', [DOG]),
    "decimals": ('{"bbox_2d": [10.0, 20.00, 110.0, 220.0]}', [DOG]),
    "corners by name": ('[{"x1": 10, "y1": 20, "x2": 110, "y2": 220, "label": "dog"}]', [DOG]),
    "sides by name": ('{"bbox": {"xmin": 10, "ymin": 20, "xmax": 110, "ymax": 220}, "label": "dog"}', [DOG]),
    "corner and size": ('[{"x": 10, "y": 20, "width": 100, "height": 200, "label": "dog"}]', [DOG]),
    "corner and size in a box": ('[{"box": {"x": 10, "y": 20, "w": 100, "h": 200}, "label": "dog"}]', [DOG]),
    "other names": ('{"objects": [{"bounding_box": [10, 20, 110, 220]}, {"BBox": [300, 40, 420, 260]}]}', [DOG, CAT]),
    "by what it is": ('{"dog": [10, 20, 110, 220], "cat": [300, 40, 420, 260]}', [DOG, CAT]),
    "several boxes of one name": ('{"bbox_2d": [[10, 20, 110, 220], [300, 40, 420, 260]]}', [DOG, CAT]),
    "one name twice": ('{"bbox_2d": [10, 20, 110, 220], "bbox_2d": [300, 40, 420, 260]}', [DOG, CAT]),
    "nested": ('{"answer": {"regions": {"1": {"bbox_2d": [10, 20, 110, 220]}}}}', [DOG]),
    "said twice": ('[{"bbox_2d": [10, 20, 110, 220]}, {"bbox_2d": [10, 20, 110, 220]}]', [DOG]),
    "cut off in the second box": ('[{"bbox_2d": [10, 20, 110, 220], "label": "dog"}, {"bbox_2d": [300, 40, 42', [DOG]),
    "cut off in a label": ('```json\n[{"bbox_2d": [10, 20, 110, 220], "label": "a brown do', [DOG]),
    "a bracket too few": ('[{"bbox_2d": [10, 20, 110, 220}]', [DOG]),
    "a trailing comma": ('[{"bbox_2d": [10, 20, 110, 220,],},]', [DOG]),
    "reasoning before": (
        "<think>The dog could be at [1, 2, 3, 4], but no: there is none.</think>\n"
        '<answer>[{"bbox_2d": [10, 20, 110, 220]}]</answer>',
        [DOG],
    ),
    "reasoning that the template began": ('It is {left}.</think>\n\n{"bbox_2d": [10, 20, 110, 220]}', [DOG]),
    "a box that was cut off": ('{"bbox_2d": [10, 20, 110, 2', []),
    "reasoning that was cut off": ("<think>The dog is at [10, 20, 110, 220], and the", []),
    "three numbers": ("[10, 20, 110]", []),
    "no box": ("The dog sits on the left.", []),
    "nothing": ("", []),
}
NONE = [
    "[]",
    "```json\n[]\n```",
    "none",
    "None.",
    '{"bbox_2d": null, "label": "dog"}',
    '{"objects": []}',
    "There is no dog in this picture.",
    "<think>[1, 2, 3, 4]?</think><answer>No such object is in the image.</answer>",
    "I cannot find a matching object.",
]
# Answer, objects.
POINTS = {
    "points": (
        '```json\n[{"point_2d": [60, 120], "label": "dog"}, {"point_2d": [360, 150], "label": "cat"}]\n```',
        [LocatedObject(None, ((60, 120),), "dog"), LocatedObject(None, ((360, 150),), "cat")],
    ),
    "a point in a sentence": ("It is at (60, 120).", [LocatedObject(None, ((60, 120),))]),
    "of Seg-Zero": (
        '<think>left</think><answer>{"bbox": [10,20,110,220], "points_1": [60,120], "points_2": [70,90]}</answer>',
        [LocatedObject(DOG, ((60, 120), (70, 90)))],
    ),
    "of VisionReasoner": (
        '<answer>[{"bbox_2d": [10,20,110,220], "point_2d": [60,120]}, '
        '{"bbox_2d": [300,40,420,260], "point_2d": [360,150]}]</answer>',
        [LocatedObject(DOG, ((60, 120),)), LocatedObject(CAT, ((360, 150),))],
    ),
    "by name": ('{"x": 60, "y": 120}', [LocatedObject(None, ((60, 120),))]),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_read(name):
    text, boxes = BOXES[name]
    answer = read_answer(text)
    assert [each.box for each in answer.objects] == boxes
    assert answer.text == text and not answer.says_none


@pytest.mark.parametrize("text", NONE)
def test_an_answer_says_that_there_is_none(text):
    assert read_answer(text) == BoxAnswer(text, says_none=True)


@pytest.mark.parametrize("name", POINTS)
def test_points_are_read(name):
    text, objects = POINTS[name]
    assert list(read_answer(text).objects) == objects


def test_labels_are_kept():
    assert [each.label for each in read_answer(FENCED).objects] == ["dog", "cat"]


HOSTILE = {
    "open lists": "[" * 10**6,
    "open objects": '{"a":' * 10**5,
    "closed lists": "]" * 10**6,
    "crossed brackets": "[{(" * 10**5 + "]})" * 10**5,
    "quotes behind backslashes": '"\\' * 10**5,
    "apostrophes": "' " * 10**6,
    "fences": "```" * 10**5,
    "reasoning": "<think>" * 10**5,
    "a long number": "[" + "1" * 10**6 + "]",
    "a long list": "[" + "1," * 10**6,
    "many boxes": "".join(f"[{i}, 2, {i + 9}, 9]" for i in range(10**4)),
    "boxes in texts": '{"bbox_2d": "[1"},' * 10**4,
    "lists in a text": '{"bbox_2d": "' + "[" * 10**5 + '"}',
    "negations": "no a b c " * 10**4,
    "spaces": "1" + " " * 10**6,
    "half a surrogate pair": '{"bbox_2d": [1, 2, "\ud800", 4]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_read_in_no_time(name):
    start = time.process_time()
    answer = read_answer(HOSTILE[name]).in_picture((1000, 1000), (640, 480))
    assert time.process_time() - start < 0.1
    assert len(answer.objects) <= MAX_OBJECTS


def test_numbers_beyond_all_pictures_are_no_boxes():
    assert not read_answer("[1" + "0" * 400 + ", 2, 3, 4]").objects


# ---- to the picture -------------------------------------------------------------------------------------------------


SIZES = [(64 + 97 * i, 1900 - 83 * i) for i in range(20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("convention", ["thousandths", "resized"])
def test_boxes_come_back_to_the_picture(size, convention):
    """Whole numbers in the units of the answer, and no more than a pixel off in the picture."""
    width, height = size
    resized = tuple(max(28, round(side * 0.7 / 28) * 28) for side in size)  # both sides by another factor
    units = (1000, 1000) if convention == "thousandths" else resized
    box = (0.11 * width, 0.2 * height, 0.87 * width, float(height))
    written = [round(value * units[axis % 2] / size[axis % 2]) for axis, value in enumerate(box)]
    [found] = read_answer(f'{{"bbox_2d": {written}}}').in_picture(units, size).objects
    assert found.box == pytest.approx(box, abs=1)


@pytest.mark.parametrize(
    "written, box",
    [
        ([110, 220, 10, 20], DOG),  # wrong order of corners
        ([10, 220, 110, 20], DOG),
        ([-50, -1, 5000, 480], (0, 0, 640, 480)),  # partly outside
        ([700, 20, 800, 40], None),  # outside
        ([-9, -9, -1, -1], None),
        ([10, 20, 10, 220], None),  # no width
    ],
)
def test_boxes_are_put_right(written, box):
    answer = read_answer(str(written)).in_picture((640, 480), (640, 480))
    assert [each.box for each in answer.objects] == ([box] if box else [])
    assert not answer.says_none


def test_points_outside_are_left_out():
    answer = read_answer('{"bbox_2d": [10, 20, 110, 220], "points": [[60, 120], [60, 481]]}')
    assert answer.in_picture((640, 480), (640, 480)).objects == (LocatedObject(DOG, ((60, 120),)),)
    assert not read_answer("(641, 5)").in_picture((640, 480), (640, 480)).objects


def test_the_box_around_all_objects():
    assert read_answer(FENCED).enclosing_box == (10, 20, 420, 260)
    assert read_answer("(60, 120)").enclosing_box is None


def test_intersection_over_union_of_boxes():
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert box_iou((0, 0, 10, 10), (20, 0, 30, 10)) == 0
    assert (box_iou(None, None), box_iou(DOG, None), box_iou(None, DOG), box_iou(DOG, DOG)) == (1, 0, 0, 1)
