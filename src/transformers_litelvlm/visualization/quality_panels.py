"""What a plot of quality against the number of visual tokens shows, from results of evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers_litelvlm.hub.results import MeasuredGroup, MeasuredResults
from transformers_litelvlm.pruning import LayerPruner, get_pruner, list_pruners
from transformers_litelvlm.pruning.selection import resolve_budget


Value = tuple[float, float, float]  # with the low and the high end of its interval


@dataclass
class Line:
    """A method with its options: (size, value, low, high) of each budget, by size."""

    name: str
    method: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass
class Panel:
    """What was measured of one model on the same data, in one metric."""

    title: str
    metric: str
    size_name: str  # what the axis counts
    lines: list[Line]
    unpruned: Value | None


def is_inside(method: str) -> bool:
    """Whether a method works inside the language model, as far as it is known here."""
    return method in list_pruners() and issubclass(get_pruner(method), LayerPruner)


def panels_of(measured: Sequence[MeasuredResults], metric: str | None = None) -> list[Panel]:
    """Results about the same model and data together; arguments and errors as [`plot_quality`]."""
    together: dict[tuple, list[MeasuredResults]] = {}
    for results in measured:
        if metric is not None and metric not in results.metrics:
            raise ValueError(f"{results.file}: `metric` must be one of {', '.join(results.metrics)}, got {metric!r}.")
        keys = ("name", "split", "protocol", f"num_{results.kind}", "num_expressions")
        about = (results.model["path_or_id"], results.kind, *(results.dataset.get(key) for key in keys))
        together.setdefault(about, []).append(results)
    return [_panel(of_same, metric or next(iter(of_same[0].metrics))) for of_same in together.values()]


def _panel(measured: Sequence[MeasuredResults], metric: str) -> Panel:
    first = measured[0]
    num_tokens = first.model.get("num_visual_tokens")
    found: dict[tuple[str, str], dict[float, Value]] = {}
    unpruned: dict[float, Value] = {}
    for results, group in _groups(measured):
        size = _size(group, num_tokens)
        if size is not None and group.num_kept_mean and num_tokens and not is_inside(group.method):
            size = group.num_kept_mean  # of some methods the image decides it, whatever the budget
        name = "none" if size is None else _name(group, measured)
        of_name = unpruned if size is None else found.setdefault((name, group.method), {})
        value = group.metrics[metric], *group.intervals[metric]
        if of_name.setdefault(size or 0, value) != value:
            raise ValueError(
                f"{results.file} has another {first.metrics[metric]} of {name!r:.80} at the same budget than a file"
                " before it: plot them apart."
            )
    if not found:
        raise ValueError(
            f"{first.file} has no pruned runs: measure some, `litelvlm evaluate --methods none litelvlm random`."
        )
    counts = {group.budget is not None for _, group in _groups(measured) if _size(group, num_tokens) is not None}
    if num_tokens is None and len(counts) > 1:
        raise ValueError(
            f"{first.file} has budgets and fractions, and the number of visual tokens differs from {first.kind[:-1]}"
            f" to {first.kind[:-1]}: plot runs with one of them."
        )
    size_name = f"visual tokens kept of each {first.kind[:-1]}" + (f", of {num_tokens}" if num_tokens else "")
    if num_tokens is None and counts == {False}:
        size_name = "fraction of visual tokens kept"
    lines = [
        Line(name, method, [(size, *value) for size, value in sorted(sizes.items())])
        for (name, method), sizes in found.items()
    ]
    return Panel(_title(first), first.metrics[metric], size_name, lines, unpruned.get(0))


def _title(results: MeasuredResults) -> str:
    dataset, kind = results.dataset, results.kind
    name = str(results.model["path_or_id"]).rstrip("/")
    name = "the bundled checkpoint" if name in ("bundled", "embedded") else name[-40:]  # of 0.1.0
    counted = f"{dataset[f'num_{kind}']} {kind}, {dataset['num_expressions']} expressions"
    return f"{name} on {dataset['name']} {dataset['split']}: {counted}"


def _groups(measured: Sequence[MeasuredResults]) -> Iterator[tuple[MeasuredResults, MeasuredGroup]]:
    return ((results, group) for results in measured for group in results.groups)


def _size(group: MeasuredGroup, num_tokens: int | None) -> float | None:
    """How many tokens are kept; where that differs from image to image, the fraction; `None` for all."""
    if group.method == "none" or (group.budget is None and group.retention_ratio is None):
        return None
    if num_tokens is not None:
        return resolve_budget(num_tokens, group.budget, group.retention_ratio)
    return group.retention_ratio if group.budget is None else group.budget


def _name(group: MeasuredGroup, measured: Sequence[MeasuredResults]) -> str:
    """Method and options as they are written on the command line; the layout where it tells lines apart."""
    options = {name: value for name, value in group.method_options.items() if value is not None}
    layouts = {
        (other.token_order, other.position_ids)
        for _, other in _groups(measured)
        if (other.method, other.method_options) == (group.method, group.method_options)
    }
    listed = ",".join(
        f"{name}={json.dumps(value, separators=(',', ':')) if not isinstance(value, str) else value}"
        for name, value in options.items()
    )
    name = f"{group.method}:{listed}" if listed else group.method
    return f"{name} ({group.token_order}, {group.position_ids})" if len(layouts) > 1 else name
