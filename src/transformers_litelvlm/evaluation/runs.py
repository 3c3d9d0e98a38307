"""A sweep as a list of runs: methods, budgets and seeds."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.pruning.registry import build_pruner, get_pruner


LAYOUT = ("token_order", "position_ids")


@dataclass(frozen=True)
class Run:
    """One setting of a sweep.

    Args:
        name: as in the option `methods`.
        method: registered name.
        options: options of the method, without the seed of this run.
        layout: `token_order` and `position_ids`, if they are not the checkpoint's.
        budget: tokens kept.
        retention_ratio: or the fraction of them. Neither: the unpruned model.
        seed: if anything is random.
        has_seed: the seed is an option of the method.
    """

    name: str
    method: str
    options: dict[str, Any]
    layout: dict[str, str]
    budget: int | None = None
    retention_ratio: float | None = None
    seed: int | None = None
    has_seed: bool = False

    @property
    def is_pruned(self) -> bool:
        return self.budget is not None or self.retention_ratio is not None

    @property
    def size(self) -> int | float | None:
        """Budget or ratio, whichever is set."""
        return self.retention_ratio if self.budget is None else self.budget

    @property
    def run_id(self) -> str:
        """Unique in a sweep: `litelvlm@48`, `random@0.25#2`, `none`."""
        return (
            self.name + ("" if self.size is None else f"@{self.size}") + ("" if self.seed is None else f"#{self.seed}")
        )

    def pruning(self, base: PruningConfig) -> PruningConfig:
        """The setting of the model for this run; what the run does not say is the checkpoint's (`base`). Raises
        ValueError for an option, or a value, that does not exist for the method."""
        if not self.is_pruned:
            return base.replace(budget=None, retention_ratio=None)
        options = {**self.options, "seed": self.seed} if self.has_seed else self.options
        return base.replace(
            method=self.method,
            method_options=options,
            then=None,
            budget=self.budget,
            retention_ratio=self.retention_ratio,
            **self.layout,
        )


def sized(size: int | float | None) -> dict[str, Any]:
    """`budget` and `retention_ratio` that a size means: a number of visual tokens, the fraction of them, or all."""
    is_count = isinstance(size, int)
    return {"budget": size if is_count else None, "retention_ratio": None if is_count else size}


def plan_runs(args: EvaluationArguments) -> list[Run]:
    """All runs of a sweep, in the order of its methods, budgets and seeds.

    A method without anything random is run once: repeating it would only weigh it more.

    Raises:
        ValueError: unknown method or option, or a method without budgets.
    """
    runs = []
    for name in args.methods:
        method, options, layout = parse_method(name)
        build_pruner(method, **options)
        has_seed = "seed" in get_pruner(method).option_names() and "seed" not in options
        seeds = args.seeds if has_seed or args.protocol == "glamm" else [None]
        unpruned = Run(name, method, options, layout, has_seed=has_seed)
        if method != "none" and not args.budgets:
            raise ValueError(f"`budgets` is empty, so there is nothing to run for the method {name!r}.")
        for size in [None] if method == "none" else args.budgets:
            runs += [dataclasses.replace(unpruned, **sized(size), seed=seed) for seed in seeds]
    return runs


def parse_method(text: str) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Name, options and layout of `NAME:KEY=VALUE,...`; a value that is no JSON is text. Raises ValueError if a part
    has no `=`."""
    method, _, rest = text.partition(":")
    values = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", rest)):  # the commas of a list are its own
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"`methods` must be NAME or NAME:KEY=VALUE,... , got {text!r}.")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    layout = {key: values.pop(key) for key in LAYOUT if key in values}
    return method, values, layout
