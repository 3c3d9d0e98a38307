"""Reading a results.json of the evaluation runner, and checking it before any of it is published."""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_litelvlm.configuration_pruning import PruningConfig


SCHEMA = "litelvlm-results/1"
# What goes into cards.
PUBLISHED = ("model", "dataset", "settings", "environment", "groups")
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
    num_kept_mean: float | None = None

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


def kept_tokens(setting: MeasuredGroup | PruningConfig, num_tokens: int | None) -> str:
    """`48 of 144`, `all 144`, `0.25 of all`."""
    if setting.method == "none" or (setting.budget is None and setting.retention_ratio is None):
        return f"all {num_tokens}" if num_tokens else "all"
    if num_tokens is None:
        ratio = setting.retention_ratio
        return f"{setting.budget} per image" if ratio is None else f"{ratio:.3g} of all"
    kept = PruningConfig(budget=setting.budget, retention_ratio=setting.retention_ratio).resolve(num_tokens)
    return f"{kept or num_tokens} of {num_tokens}"


def read_results(path: str | os.PathLike) -> MeasuredResults:
    """Read and check a results.json. Raises CardError if there is no such file, it has another schema, or a number in
    it cannot be."""
    content = _read_json(Path(path))
    if content.get("schema") != SCHEMA:
        raise CardError(f"{path}: `schema` is {content.get('schema')!r}, only {SCHEMA!r} can be read")
    whole = _Checked(path, content)
    _check_texts(path, {name: value for name, value in content.items() if name in PUBLISHED})
    model, dataset, settings, environment = map(whole.child, ("model", "dataset", "settings", "environment"))
    environment.child("hardware", optional=True)
    for section, key in ((model, "path_or_id"), (model, "class"), (dataset, "name"), (dataset, "split")):
        section.take(key, TEXT)
    for section, key in ((model, "dtype"), (dataset, "protocol"), (dataset, "source")):
        section.take(key, TEXT, optional=True)
    for key in ("date", "git_commit", "command"):
        environment.take(key, TEXT, optional=True)
    kind = dataset.content.get("kind", "images")
    if not isinstance(kind, str) or kind not in METRICS:
        raise CardError(f"{path}: `dataset.kind` must be one of {', '.join(METRICS)}, got {kind!r}")
    model.take("num_visual_tokens", COUNT, optional=True)
    dataset.take(f"num_{kind}", COUNT)
    dataset.take("num_expressions", COUNT)
    groups = content.get("groups")
    if not isinstance(groups, list) or not groups:
        raise CardError(f"{path}: `groups` holds no results: let the evaluation finish first")
    if all(isinstance(group, dict) and group.get("metrics") == {} for group in groups):
        raise CardError(f"{path} holds no scores: the masks of {dataset.content['name']} are on a server")
    numbered = _Checked(path, {f"groups[{number}]": group for number, group in enumerate(groups)})
    read = [_group(numbered.child(name), METRICS[kind]) for name in numbered.content]
    return MeasuredResults(
        os.fspath(path), model.content, dataset.content, settings.content, environment.content, read
    )


def check_model(results: MeasuredResults, folder: Path, config: Any, num_tokens: int | None, any_name: bool) -> None:
    """Refuse results of another model than the checkpoint in `folder`: class, visual tokens and name must agree.

    With `any_name`, another name of folder or repository is accepted (a copy, a renamed upload).

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
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path} holds a JSON {type(content).__name__} instead of an object")
    return content


def _check_texts(path: str | os.PathLike, value: Any, name: str = "") -> None:
    """Refuse what would end the line or the region of a card that it is written into, and NaN."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_texts(path, key, f"a key of {name}")
            _check_texts(path, item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, str) and ("<!--" in value or "-->" in value or any(map(_is_control, value))):
        raise CardError(f"{path}: `{name:.80}` must be a text in one line without `<!--` and `-->`, got {value!r:.80}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise CardError(f"{path}: `{name:.80}` must be a finite number, got {value}")


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")  # line breaks, and what UTF-8 does not have


# What a value must be, in the words of an error.
OBJECT, TEXT, COUNT = "an object", "a text", "a whole number of at least 1"
FRACTION, NOT_NEGATIVE = "a number from 0 to 1 (a fraction, no percent)", "a number of at least 0"
INTERVAL = "[low, high]"


class _Checked:
    """An object in a file, whose values are checked when they are taken; `name` is what stands before theirs."""

    def __init__(self, path: str | os.PathLike, content: dict[str, Any], name: str = "") -> None:
        self.path, self.content, self.name = path, content, name

    def take(self, key: str, kind: str, optional: bool = False) -> Any:
        value = self.content.get(key)
        if not (_is(value, kind) or (optional and value is None)):
            raise CardError(f"{self.path}: `{self.name}{key}` must be {kind}, got {value!r:.80}")
        return value

    def child(self, key: str, optional: bool = False) -> _Checked:
        return _Checked(self.path, self.take(key, OBJECT, optional) or {}, f"{self.name}{key}.")


def _is(value: Any, kind: str) -> bool:
    if kind == INTERVAL:
        is_pair = isinstance(value, list) and len(value) == 2 and all(_is(end, FRACTION) for end in value)
        return is_pair and value[0] <= value[1]
    if kind in (OBJECT, TEXT):
        return isinstance(value, dict if kind == OBJECT else str)
    if kind == COUNT:
        return type(value) is int and value >= 1
    return type(value) in (int, float) and 0 <= value <= (1 if kind == FRACTION else sys.float_info.max)


def _group(group: _Checked, metrics: Iterable[str]) -> MeasuredGroup:
    measured, intervals = group.child("metrics"), group.child("intervals")
    retention = group.child("retention", optional=True)
    # Pruning may also help, so more than 1 is possible.
    retained = {metric: retention.take(metric, NOT_NEGATIVE, optional=True) for metric in metrics}
    budget, ratio = group.take("budget", COUNT, optional=True), group.take("retention_ratio", FRACTION, optional=True)
    try:
        PruningConfig(budget=budget, retention_ratio=ratio)
    except ValueError as error:  # both, or a ratio of 0
        raise CardError(f"{group.path}: `{group.name.rstrip('.')}`: {error}") from error
    return MeasuredGroup(
        method=group.take("method", TEXT),
        method_options=group.child("method_options", optional=True).content,
        budget=budget,
        retention_ratio=ratio,
        token_order=group.take("token_order", TEXT, optional=True),
        position_ids=group.take("position_ids", TEXT, optional=True),
        num_seeds=group.take("num_seeds", COUNT, optional=True) or 1,
        metrics={metric: float(measured.take(metric, FRACTION)) for metric in metrics},
        intervals={metric: tuple(intervals.take(metric, INTERVAL)) for metric in metrics},
        retention={metric: float(value) for metric, value in retained.items() if value is not None},
        num_kept_mean=group.take("num_kept_mean", NOT_NEGATIVE, optional=True),
    )


def _count(pruning: PruningConfig, num_tokens: int | None) -> Any:
    if num_tokens is None:
        return (pruning.budget, pruning.retention_ratio) if pruning.is_on else None
    return pruning.resolve(num_tokens)
