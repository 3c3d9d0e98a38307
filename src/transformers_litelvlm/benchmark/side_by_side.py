"""Pruned against unpruned: alternating runs with the same weights and inputs, in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.benchmark.flops import FlopMeter, count_flops
from transformers_litelvlm.benchmark.inputs import Workload
from transformers_litelvlm.benchmark.memory import activation_bytes, cache_bytes
from transformers_litelvlm.benchmark.progress import Progress
from transformers_litelvlm.benchmark.roofline import Card, RooflineMeter
from transformers_litelvlm.benchmark.stages import SELECTOR, STAGES, StagedModel
from transformers_litelvlm.benchmark.subjects import stock_of
from transformers_litelvlm.benchmark.timing import PairedTimes, stopwatch_of, time_once, time_pairs
from transformers_litelvlm.configuration_pruning import PruningConfig


PARTS = ("stages", "decode", "memory")


@dataclass(frozen=True)
class Effort:
    """
    How much is measured.

    Args:
        runs (`int`): Timed runs of each side.
        warmup (`int`): Untimed runs of each before. The first one of a setting counts its operations; with 0 it is
            made all the same.
        new_tokens (`int`): Tokens that are generated to time one.
        parts (`Sequence[str]`): What is measured beside times and operations end to end: [`PARTS`], stock, switches.
    """

    runs: int = 5
    warmup: int = 1
    new_tokens: int = 8
    parts: Sequence[str] = PARTS

    @property
    def long_runs(self) -> int:
        """Those of [`runs_of_model`] that generate `new_tokens`."""
        return 2 * (self.warmup + self.runs) if "decode" in self.parts else 0

    @property
    def more_warmup(self) -> int:
        """Untimed runs after the one that counts operations."""
        return max(0, self.warmup - 1)

    def runs_of_model(self, sentences: int, is_first: bool) -> int:
        """Calls of the model at one setting, about. The first of the settings with these inputs has more: what is
        measured once of the unpruned model."""
        pairs, once = self.warmup + self.runs, 1 + is_first
        of_parts = {
            "stages": 2 * (self.more_warmup + self.runs) + once,
            "decode": 2 * (pairs + self.runs),
            "memory": 3 * once + 3 * is_first,
            "stock": 2 * pairs,
            "switches": 8 * pairs,
        }
        one_by_one = (sentences + 1) * pairs if sentences > 1 else 0
        return once + 2 * (self.more_warmup + self.runs) + one_by_one + sum(of_parts[part] for part in self.parts)


@dataclass
class SideBySide:
    """
    Measurements of one model on one workload, at any number of settings.

    Args:
        staged (`StagedModel`): The model.
        workload (`Workload`): Its inputs, on its device.
        effort (`Effort`): How much is measured.
        progress (`Progress`): Told what happens next, and what is done.
        operations (`dict`): What was counted, by setting; a setting that is there keeps its first count.
        card (`Card`, *optional*): What the device reaches, for the second bound.
    """

    staged: StagedModel
    workload: Workload
    effort: Effort = field(default_factory=Effort)
    progress: Progress = field(default_factory=Progress)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    card: Card | None = None
    _known: dict[tuple[str, ...], Any] = field(default_factory=dict, init=False)

    def measure(self, pruning: PruningConfig, name: str = "") -> dict[str, Any]:
        """Everything about one setting; see docs/performance.md for what each entry means.

        Args:
            name (`str`): What `progress` is told that is measured.

        Raises:
            ValueError: The method cannot reach the budget, or is not defined for the model.
            FloatingPointError: The model computes something that is not finite.
        """
        self.progress.says(f"{name}: floating-point operations")
        result: dict[str, Any] = {"flops": self._flops(pruning)}
        result["num_kept_mean"] = self.operations[_key(pruning)].get("num_kept_mean", pruning.budget)
        self.progress.says(f"{name}: end to end")
        sides = partial(self._end_to_end, None), partial(self._end_to_end, pruning)
        times = self._time(*sides, warmup=self.effort.more_warmup)
        result["end_to_end"] = compared(times)
        result["flops"]["share_of_bound"] = times.ratio / result["flops"]["bound"]
        if self.card is not None:
            result["roofline"] = self._roofline(pruning, times.ratio, result["flops"]["bound"])
        if self.workload.one_by_one:
            self.progress.says(f"{name}: against one sentence at a time")
            times = self._time(self._one_by_one, partial(self._end_to_end, pruning), len(self.workload.one_by_one))
            result["against_one_by_one"] = compared(times)
        for part in self.effort.parts:
            self.progress.says(f"{name}: {part}")
            try:
                result.update(getattr(self, f"_{part}")(pruning, result))
            except RuntimeError as error:  # some parts take more memory than a call, or a compiler
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                result.setdefault("left_out", {})[part] = reason
        return result

    def seconds_of_run(self, pruning: PruningConfig | None) -> float:
        """Of the run that counts operations, unless it is so short that counting takes part of it."""
        first = time_once(lambda: self._once(self._count, pruning))
        return first if first > 1 else time_once(partial(self._end_to_end, pruning))

    def seconds_of_decoding(self, pruning: PruningConfig | None) -> float:
        """Of the new tokens of one run; 0 if none are timed."""
        if "decode" not in self.effort.parts:
            return 0.0
        self.staged.prune(pruning)
        features = self.staged.encode(self.workload.inputs)
        one, many = (
            time_once(partial(self._generate, pruning, features, count)) for count in (1, 1 + self.effort.new_tokens)
        )
        return max(0.0, many - one)

    def count(self, pruning: PruningConfig | None) -> None:
        """
        Put into `operations` what [`measure`] counts. Raises as it does.

        For the model before quantization: that changes no operation, but the counter of torch does not see products
        in the kernels of other libraries.
        """
        if _key(pruning) not in self.operations:
            self._count(pruning)
            if "stages" in self.effort.parts:
                self._count_stages(pruning)

    def _end_to_end(self, pruning: PruningConfig | None, inputs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        self.staged.prune(pruning)
        return self.staged.end_to_end(self.workload.inputs if inputs is None else inputs, **kwargs)

    def _one_by_one(self) -> list[Any]:
        """The unpruned model, a call for every sentence, as published code does it."""
        self.staged.prune(None)
        return [self.staged.end_to_end(inputs) for inputs in self.workload.one_by_one]

    def _time(
        self, first: Callable[[], Any], second: Callable[[], Any], runs_of_first: int = 1, warmup: int | None = None
    ) -> PairedTimes:
        """As [`time_pairs`]; the first function is so many runs of the model."""

        def after_each(which: int) -> None:
            self.progress.ran(1 if which else runs_of_first)

        return time_pairs(
            first, second, self.effort.runs, self.effort.warmup if warmup is None else warmup, after_each
        )

    def _once(self, measure: Callable[..., Any], pruning: PruningConfig | None = None, **kwargs: Any) -> Any:
        """What does not change from run to run is measured once, above all of the unpruned model."""
        key = (measure.__qualname__, _key(pruning), *kwargs)
        if key not in self._known:
            self._known[key] = measure(pruning, **kwargs)
        return self._known[key]

    def _count(self, pruning: PruningConfig | None) -> int:
        """Operations end to end, of the first warm-up run."""
        outputs: list[Any] = []
        meter = None if self.card is None else RooflineMeter(self.card)
        flops = count_flops(lambda: outputs.append(self._end_to_end(pruning)), meter)
        self.staged.check_finite(outputs[0])
        self.progress.ran()
        known = self.operations.setdefault(_key(pruning), {})
        indices = getattr(outputs[0], "retained_indices", None)
        if indices is not None and self.staged.settings.before_language_model is not None:
            known["num_kept_mean"] = float(np.mean([len(row) for row in indices]))
        if meter is not None:
            known.setdefault("least_seconds", meter.seconds)
        return known.setdefault("end_to_end", flops)

    def _flops(self, pruning: PruningConfig) -> dict[str, Any]:
        """Operations end to end; their ratio caps the speed-up where arithmetic takes the time."""
        unpruned, pruned = self._once(self._count), self._once(self._count, pruning)
        return {"unpruned": unpruned, "pruned": pruned, "bound": unpruned / pruned}

    def _roofline(self, pruning: PruningConfig, speedup: float, bound: float) -> dict[str, Any]:
        """The least time of both sides; its ratio caps the speed-up where reading weights takes the time."""
        unpruned, pruned = (self.operations[_key(setting)]["least_seconds"] for setting in (None, pruning))
        return {
            "unpruned_ms": 1000 * unpruned,
            "pruned_ms": 1000 * pruned,
            "bound": unpruned / pruned,
            "share_of_lower_bound": speedup / min(bound, unpruned / pruned),
        }

    def _count_stages(self, pruning: PruningConfig | None) -> dict[str, int]:
        meter = FlopMeter()
        self.staged.prune(pruning)
        self.staged.run_stages(self.workload.inputs, meter.stage)
        self.progress.ran()
        return self.operations.setdefault(_key(pruning), {}).setdefault("stages", meter.flops)

    def _stages(self, pruning: PruningConfig, result: dict[str, Any]) -> dict[str, Any]:
        """Operations and times of the stages, alternating; the pass that is counted is part of the warm-up."""
        flops = {"unpruned": self._once(self._count_stages), "pruned": self._count_stages(pruning)}
        watches: dict[str, list[dict[str, float]]] = {"unpruned": [], "pruned": []}
        for run in range(-self.effort.more_warmup, self.effort.runs):
            for side in ("unpruned", "pruned") if run % 2 == 0 else ("pruned", "unpruned"):
                self.staged.prune(pruning if side == "pruned" else None)
                watch = stopwatch_of(self.staged.model.device)
                self.staged.run_stages(self.workload.inputs, watch.stage)
                self.progress.ran()
                if run >= 0:
                    watches[side].append(watch.milliseconds)
        sides = {}
        for side, rounds in watches.items():
            stages = {
                name: {**spread([watch[name] for watch in rounds]), "flops": flops[side][name]}
                for name in STAGES
                if name in rounds[0]
            }
            explained = sum(stage["median_ms"] for stage in stages.values())
            whole = result["end_to_end"][side]["median_ms"]
            sides[side] = {"stages": stages, "sum_ms": explained, "unexplained_ms": whole - explained}
        selector = sum(stage["median_ms"] for name, stage in sides["pruned"]["stages"].items() if name in SELECTOR)
        share = selector / result["end_to_end"]["unpruned"]["median_ms"]
        self.staged.prune(pruning)
        includes_tower = self.staged.runs_tower()
        return {
            "stages": sides,
            "selector": {"ms": selector, "share_of_unpruned": share, "includes_vision_tower": includes_tower},
        }

    def _decode(self, pruning: PruningConfig, result: dict[str, Any]) -> dict[str, Any]:
        """Milliseconds per token: what further tokens take, the picture being encoded before."""
        functions = {}
        for side, setting in (("unpruned", None), ("pruned", pruning)):
            self.staged.prune(setting)
            features = self.staged.encode(self.workload.inputs)
            for count in (1, 1 + self.effort.new_tokens):
                functions[side, count] = partial(self._generate, setting, features, count)
        many, one = (  # many tokens warm up for one
            self._time(functions["unpruned", count], functions["pruned", count], warmup=warmup)
            for count, warmup in ((1 + self.effort.new_tokens, None), (1, 0))
        )
        unpruned, pruned = (
            (longer - shorter) / self.effort.new_tokens * 1000 for longer, shorter in zip(many.medians, one.medians)
        )
        return {"decode_ms_per_token": {"unpruned": unpruned, "pruned": pruned}}

    def _generate(self, pruning: PruningConfig | None, features: Any, count: int) -> torch.Tensor:
        self.staged.prune(pruning)
        return self.staged.generate(self.workload.inputs, count, features)

    def _stock(self, pruning: PruningConfig, result: dict[str, Any]) -> dict[str, Any]:
        """Against one call of the stock class of Transformers that keeps all hidden states, for answers in text."""
        if self.staged.has_masks:
            return {}
        model, inputs = self.staged.model, self.workload.inputs
        stock = self._once(lambda _: stock_of(model))
        own = self.staged.base.own_media_arguments
        theirs = {n: value for n, value in inputs.items() if n not in own and not n.startswith("guidance")}
        how = {"max_new_tokens": 1, "do_sample": False, "output_hidden_states": True, "return_dict_in_generate": True}
        call = torch.inference_mode()(partial(stock.generate, **theirs, **how))
        return {"against_stock": compared(self._time(call, partial(self._end_to_end, pruning)))}

    def _switches(self, pruning: PruningConfig, result: dict[str, Any]) -> dict[str, Any]:
        """What is off by default, off and on in turn, for one mask: "unpruned" is off here. With compiled layers, the
        host does not start every operation by itself, which can take longer than the operations: so pruning is
        measured with them, too."""
        if not self.staged.has_masks or len(self.workload.inputs["input_ids"]) > 1 or self.workload.one_by_one:
            return {}
        language_model, device = self.staged.base.language_model, self.staged.model.device
        eager, on_host = language_model.layers, self.workload.to(torch.device("cpu"), torch.float32)
        unpruned, off = (partial(self._end_to_end, setting) for setting in (None, pruning))

        def copied() -> None:
            self._end_to_end(pruning, on_host.to(device, torch.float32).inputs)

        def with_layers(layers: torch.nn.ModuleList, call: Callable[[], Any]) -> None:
            torch.compiler.cudagraph_mark_step_begin()  # else every layer begins a step
            language_model.layers = layers
            try:
                call()
            finally:
                language_model.layers = eager

        switches: dict[str, tuple[Any, Any]] = {
            "overlap_masks": (off, partial(off, overlap_masks=True)),
            "pin_memory, with the copies": (copied, partial(off, on_host.inputs, pin_memory=True)),
        }
        kinds: dict[str, dict[str, Any]] = {"compiled layers": {"backend": "eager"}}
        if device.type == "cuda":
            kinds = {"compiled layers": {}, "CUDA graphs": {"mode": "reduce-overhead"}}
        for name, how in kinds.items():
            compile_layer: Any = partial(torch.compile, dynamic=False, **how)
            compiled = torch.nn.ModuleList(map(compile_layer, eager))
            on = partial(with_layers, compiled, off)
            switches |= {name: (off, on), f"pruning, {name}": (partial(with_layers, compiled, unpruned), on)}
        try:
            for name, pair in switches.items():  # those measured before a compiler fails are kept
                for call in pair * 2:  # CUDA graphs are recorded in the second call
                    call()
                result.setdefault("switches", {})[name] = compared(self._time(*pair))
        finally:
            torch.compiler.reset()
        return {}

    def _memory(self, pruning: PruningConfig, result: dict[str, Any]) -> dict[str, Any]:
        """Activation memory of the prefill and of the whole call, and the cache of the prompt, in bytes."""
        memory = {
            "unpruned": self._once(self._memory_of),
            "unpruned_with_hidden_states": self._once(self._memory_of, output_hidden_states=True),
            "pruned": self._memory_of(pruning),
        }
        return {"memory": memory}

    def _memory_of(self, pruning: PruningConfig | None, **kwargs: Any) -> dict[str, int]:
        staged, inputs, device = self.staged, self.workload.inputs, self.staged.model.device
        staged.prune(pruning)
        features = staged.encode(inputs)
        pruned = staged.compact(inputs, features)
        shares = not kwargs and staged.shares_prompts(inputs, features)
        read = partial(staged.read, inputs, features) if shares else partial(staged.prefill, pruned, **kwargs)
        prefill = activation_bytes(read, device)
        self.progress.ran()
        cache = cache_bytes(staged.prefill(pruned, use_cache=True).cache)
        self.progress.ran()
        # `segment` and `generate` do not keep hidden states: what does is put together from their halves.
        whole = activation_bytes(
            lambda: staged.run_stages(inputs, **kwargs) if kwargs else staged.end_to_end(inputs), device
        )
        self.progress.ran()
        return {"prefill_bytes": prefill, "whole_bytes": whole, "cache_bytes": cache}


def _key(pruning: PruningConfig | None) -> str:
    return "" if pruning is None else pruning.to_json_string(use_diff=False)


def compared(times: PairedTimes) -> dict[str, Any]:
    """Unpruned (first) and pruned (second) times, and the speed-up with its interval."""
    unpruned, pruned = (spread([1000 * seconds for seconds in side]) for side in (times.first, times.second))
    return {
        "unpruned": unpruned,
        "pruned": pruned,
        "speedup": times.ratio,
        "speedup_interval_95": list(times.ratio_interval()),
    }


def spread(milliseconds: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and all."""
    return {
        "median_ms": float(np.median(milliseconds)),
        "min_ms": min(milliseconds),
        "max_ms": max(milliseconds),
        "all_ms": list(milliseconds),
    }
