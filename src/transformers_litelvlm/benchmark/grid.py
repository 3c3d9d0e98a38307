"""The whole benchmark: every method at every budget, batch size, number of sentences and dtype."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from transformers_litelvlm.benchmark.presets import get_preset
from transformers_litelvlm.benchmark.side_by_side import Effort, SideBySide
from transformers_litelvlm.benchmark.stages import StagedModel
from transformers_litelvlm.benchmark.subjects import Subject
from transformers_litelvlm.benchmark.timing import measured_on
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.runs import parse_method


FORMAT = 1


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Args:
        methods: pruning methods, `NAME` or `NAME:KEY=VALUE,...` as in an evaluation.
        budgets: visual tokens kept of each picture; default: a third, two ninths and a ninth, which are 192, 128 and
            64 of 576.
        batch_sizes: pictures in a call.
        sentences: sentences about each.
        dtypes: of the weights.
    """

    methods: Sequence[str] = ("litelvlm",)
    budgets: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (1,)
    sentences: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)

    def settings(self, num_tokens: int) -> list[tuple[str, PruningConfig]]:
        """Every method, by its text in `methods`, at every budget.

        Raises:
            ValueError: an unknown method or option, or a budget that leaves nothing to prune of `num_tokens`.
        """
        budgets = self.budgets or default_budgets(num_tokens)
        too_many = [budget for budget in budgets if budget >= num_tokens]
        if too_many:
            raise ValueError(
                f"`budgets` {too_many} leave nothing to prune: a picture has {num_tokens} visual tokens. Give less."
            )
        parsed = [(text, *parse_method(text)) for text in self.methods]
        return [
            (text, PruningConfig(method=method, method_options=options, budget=budget, **layout))
            for (text, method, options, layout), budget in itertools.product(parsed, budgets)
        ]


def run_benchmark(
    subject: str | Subject,
    grid: Grid | None = None,
    device: str = "cpu",
    effort: Effort | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Measure a model on a grid; the unpruned model is measured beside every point.

    Args:
        subject: the name of a preset, or a [`CheckpointSubject`].
        progress: told what happens next.

    Returns:
        What benchmark.json holds: the setting, the machine, one entry in `points` for every point, and in `skipped`
        the points that a method cannot do, with the reason.

    Raises:
        ValueError: an unknown preset or method, a budget that is no less than the number of visual tokens, a model
            that does not fit into memory.
    """
    subject = get_preset(subject) if isinstance(subject, str) else subject
    grid, effort = grid or Grid(), effort or Effort()
    empty = StagedModel(subject.meta_model())
    num_tokens = empty.num_visual_tokens(subject.workload(empty.model.config, 1, 1).inputs)
    settings = grid.settings(num_tokens)
    points: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for dtype in grid.dtypes:
        progress(f"building {subject.name} in {dtype}")
        staged = StagedModel(subject.build(getattr(torch, dtype), torch.device(device)))
        for batch_size, sentences in itertools.product(grid.batch_sizes, grid.sentences):
            workload = subject.workload(staged.model.config, batch_size, sentences)
            side_by_side = SideBySide(staged, workload.to(staged.model.device, staged.model.dtype), effort, progress)
            for method, pruning in settings:
                point = {"method": method, "budget": pruning.budget, "num_visual_tokens": num_tokens}
                point |= {"batch_size": batch_size, "sentences": sentences, "dtype": dtype}
                try:
                    points.append({**point, **side_by_side.measure(pruning, describe(point))})
                except FloatingPointError:  # no time of such a model means anything
                    raise
                except (ValueError, NotImplementedError) as error:
                    skipped.append({**point, "reason": str(error)})
        del staged, side_by_side  # before the next one is built
    return {
        "format": FORMAT,
        "benchmark": "pruned against unpruned",
        "model": subject.name,
        "description": subject.summary,
        "parameters": sum(parameter.numel() for parameter in empty.model.parameters()),
        "has_masks": empty.has_masks,
        "effort": asdict(effort),
        **measured_on(device),
        "points": points,
        "skipped": skipped,
    }


def describe(point: dict[str, Any]) -> str:
    """A point in words."""
    return (
        f"{point['method']}, {point['budget']} of {point['num_visual_tokens']} tokens, batch {point['batch_size']},"
        f" {point['sentences']} sentence{'s' * (point['sentences'] > 1)}, {point['dtype']}"
    )


def default_budgets(num_tokens: int) -> list[int]:
    """A third, two ninths and a ninth: the paper's 192, 128 and 64 of 576."""
    return [max(1, round(num_tokens * ninths / 9)) for ninths in (3, 2, 1)]
