"""Boxes and points in the answers of chat models: read from whatever text they write, and mapped to the picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple


Box = tuple[float, float, float, float]
Point = tuple[float, float]


class LocatedObject(NamedTuple):
    """One object of an answer; it has a box or points.

    Attributes:
        box: (left, top, right, bottom).
        points: (x, y) on the object.
        label: what the answer calls it.
    """

    box: Box | None = None
    points: tuple[Point, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class BoxAnswer:
    """What a model answered to one expression.

    Args:
        text: the answer as it was written.
        objects: what it locates, in the order of the answer; coordinates in the answer's units until
            [`in_picture`] maps them to pixels.
        says_none: it says that nothing matches. Without objects and without this, it could not be read.
    """

    text: str
    objects: tuple[LocatedObject, ...] = ()
    says_none: bool = False

    def in_picture(self, units: tuple[float, float], size: tuple[int, int]) -> BoxAnswer:
        """The same in pixels of the picture: corners in order, boxes cut at its edges; what lies outside is left out.

        Args:
            units: width and height of the whole picture in the answer's units.
            size: width and height of the picture in pixels.
        """
        scale = (size[0] / units[0], size[1] / units[1])
        mapped = (_mapped(each, scale, size) for each in self.objects)
        return replace(self, objects=tuple(each for each in mapped if each is not None))

    def as_json(self) -> dict[str, Any]:
        """The text, and the boxes in it as (left, top, right, bottom)."""
        boxes = [[round(value, 1) for value in each.box] for each in self.objects if each.box is not None]
        return {"answer": self.text, "boxes": boxes, "says_none": self.says_none}

    @property
    def enclosing_box(self) -> Box | None:
        """The smallest box around the boxes of all objects; `None` without any."""
        boxes = [each.box for each in self.objects if each.box is not None]
        if not boxes:
            return None
        left, top, right, bottom = zip(*boxes)
        return min(left), min(top), max(right), max(bottom)


# A model that repeats itself writes the same box until it is stopped: equal objects count once, and these at most.
MAX_OBJECTS = 64
# Of an answer without its reasoning; more than 4,000 tokens of coordinates.
MAX_CHARACTERS = 20_000
MAX_DEPTH = 16

_BOX_KEYS = {"bbox_2d", "bbox", "box_2d", "box", "bounding_box", "bboxes", "boxes", "bboxes_2d", "coordinates"}
_POINT_KEY = re.compile(r"points?(_2d)?(_\d{1,3})?")
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
# Every alternative is one pass over the characters that it takes. A text without its end, of an answer that was cut
# off, ends with the line. An apostrophe opens a text only where it can be one of Python's.
_TOKEN = re.compile(
    r'"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]{0,80}'(?=\s{0,9}[:,\]})])"
    r"|[A-Za-z_]\w*"
    r"|-?\d+(?:\.\d+)?"
    r"|[\[\](){}:]"
)
_NUMBER = re.compile(r"\s*-?\d{1,12}(?:\.\d{1,12})?\s*")
_NONE = re.compile(
    r"\b(?:none|nothing|null|there (?:is|are) no|no (?:\w{1,20} ){0,3}(?:objects?|targets?|instances?|match(?:es)?)"
    r"|not (?:present|visible|found|there)|(?:does|do) not (?:exist|appear|contain)"
    r"|(?:cannot|can't|could not|couldn't|unable to) (?:find|locate|see|detect))\b",
    re.IGNORECASE,
)
# What InternVL writes around boxes, after the words of the question.
_TAGGED = re.compile(r"<box>(.*?)(?:</box>|$)", re.DOTALL)
_HAS_NUMBERS = re.compile(r"\d\s{0,9}[,\])]")
_CLOSES = {"]": "[", ")": "(", "}": "{"}


def read_answer(text: str, with_special_tokens: str = "") -> BoxAnswer:
    """Boxes and points of an answer, in its own units.

    Args:
        text: without special tokens.
        with_special_tokens: the same with them. If boxes are between `<box>` and `</box>`, nothing else is read.

    Read are JSON and what looks like it (fenced or bare, with Python's quotes, cut off), objects with `bbox_2d`,
    `point_2d` and similar names however nested, and bare lists of four or two numbers. Reasoning before the answer
    (`<think>`, `<answer>`) is left aside. Never raises, whatever the text.
    """
    tagged = _TAGGED.findall((with_special_tokens or text)[:MAX_CHARACTERS])
    answer = "\n".join(tagged) or _without_reasoning(text)[:MAX_CHARACTERS]
    fenced = "\n".join(answer.split("```")[1::2])
    for part in (fenced, answer):
        nodes, found = _parse(part), _Found()
        for node in nodes:
            _collect(node, found)
        _collect_corners(nodes, found)
        if objects := found.best():
            return BoxAnswer(text, objects)
        lists = [node for node in nodes if node.kind != "("]
        if lists and all(map(_says_none, lists)):
            return BoxAnswer(text, says_none=True)
    # With numbers in it, a damaged box is as likely.
    return BoxAnswer(text, says_none=not _HAS_NUMBERS.search(answer) and _NONE.search(answer) is not None)


def _without_reasoning(text: str) -> str:
    text = text.rpartition("</think>")[2]
    if "<think>" in text:  # cut off before there was an answer
        return text.partition("<think>")[0]
    return text.rpartition("<answer>")[2].partition("</answer>")[0]


# ---- text to nested lists -------------------------------------------------------------------------------------------


@dataclass
class _Node:
    """A list `[`, tuple `(` or object `{`. Items of an object are (key, value)."""

    kind: str
    items: list[Any] = field(default_factory=list)
    key: str | None = None

    def add(self, item: Any) -> None:
        if self.kind == "{" and self.key is not None:
            item, self.key = (self.key, item), None
        self.items.append(item)

    def numbers(self) -> tuple[float, ...] | None:
        """The items, if all are numbers."""
        are_numbers = self.kind != "{" and all(isinstance(item, float) for item in self.items)
        return tuple(self.items) if are_numbers else None

    def children(self) -> Iterator[_Node]:
        for item in self.items:
            value = item[1] if isinstance(item, tuple) else item
            if isinstance(value, _Node):
                yield value


def _parse(text: str) -> list[_Node]:
    """Everything in brackets, however incomplete."""
    top: list[_Node] = []
    stack: list[_Node] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("[", "(", "{"):
            if len(stack) < MAX_DEPTH:
                node = _Node(token)
                (stack[-1].add if stack else top.append)(node)
                stack.append(node)
        elif token in _CLOSES:
            if any(node.kind == _CLOSES[token] for node in stack):  # whatever is open inside ends, too
                while stack.pop().kind != _CLOSES[token]:
                    pass
        elif not stack:
            continue
        elif token == ":":
            if stack[-1].kind == "{" and stack[-1].items and isinstance(stack[-1].items[-1], str | float):
                stack[-1].key = str(stack[-1].items.pop()).lower()
        else:
            stack[-1].add(_leaf(token))
    for node in stack:  # an item is missing, or the last number may have had more digits
        if not node.items or isinstance(node.items[-1], float):
            node.items[:] = ["cut off"]
    return top


def _leaf(token: str) -> float | str | None:
    text = token.strip("\"'") if token[0] in "\"'" else token
    if _NUMBER.fullmatch(text):
        return float(text)
    return None if text in ("null", "None") else text


def _says_none(node: _Node) -> bool:
    """Whether a list is empty, as far as objects are concerned: `[]`, `{"objects": []}`, `{"bbox_2d": null}`."""
    values = [item[1] if isinstance(item, tuple) else item for item in node.items]
    located = [value for value in values if value is None or isinstance(value, _Node)]
    is_empty = all(value is None or _says_none(value) for value in located)
    return is_empty and (not values or (bool(located) if node.kind == "{" else len(located) == len(values)))


# ---- nested lists to objects ----------------------------------------------------------------------------------------


class _Found:
    """Objects by how sure it is that they are meant: with a name, then bare boxes, then bare points."""

    def __init__(self) -> None:
        self.named: list[LocatedObject] = []
        self.boxes: list[LocatedObject] = []
        self.points: list[LocatedObject] = []

    def best(self) -> tuple[LocatedObject, ...]:
        return tuple(dict.fromkeys(self.named or self.boxes or self.points))[:MAX_OBJECTS]


def _collect(node: _Node, found: _Found) -> None:
    if node.kind == "{":
        _collect_named(node, found)
        return
    numbers = node.numbers()
    if numbers is not None and len(numbers) == 4:
        found.boxes.append(LocatedObject(box=numbers))
    elif numbers is not None and len(numbers) == 2:
        found.points.append(LocatedObject(points=(numbers,)))
    else:
        children = list(node.children())
        for child in children:
            _collect(child, found)
        _collect_corners(children, found)


def _collect_corners(nodes: list[_Node], found: _Found) -> None:
    """Boxes written as two corners, `(x1, y1), (x2, y2)`."""
    corners = [node.numbers() for node in nodes if node.kind == "("]
    points = [corner for corner in corners if corner is not None and len(corner) == 2]
    if len(points) == len(corners) and len(points) % 2 == 0:
        pairs = zip(points[::2], points[1::2], strict=True)
        found.boxes += [LocatedObject(box=(*first, *second)) for first, second in pairs]


def _collect_named(node: _Node, found: _Found) -> None:
    boxes: list[Any] = []
    points: list[Any] = []
    values: dict[str, Any] = {}
    for item in node.items:
        key, value = item if isinstance(item, tuple) else ("", item)
        if key in _BOX_KEYS and isinstance(value, _Node) and value.kind == "{":  # a number for each side
            node.items += value.items
        elif key in _BOX_KEYS:
            boxes += _tuples(value, 4)
        elif _POINT_KEY.fullmatch(key):
            points += _tuples(value, 2)
        elif isinstance(value, _Node):
            _collect(value, found)
        else:
            values[key] = value
    for names in (*_CORNERS, *_SIZES, ("x", "y")):
        numbers: Any = tuple(values.get(name) for name in names)
        if all(isinstance(number, float) for number in numbers):
            if names in _SIZES:  # the corner is no point on the object
                x, y, width, height = (values.pop(name) for name in names)
                numbers = (x, y, x + width, y + height)
            (boxes if len(names) == 4 else points).append(numbers)
    label = values.get("label")
    label = label if isinstance(label, str) else ""
    if len(boxes) == 1:
        found.named.append(LocatedObject(boxes[0], tuple(points), label))
    elif boxes:
        found.named += [LocatedObject(box, (), label) for box in boxes]
    else:  # points without a box may lie on several objects
        found.named += [LocatedObject(None, (point,), label) for point in points]


def _tuples(value: Any, size: int) -> Iterator[Any]:
    """Tuples of so many numbers in a value, which may be a text; two corners are a box."""
    if isinstance(value, str):
        for node in _parse(f"[{value}]"):
            yield from _tuples(node, size)
    if not isinstance(value, _Node):
        return
    numbers = value.numbers()
    if numbers is not None and len(numbers) == size:
        yield numbers
        return
    children = list(value.children())
    corners = [child.numbers() for child in children]
    if size == 4 and len(corners) == 2 and all(each is not None and len(each) == 2 for each in corners):
        yield tuple(number for corner in corners for number in corner or ())
        return
    for child in children:
        yield from _tuples(child, size)


# ---- to the picture -------------------------------------------------------------------------------------------------


def _mapped(each: LocatedObject, scale: Point, size: tuple[int, int]) -> LocatedObject | None:
    box, points = each.box, tuple((x * scale[0], y * scale[1]) for x, y in each.points)
    points = tuple((x, y) for x, y in points if 0 <= x <= size[0] and 0 <= y <= size[1])
    if box is not None:
        (left, right), (top, bottom) = (
            sorted(min(max(value * scale[axis], 0.0), size[axis]) for value in (box[axis], box[axis + 2]))
            for axis in (0, 1)
        )
        box = (left, top, right, bottom) if right > left and bottom > top else None
    return LocatedObject(box, points, each.label) if box is not None or points else None


def box_iou(first: Box | None, second: Box | None) -> float:
    """Intersection over union of two boxes; 1 if there is neither, 0 if there is one."""
    if first is None or second is None:
        return float(first is second)
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    both = sum((right - left) * (bottom - top) for left, top, right, bottom in (first, second))
    return min(common / (both - common), 1.0)
