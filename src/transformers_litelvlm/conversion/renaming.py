"""Which tensor of a source becomes which parameter: rules, and the plan that accounts for every name on both sides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from transformers_litelvlm.conversion.errors import ConversionError, shortened
from transformers_litelvlm.conversion.weight_files import TensorInfo


@dataclass(frozen=True)
class Rename:
    """A tensor whose whole name matches becomes a parameter.

    Args:
        pattern: regular expression of the whole source name.
        replacement: name of the parameter; `\\1` and `\\g<name>` are groups of the pattern.
        row: for parameters stored in pieces, the position of this piece along the first dimension (0, 1, ...), usually
            a group such as `\\1`. All pieces of a parameter have the same shape.
        copy: name of a second parameter that gets the same values.
        split: for several parameters that are stored in one tensor, what stands in place of "*" in their names. Each
            gets an equal part of the tensor along its first dimension.
    """

    pattern: str
    replacement: str
    row: str | None = None
    copy: str | None = None
    split: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drop:
    """A tensor whose whole name matches is left out; the reason stands in the report."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Part:
    """One source of a conversion with its rules, of which the first that matches counts; `label` is for messages."""

    label: str
    source: Any
    rules: Sequence[Rename | Drop]


@dataclass(frozen=True)
class Move:
    """A source tensor and the parameter (or the piece of one) that it becomes."""

    part: Part
    source: str
    info: TensorInfo
    target: str
    row: int | None = None
    taken: tuple[int, int] = (0, 1)  # `(place, count)` if it gets that one of `count` equal parts

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the parameter gets of the source tensor."""
        place, count = self.taken
        return tensor if count == 1 else tensor.chunk(count)[place]


@dataclass(frozen=True)
class Plan:
    """What becomes of every source tensor, and where every parameter comes from."""

    targets: dict[str, TensorInfo]
    moves: list[Move]
    dropped: dict[str, dict[str, str]]
    tied: dict[str, str] = field(default_factory=dict)


def plan_renaming(
    parts: Sequence[Part], targets: Mapping[str, Sequence[int]], tied: Mapping[str, str] | None = None
) -> Plan:
    """Apply the rules to names and shapes alone: no tensor is read.

    Args:
        parts: the sources with their rules. A source is anything with `tensors()`.
        targets: shape of every parameter and stored buffer of the model.
        tied: names in `targets` that are not stored, each with the name of the stored parameter it is the same as.

    Returns:
        Parameters in the order of `targets`.

    Raises:
        ConversionError: if a source name matches no rule, a parameter is filled by none or by two, there is no such
            parameter, or shapes differ.
    """
    tied = dict(tied or {})
    moves: dict[str, list[Move]] = {name: [] for name in targets if name not in tied}
    dropped: dict[str, dict[str, str]] = {}
    for part in parts:
        dropped[part.label] = {}
        unknown, astray = [], []
        for key, info in part.source.tensors().items():
            rule = next((rule for rule in part.rules if re.fullmatch(rule.pattern, key)), None)
            if rule is None:
                unknown.append(key)
            elif isinstance(rule, Drop):
                dropped[part.label][key] = rule.reason
            else:
                for move in _moves(part, key, info, rule):
                    if move.target in moves:
                        moves[move.target].append(move)
                    else:
                        astray.append(f"{key} (to {move.target})")
        if unknown:
            raise ConversionError(
                f"{_name(part)}: no rule for {shortened(unknown)}: is it the kind of checkpoint that was named?"
            )
        if astray:
            raise ConversionError(
                f"{_name(part)}: the model that its config describes has no place for {shortened(astray)}"
            )
    unfilled = [name for name, found in moves.items() if not found]
    if unfilled:
        sources = " and ".join(_name(part) for part in parts)
        raise ConversionError(f"nothing in {sources} fills {shortened(unfilled)}: is the checkpoint complete?")
    infos = {name: _checked_target(name, tuple(targets[name]), found) for name, found in moves.items()}
    missing_stored = [f"{name} (as {stored})" for name, stored in tied.items() if stored not in infos]
    if missing_stored:
        raise ConversionError(f"tied to a parameter that is not stored: {shortened(missing_stored)}")
    return Plan(infos, [move for found in moves.values() for move in found], dropped, tied)


def _name(part: Part) -> str:
    return f"{part.label} checkpoint {part.source}"


def _moves(part: Part, key: str, info: TensorInfo, rule: Rename) -> list[Move]:
    match = re.fullmatch(rule.pattern, key)
    row = None if rule.row is None else int(match.expand(rule.row))
    if rule.split:
        count, target = len(rule.split), match.expand(rule.replacement)
        return [Move(part, key, info, target.replace("*", n), row, (i, count)) for i, n in enumerate(rule.split)]
    names = [rule.replacement] if rule.copy is None else [rule.replacement, rule.copy]
    return [Move(part, key, info, match.expand(name), row) for name in names]


def _checked_target(name: str, shape: tuple[int, ...], moves: list[Move]) -> TensorInfo:
    """Shape and dtype of a parameter, if its moves fill it exactly once."""
    first, rows = moves[0], [move.row for move in moves]
    if rows != [None] and (None in rows or sorted(rows) != list(range(len(rows)))):
        sources = shortened([f"{move.source} ({move.part.label})" for move in moves])
        raise ConversionError(f"{name} is filled by {sources}: exactly one may do so, or pieces 0, 1, ... of it")
    for move in moves:
        # As long as all parts of the tensor: it may not be a multiple of their number.
        stored = tuple(size * len(moves) if axis == 0 else size for axis, size in enumerate(move.info.shape))
        if stored != tuple(size * move.taken[1] if axis == 0 else size for axis, size in enumerate(shape)):
            pieces = "" if rows == [None] else f" and is one of {len(moves)} pieces"
            raise ConversionError(
                f"{move.info.file or _name(move.part)}: `{move.source}` has the shape {list(move.info.shape)}{pieces},"
                f" but {name} needs {list(shape)}: the config and the weights do not belong together"
            )
        if move.info.dtype != first.info.dtype:
            raise ConversionError(
                f"{move.info.file}: `{move.source}` and {first.source}, both of {name}, differ in dtype"
            )
    return TensorInfo(shape, first.info.dtype)
