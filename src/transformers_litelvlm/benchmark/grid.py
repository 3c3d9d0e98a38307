"""The whole benchmark: every method at every budget, batch size, number of sentences and dtype."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from transformers_litelvlm.benchmark.building import random_model
from transformers_litelvlm.benchmark.inputs import random_workload
from transformers_litelvlm.benchmark.presets import Preset, get_preset
from transformers_litelvlm.benchmark.side_by_side import Effort, SideBySide
from transformers_litelvlm.benchmark.stages import stage_model
from transformers_litelvlm.benchmark.timing import measured_on
from transformers_litelvlm.configuration_pruning import PruningConfig


FORMAT = 1


@dataclass(frozen=True)
class Grid:
    """
    What is measured.

    Args:
        methods (`Sequence[str]`): Pruning methods, with their default options.
        budgets (`Sequence[int]`, *optional*): Visual tokens kept of each picture; default: a third, two ninths and a
            ninth, which are 192, 128 and 64 of 576.
        batch_sizes (`Sequence[int]`): Pictures in a call.
        sentences (`Sequence[int]`): Sentences about each.
        dtypes (`Sequence[str]`): Of the weights.
    """

    methods: Sequence[str] = ("litelvlm",)
    budgets: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (1,)
    sentences: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)


def run_benchmark(
    preset: str | Preset,
    grid: Grid | None = None,
    device: str = "cpu",
    effort: Effort | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """
    Measures a preset on a grid; the unpruned model is measured beside every point.

    Args:
        preset: Its name, or one of your own.
        progress: Told what happens next.

    Returns:
        What benchmark.json holds: the setting, the machine, one entry in `points` for every point, and in `skipped`
        the points that a method cannot do, with the reason.

    Raises:
        ValueError: An unknown preset or method, a budget that is no less than the number of visual tokens, a model
            that does not fit into memory.
    """
    name = preset if isinstance(preset, str) else preset.description
    preset = get_preset(preset) if isinstance(preset, str) else preset
    grid, effort, points, skipped = grid or Grid(), effort or Effort(), [], []
    for method in grid.methods:
        PruningConfig(method=method)  # raises for an unknown one
    facts: dict[str, Any] = {}
    for dtype in grid.dtypes:
        progress(f"building {name} in {dtype}")
        model = random_model(preset, getattr(torch, dtype), torch.device(device))
        staged = stage_model(model)
        for batch_size, sentences in itertools.product(grid.batch_sizes, grid.sentences):
            workload = random_workload(preset, model.config, batch_size, sentences).to(model.device, model.dtype)
            num_tokens = staged.num_visual_tokens(workload.inputs)
            side_by_side = SideBySide(staged, workload, effort)
            for method, budget in itertools.product(grid.methods, grid.budgets or default_budgets(num_tokens)):
                if budget >= num_tokens:
                    raise ValueError(f"A budget of {budget} leaves nothing to prune of {num_tokens} visual tokens.")
                point = {"method": method, "budget": budget, "num_visual_tokens": num_tokens}
                point |= {"batch_size": batch_size, "sentences": sentences, "dtype": dtype}
                where = f"{method} at {budget} of {num_tokens}, batch {batch_size}, {sentences} sentence(s), {dtype}"
                side_by_side.progress = lambda message, where=where: progress(f"{where}: {message}")
                try:
                    points.append({**point, **side_by_side.measure(PruningConfig(method=method, budget=budget))})
                except (ValueError, NotImplementedError) as error:
                    skipped.append({**point, "reason": str(error)})
        facts = {"parameters": sum(p.numel() for p in model.parameters()), "has_masks": staged.has_masks}
        del model, staged, side_by_side
    return {
        "format": FORMAT,
        "benchmark": "pruned against unpruned",
        "preset": name,
        "description": preset.description,
        **facts,
        "effort": asdict(effort),
        **measured_on(device),
        "points": points,
        "skipped": skipped,
    }


def default_budgets(num_tokens: int) -> list[int]:
    """A third, two ninths and a ninth: the paper's 192, 128 and 64 of 576."""
    return [max(1, round(num_tokens * ninths / 9)) for ninths in (3, 2, 1)]
