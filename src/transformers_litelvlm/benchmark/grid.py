"""The whole benchmark: every method at every budget, batch size, number of sentences and dtype."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from transformers_litelvlm.benchmark.presets import get_preset
from transformers_litelvlm.benchmark.progress import Progress
from transformers_litelvlm.benchmark.roofline import Card
from transformers_litelvlm.benchmark.side_by_side import Effort, SideBySide
from transformers_litelvlm.benchmark.stages import StagedModel
from transformers_litelvlm.benchmark.subjects import Subject
from transformers_litelvlm.benchmark.timing import load_at_the_end, measured_on
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.provenance import third_party_methods
from transformers_litelvlm.evaluation.runs import parse_method
from transformers_litelvlm.models.quantization import quantization_config, quantize, weight_bytes
from transformers_litelvlm.pruning.registry import explain, provider_at_fault


FORMAT = 1
# Of a point that a method, or the device, cannot do.
CANNOT = (ValueError, NotImplementedError, FloatingPointError, torch.OutOfMemoryError)


class BenchmarkStopped(KeyboardInterrupt):
    """Ctrl-C. Its argument is what [`run_benchmark`] would return, with the points that were measured by then."""


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
        quantizations: of the language model's weights, see [`quantization_config`]. Unless it is `"none"` alone, every
            point says which it is of, and what the weights take.
    """

    methods: Sequence[str] = ("litelvlm",)
    budgets: Sequence[int] | None = None
    batch_sizes: Sequence[int] = (1,)
    sentences: Sequence[int] = (1,)
    dtypes: Sequence[str] = ("float32",)
    quantizations: Sequence[str] = ("none",)

    def settings(self, num_tokens: int) -> list[tuple[str, PruningConfig]]:
        """Every method, by its text in `methods`, at every budget. Raises ValueError for an unknown method or option,
        or a budget that leaves nothing to prune of `num_tokens`."""
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
    progress: Progress | None = None,
    card: Card | None = None,
) -> dict[str, Any]:
    """Measure a model on a grid; the unpruned model is measured beside every point.

    Args:
        subject: the name of a preset, or a [`CheckpointSubject`].
        progress: told how much there is to do, once the first runs have shown how long one takes, what happens next,
            and what is done.
        card: what the device reaches, for the second bound of docs/performance.md; default: that is left out, as it is
            of quantized weights.

    Returns:
        What benchmark.json holds: the setting, the machine, one entry in `points` for every point, and in `skipped`
        the points that a method, the device or the dtype cannot do, with the reason.

    Raises:
        ValueError: an unknown preset or method, a budget that is no less than the number of visual tokens, a model
            that does not fit into memory, a quantization that the device does not have.
        ImportError: the library of a quantization is not installed.
        BenchmarkStopped: Ctrl-C.
    """
    subject = get_preset(subject) if isinstance(subject, str) else subject
    grid, effort = grid or Grid(), effort or Effort()
    for dtype, quantization in itertools.product(grid.dtypes, grid.quantizations):
        quantization_config(quantization, torch.device(device), getattr(torch, dtype))
    empty = StagedModel(subject.meta_model())
    num_tokens = empty.num_visual_tokens(subject.workload(empty.model.config, 1, 1).inputs)
    measuring = _Measuring(
        subject,
        grid,
        grid.settings(num_tokens),
        num_tokens,
        torch.device(device),
        effort,
        progress or Progress(),
        card,
    )
    result = {
        "format": FORMAT,
        "benchmark": "pruned against unpruned",
        "model": subject.name,
        "description": subject.summary,
        "parameters": sum(parameter.numel() for parameter in empty.model.parameters()),
        "has_masks": empty.has_masks,
        "effort": asdict(effort),
        **measured_on(device),
        "third_party_methods": third_party_methods(parse_method(text)[0] for text in grid.methods),
        "is_complete": False,
        "points": measuring.points,
        "skipped": measuring.skipped,
    }
    try:
        for dtype, quantization in itertools.product(grid.dtypes, grid.quantizations):
            measuring.measure(dtype, quantization)
    except KeyboardInterrupt as stopped:
        raise BenchmarkStopped(result | load_at_the_end()) from stopped
    return {**result, **load_at_the_end(), "is_complete": True}


