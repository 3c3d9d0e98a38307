"""Referring sentences of RefShapes: queries, the objects they pick out, their wording, how they are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations, zip_longest
from typing import Any

import numpy as np

from transformers_litelvlm.data.refshapes_rendering import SceneObject


# A query is asked only if the answer is beyond dispute. Positions are compared between centres, in pixels of a 144
# pixel scene.
POSITION_MARGIN = 14.0
RADIUS_RATIO = 1.25
DISTANCE_RATIO = 1.5

ATTRIBUTES = ("size", "texture", "colour", "shape")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
RELATIONS = (*DIRECTIONS, "closest to")
# The word, and the key by which candidates are sorted so that the object meant comes first.
SUPERLATIVES = {
    "leftmost": lambda item: item.x,
    "rightmost": lambda item: -item.x,
    "topmost": lambda item: item.y,
    "bottommost": lambda item: -item.y,
    "largest": lambda item: -item.radius,
    "smallest": lambda item: item.radius,
}


@dataclass(frozen=True)
class Query:
    """What a sentence asks for."""

    kind: str  # "attribute", "superlative" or "relation"; only the last two compare objects with one another
    attributes: dict[str, str]  # that the candidates have, among size, texture, colour and shape
    superlative: str | None = None  # a key of `SUPERLATIVES`
    rank: int = 1  # 1 for "the largest", 2 for "the second largest"
    relation: str | None = None  # one of `RELATIONS`
    anchor: dict[str, str] | None = None  # attributes of the object that the relation refers to

    def sentence(self) -> str:
        """The wording, for example `"the red circle left of the blue square"`."""
        words = ["the"]
        if self.superlative is not None:
            words += ["second"] * (self.rank == 2) + [self.superlative]
        words += _noun_phrase(self.attributes)
        if self.relation is not None:
            words += [*self.relation.split(), "the", *_noun_phrase(self.anchor)]
        return " ".join(words)

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Expression:
    """One referring sentence."""

    query: Query  # what is asked, in a form that can be checked against the objects
    target_id: int  # `object_id` of the one object that is meant

    @property
    def sentence(self) -> str:
        return self.query.sentence()

    @property
    def kind(self) -> str:
        return self.query.kind


def _noun_phrase(attributes: dict[str, str]) -> list[str]:
    return [attributes[name] for name in ATTRIBUTES if name in attributes]


def matching(objects: tuple[SceneObject, ...], attributes: dict[str, str]) -> list[SceneObject]:
    """Objects that have all the given attributes, in scene order."""
    return [item for item in objects if all(getattr(item, name) == value for name, value in attributes.items())]


def attribute_expressions(objects: tuple[SceneObject, ...]) -> list[Expression]:
    """The shortest attribute phrases that fit exactly one object; several for an object if they are equally short."""
    found = []
    for target in objects:
        for length in range(4):
            phrases = []
            for names in combinations(("size", "texture", "colour"), length):
                attributes = {name: getattr(target, name) for name in (*names, "shape")}
                if _is_unique(objects, attributes):
                    phrases.append(Expression(Query("attribute", attributes), target.object_id))
            found += phrases
            if phrases:
                break
    return found


def _is_unique(objects: tuple[SceneObject, ...], attributes: dict[str, str]) -> bool:
    if attributes.get("size") == "medium":
        return False
    if "size" not in attributes:
        return len(matching(objects, attributes)) == 1
    # A medium object could be taken for either size: if one has the other attributes, no size word is used.
    rest = {name: value for name, value in attributes.items() if name != "size"}
    sizes = [item.size for item in matching(objects, rest)]
    return "medium" not in sizes and sizes.count(attributes["size"]) == 1


def _candidate_groups(objects: tuple[SceneObject, ...]) -> list[tuple[dict[str, str], list[SceneObject]]]:
    """Phrases without a size word that fit two or three objects, each with these objects."""
    groups: dict[tuple[tuple[str, str], ...], list[SceneObject]] = {}
    for item in objects:
        for names in (("shape",), ("colour", "shape"), ("texture", "shape"), ("texture", "colour", "shape")):
            groups.setdefault(tuple((name, getattr(item, name)) for name in names), []).append(item)
    # Of several phrases for the same objects only the shortest is natural.
    shortest: dict[tuple[int, ...], tuple[tuple[str, str], ...]] = {}
    for key, items in groups.items():
        members = tuple(item.object_id for item in items)
        if 2 <= len(items) <= 3 and len(shortest.get(members, key)) >= len(key):
            shortest[members] = key
    return [(dict(key), groups[key]) for key in shortest.values()]


def superlative_expressions(objects: tuple[SceneObject, ...]) -> list[Expression]:
    """Superlatives and ordinals over two or three candidates that share every attribute of the sentence."""
    found = []
    for attributes, items in _candidate_groups(objects):
        for word, key in SUPERLATIVES.items():
            ordered = sorted(items, key=key)
            for rank in (1, 2)[: len(items) - 1]:
                apart = [_clearly_apart(word, ordered[place], ordered[place + 1]) for place in range(rank)]
                # The second of three needs a clear gap to both its neighbours.
                if all(apart):
                    query = Query("superlative", attributes, superlative=word, rank=rank)
                    found.append(Expression(query, ordered[rank - 1].object_id))
    return found


def _clearly_apart(word: str, first: SceneObject, second: SceneObject) -> bool:
    if word in ("largest", "smallest"):
        return max(first.radius, second.radius) >= RADIUS_RATIO * min(first.radius, second.radius)
    return SUPERLATIVES[word](second) - SUPERLATIVES[word](first) >= POSITION_MARGIN


def relation_expressions(objects: tuple[SceneObject, ...]) -> list[Expression]:
    """Relations to an anchor, if every other candidate shares the attributes and clearly fails the relation."""
    anchors = []
    for item in objects:
        phrase = {"colour": item.colour, "shape": item.shape}
        if len(matching(objects, phrase)) == 1:
            anchors.append((phrase, item))
    found = []
    for attributes, items in _candidate_groups(objects):
        for phrase, anchor in anchors:
            if anchor in items:
                continue
            for relation in RELATIONS:
                target = _related(relation, items, anchor)
                if target is not None:
                    query = Query("relation", attributes, relation=relation, anchor=phrase)
                    found.append(Expression(query, target.object_id))
    return found


def _related(relation: str, items: list[SceneObject], anchor: SceneObject) -> SceneObject | None:
    if relation == "closest to":
        distances = [(float(np.hypot(item.x - anchor.x, item.y - anchor.y)), item) for item in items]
        (nearest, target), (runner_up, _) = sorted(distances, key=lambda pair: pair[0])[:2]
        return target if runner_up >= DISTANCE_RATIO * nearest else None
    step_x, step_y = DIRECTIONS[relation]
    offsets = [step_x * (item.x - anchor.x) + step_y * (item.y - anchor.y) for item in items]
    if any(abs(offset) < POSITION_MARGIN for offset in offsets) or sum(offset > 0 for offset in offsets) != 1:
        return None
    return items[int(np.argmax(offsets))]


def sample_expressions(
    objects: tuple[SceneObject, ...], rng: np.random.Generator, max_expressions: int
) -> list[Expression]:
    """Draw 1 to `max_expressions` sentences for a scene, none twice; those that compare objects are never fewer than
    those that name attributes."""
    superlatives = _shuffled(superlative_expressions(objects), rng, lambda query: query.superlative)
    relations = _shuffled(relation_expressions(objects), rng, lambda query: query.relation)
    attributes = _shuffled(attribute_expressions(objects), rng, lambda query: len(query.attributes))
    compared = [expression for pair in zip(relations, superlatives, strict=False) for expression in pair]
    shorter = min(len(relations), len(superlatives))
    compared += relations[shorter:] + superlatives[shorter:]
    compared = compared[: max_expressions - max_expressions // 2]
    chosen = compared + attributes[: min(max_expressions // 2, len(compared))]
    return [chosen[place] for place in rng.permutation(len(chosen))]


def _shuffled(
    expressions: list[Expression], rng: np.random.Generator, word: Callable[[Query], Any]
) -> list[Expression]:
    """Random order in which the different words take turns: relations come in fours, and would push out the rest."""
    piles: dict[Any, list[Expression]] = {}
    for place in rng.permutation(len(expressions)):
        piles.setdefault(word(expressions[place].query), []).append(expressions[place])
    turns = zip_longest(*piles.values())
    return [expression for turn in turns for expression in turn if expression is not None]
