"""Reading a results.json of the evaluation runner, and checking it before any of it is published."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_litelvlm.configuration_pruning import PruningConfig


SCHEMA = "litelvlm-results/1"
# Of images and of videos, the main one first.
METRICS = {"images": {"giou": "gIoU", "ciou": "cIoU"}, "videos": {"j_and_f": "J&F", "j": "J", "f": "F"}}


class CardError(ValueError):
    """Why a card cannot be written: one line that names the file and the value, and the way out."""


@dataclass(frozen=True)
class MeasuredGroup:
    """One method at one budget, seeds averaged. Metrics, intervals (95 %) and retention are fractions."""

    method: str
    method_options: dict[str, Any]
    budget: int | None
    retention_ratio: float | None
    token_order: str | None
    position_ids: str | None
    num_seeds: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    retention: dict[str, float]  # of the unpruned run's metrics; empty if that was not run

    def tokens(self, num_tokens: int | None) -> str:
        """`48 of 144`, `all 144`, `0.25 of all`."""
        if self.method == "none" or (self.budget is None and self.retention_ratio is None):
            return f"all {num_tokens}" if num_tokens else "all"
        if num_tokens is None:
            return f"{self.budget} per image" if self.retention_ratio is None else f"{self.retention_ratio:.3g} of all"
        kept = PruningConfig(budget=self.budget, retention_ratio=self.retention_ratio).resolve(num_tokens)
        return f"{kept or num_tokens} of {num_tokens}"

    def is_what(self, pruning: PruningConfig, num_tokens: int | None) -> bool:
        """Whether `pruning` selects the same tokens, for every image of `num_tokens` (any number if `None`)."""
        try:
            own = PruningConfig(
                method=self.method,
                method_options=self.method_options,
                budget=self.budget,
                retention_ratio=self.retention_ratio,
                token_order=self.token_order,
                position_ids=self.position_ids,
            )
        except ValueError:  # a method or option of somebody else's that is not registered here
            return False
        counts = [_count(config, num_tokens) for config in (own, pruning)]
        return counts[0] == counts[1] and (
            own.build_pruner() == pruning.build_pruner()
            and pruning.then is None  # evaluations measure one method
            and own.resolved_token_order == pruning.resolved_token_order
            and own.resolved_position_ids == pruning.resolved_position_ids
        )


@dataclass(frozen=True)
class MeasuredResults:
    """A results.json: what was measured (`groups`), on what, and how; the dictionaries are those of the file."""

    file: str
    model: dict[str, Any]
    dataset: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, Any]
    groups: list[MeasuredGroup]

    @property
    def kind(self) -> str:
        """`"images"` or `"videos"`."""
        return self.dataset.get("kind", "images")

    @property
    def metrics(self) -> dict[str, str]:
        """Names of the metrics, and how they are written."""
        return METRICS[self.kind]


def read_results(path: str | os.PathLike) -> MeasuredResults:
    """Read and check a results.json.

    Raises:
        CardError: if there is no such file, it has another schema, or a number in it cannot be.
    """
    content = _read_json(Path(path))
    if content.get("schema") != SCHEMA:
        raise CardError(f"{path}: `schema` is {content.get('schema')!r}, only {SCHEMA!r} can be read")
    sections = {
        name: _object(f"{path}: `{name}`", content.get(name))
        for name in ("model", "dataset", "settings", "environment")
    }
    _object(f"{path}: `environment.hardware`", sections["environment"].get("hardware") or {})
    for section, key in (("model", "path_or_id"), ("model", "class"), ("dataset", "name"), ("dataset", "split")):
        if not isinstance(sections[section].get(key), str):
            raise CardError(f"{path}: `{section}.{key}` must be a text, got {sections[section].get(key)!r}")
    kind = sections["dataset"].get("kind", "images")
    if kind not in METRICS:
        raise CardError(f"{path}: `dataset.kind` must be one of {', '.join(METRICS)}, got {kind!r}")
    for section, key in (("model", "num_visual_tokens"), ("dataset", f"num_{kind}"), ("dataset", "num_expressions")):
        _check_count(f"{path}: `{section}.{key}`", sections[section].get(key), optional=section == "model")
    groups = content.get("groups")
    if not isinstance(groups, list) or not groups:
        raise CardError(f"{path}: `groups` holds no results: let the evaluation finish first")
    if all(isinstance(group, dict) and group.get("metrics") == {} for group in groups):
        raise CardError(f"{path} holds no scores: the masks of {sections['dataset']['name']} are on a server")
    read = [_group(f"{path}: `groups[{index}]", group, METRICS[kind]) for index, group in enumerate(groups)]
    return MeasuredResults(file=os.fspath(path), groups=read, **sections)


def check_model(results: MeasuredResults, folder: Path, config: Any, num_tokens: int | None, any_name: bool) -> None:
    """Refuse results of another model than the checkpoint in `folder`: class, visual tokens and name must agree.

    Args:
        any_name: accept another name of folder or repository (a copy, a renamed upload).

    Raises:
        CardError: naming what differs.
    """
    own = {"class": (config.architectures or [None])[0], "num_visual_tokens": num_tokens}
    for key, value in own.items():
        measured = results.model.get(key)
        if None not in (value, measured) and value != measured:
            raise CardError(
                f"{results.file} is about another model: its `{key}` is {measured!r}, {folder} has {value!r}"
            )
    measured = results.model["path_or_id"]
    if Path(measured).name != folder.resolve().name and not any_name:
        raise CardError(f"{results.file} is about {measured!r}, not {folder}: --any-name if it is the same checkpoint")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CardError(f"{path}: no such file; `litelvlm evaluate` writes it") from error
    except OSError as error:
        raise CardError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CardError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path} holds a JSON {type(content).__name__} instead of an object")
    return content


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CardError(f"{where} must be an object, got {value!r}")
    return value


def _group(where: str, group: Any, names: Iterable[str]) -> MeasuredGroup:
    if not isinstance(_object(f"{where}`", group).get("method"), str):
        raise CardError(f"{where}.method` must be a text, got {group.get('method')!r}")
    metrics = _object(f"{where}.metrics`", group.get("metrics"))
    intervals = _object(f"{where}.intervals`", group.get("intervals"))
    retention = _object(f"{where}.retention`", group.get("retention") or {})
    options = _object(f"{where}.method_options`", group.get("method_options") or {})
    for key in ("budget", "num_seeds"):
        _check_count(f"{where}.{key}`", group.get(key), optional=True)
    if group.get("retention_ratio") is not None:
        _fraction(f"{where}.retention_ratio`", group["retention_ratio"])
    return MeasuredGroup(
        method=group["method"],
        method_options=options,
        budget=group.get("budget"),
        retention_ratio=group.get("retention_ratio"),
        token_order=group.get("token_order"),
        position_ids=group.get("position_ids"),
        num_seeds=group.get("num_seeds") or 1,
        metrics={name: _fraction(f"{where}.metrics.{name}`", metrics.get(name)) for name in names},
        intervals={name: _interval(f"{where}.intervals.{name}`", intervals.get(name)) for name in names},
        retention={
            # Pruning may also help, so more than 1 is possible.
            name: _fraction(f"{where}.retention.{name}`", retention[name], largest=math.inf)
            for name in names
            if retention.get(name) is not None
        },
    )


def _check_count(where: str, value: Any, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CardError(f"{where} must be a whole number of at least 1, got {value!r}")


def _fraction(where: str, value: Any, largest: float = 1.0) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= largest or math.isinf(value):
        raise CardError(f"{where} must be a number from 0 to 1 (a fraction, no percent), got {value!r}")
    return float(value)


def _interval(where: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise CardError(f"{where} must be [low, high], got {value!r}")
    low, high = (_fraction(where, end) for end in value)
    if low > high:
        raise CardError(f"{where} must be [low, high], got {value!r}")
    return low, high


def _count(pruning: PruningConfig, num_tokens: int | None) -> Any:
    if num_tokens is None:
        return (pruning.budget, pruning.retention_ratio) if pruning.is_on else None
    return pruning.resolve(num_tokens)