@dataclass
class _Measuring:
    """The points of a grid, model after model."""

    subject: Subject
    grid: Grid
    settings: list[tuple[str, PruningConfig]]
    num_tokens: int
    device: torch.device
    effort: Effort
    progress: Progress
    card: Card | None = None
    points: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    operations: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    runs_done: int = 0

    def measure(self, dtype: str, quantization: str) -> None:
        """Every point of one model."""
        self.progress.says(f"building {self.subject.name} in {dtype}")
        start = time.monotonic()
        model = self.subject.build(getattr(torch, dtype), self.device)
        build_seconds = time.monotonic() - start
        if quantization != "none":
            self._count(StagedModel(model), dtype)
            self.progress.says(f"quantizing {self.subject.name} to {quantization}")
            model = quantize(model, quantization)
        staged = StagedModel(model)
        more = {} if tuple(self.grid.quantizations) == ("none",) else {"quantization": quantization}
        weights = {"weight_bytes": weight_bytes(model)} if more else {}
        # A roofline counts the bytes of weights, which are not known of quantized ones.
        card = self.card if quantization == "none" else None
        for batch_size, sentences, side_by_side in self._workloads(staged, dtype, card):
            with _impossible([]):
                self._expect(side_by_side, batch_size, build_seconds)
            for number, (method, pruning) in enumerate(self.settings):
                point = {"method": method, "budget": pruning.budget, "num_visual_tokens": self.num_tokens}
                point |= {"batch_size": batch_size, "sentences": sentences, "dtype": dtype, **more}
                with _impossible(self.skipped, **point):
                    self.points.append({**point, **weights, **side_by_side.measure(pruning, describe(point))})
                    self.progress.measured(self.points[-1])
                self.runs_done += self.effort.runs_of_model(sentences, number == 0)
                self.progress.reached(self.runs_done)

    def _expect(self, side_by_side: SideBySide, batch_size: int, build_seconds: float) -> None:
        """Say at the beginning how long the rest takes, from the first runs; a large batch takes longer."""
        if self.runs_done:
            return
        took, of_tokens = self._first_runs(side_by_side)
        seconds_of_one = sum(took) / len(took)
        of_tokens *= self.effort.long_runs * len(self.settings)  # at one workload
        models = len(self.grid.dtypes) * len(self.grid.quantizations)
        runs, seconds = 0, build_seconds * (models - 1) - sum(took)
        for other_size, sentences in itertools.product(self.grid.batch_sizes, self.grid.sentences):
            of_settings = [self.effort.runs_of_model(sentences, number == 0) for number in range(len(self.settings))]
            runs += models * sum(of_settings)
            seconds += models * (seconds_of_one * sum(of_settings) + of_tokens) * other_size / batch_size
        self.progress.expects(runs, seconds_of_one, seconds)

    def _first_runs(self, side_by_side: SideBySide) -> tuple[list[float], float]:
        """Seconds of an unpruned run and one of the first setting, and of the new tokens of one."""
        pruning = self.settings[0][1]
        took = [side_by_side.seconds_of_run(None)]
        with _impossible([]):
            return [*took, side_by_side.seconds_of_run(pruning)], side_by_side.seconds_of_decoding(pruning)
        return took, side_by_side.seconds_of_decoding(None)

    def _count(self, staged: StagedModel, dtype: str) -> None:
        """Operations of the model that is about to be quantized."""
        for *_, side_by_side in self._workloads(staged, dtype):
            side_by_side.progress = Progress()  # these runs are not among those that are expected
            for pruning in (None, *(setting for _, setting in self.settings)):
                with _impossible([]):
                    side_by_side.count(pruning)

    def _workloads(
        self, staged: StagedModel, dtype: str, card: Card | None = None
    ) -> Iterator[tuple[int, int, SideBySide]]:
        """Batch size, number of sentences, and what measures them."""
        for batch_size, sentences in itertools.product(self.grid.batch_sizes, self.grid.sentences):
            workload = self.subject.workload(staged.model.config, batch_size, sentences)
            workload = workload.to(staged.model.device, staged.model.dtype)
            operations = self.operations.setdefault((dtype, batch_size, sentences), {})
            side_by_side = SideBySide(staged, workload, self.effort, self.progress, operations, card)
            yield batch_size, sentences, side_by_side


@contextmanager
def _impossible(skipped: list[dict[str, Any]], **point: Any) -> Iterator[None]:
    """Go on after what a method, the device, or code that is not bundled cannot do; said when a point is measured."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, CANNOT) and provider_at_fault(error) is None:
            raise
        skipped.append({**point, "reason": explain(error)})


def kept(point: dict[str, Any]) -> str:
    """What a point kept, where that is not its budget: the picture may decide it."""
    mean = point.get("num_kept_mean", point["budget"])
    return "" if mean == point["budget"] else f", kept {mean:.4g}"


def describe(point: dict[str, Any]) -> str:
    """A point in words."""
    quantization = point.get("quantization", "none")
    return (
        f"{point['method']}, {point['budget']} of {point['num_visual_tokens']} tokens{kept(point)},"
        f" batch {point['batch_size']},"
        f" {point['sentences']} sentence{'s' * (point['sentences'] > 1)}, {point['dtype']}"
        + ("" if quantization == "none" else f", {quantization}")
    )


def describe_times(point: dict[str, Any]) -> str:
    """A point in words, and what was measured end to end."""
    times = point["end_to_end"]
    before, after = (times[side]["median_ms"] for side in ("unpruned", "pruned"))
    return f"{describe(point)}: {before:.1f} -> {after:.1f} ms, {times['speedup']:.2f}x"


def apart(point: dict[str, Any]) -> tuple:
    """What has an unpruned model of its own, for each quantization."""
    return point["batch_size"], point["sentences"], point["dtype"]


def sides(points: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each point as `("pruned", point)`, after `("unpruned", point)` of the first that has its unpruned model."""
    seen = set()
    for point in points:
        unpruned = (*apart(point), point.get("quantization", "none"))
        if unpruned not in seen:
            seen.add(unpruned)
            yield "unpruned", point
        yield "pruned", point


def default_budgets(num_tokens: int, ninths: Sequence[int] = (3, 2, 1)) -> list[int]:
    """Ninths of the tokens, by default the paper's 192, 128 and 64 of 576."""
    return [max(1, round(num_tokens * number / 9)) for number in ninths]
