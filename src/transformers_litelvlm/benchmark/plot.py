"""A picture of a benchmark: speed-up against its bound, and where the time goes."""

from __future__ import annotations

import os
from typing import Any

from transformers_litelvlm.benchmark.grid import describe, sides
from transformers_litelvlm.benchmark.stages import STAGES


MAX_BARS = 8  # points whose stages are drawn


def plot(result: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [point for point in result["points"] if "stages" in point][:MAX_BARS]
    weighed = [point for point in result["points"] if "weight_bytes" in point and "memory" in point][:MAX_BARS]
    panels = [(_speedups, result["points"]), (_stages, timed), (_memory, weighed)]
    panels = [(draw, points) for draw, points in panels if points or draw is _speedups]
    figure = Figure(figsize=(7 * len(panels), 4 + 0.4 * max(len(timed), len(weighed))), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (draw, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw(axes, points)
    figure.suptitle(f"{result['model']} on {result['device']}, {result['threads']} threads")
    figure.savefig(path, dpi=120, format="png")


def _speedups(axes: Any, points: list[dict[str, Any]]) -> None:
    """A line of measured speed-ups with intervals, and one of bounds, for everything but the budget."""
    series: dict[tuple, list[dict[str, Any]]] = {}
    for point in sorted(points, key=lambda point: point["budget"]):
        names = ("method", "batch_size", "sentences", "dtype")
        key = *(point[name] for name in names), point.get("quantization", "none")
        series.setdefault(key, []).append(point)
    for (method, batch, sentences, dtype, quantization), of_series in series.items():
        budgets = [point["budget"] for point in of_series]
        measured = [point["end_to_end"]["speedup"] for point in of_series]
        intervals = [point["end_to_end"]["speedup_interval_95"] for point in of_series]
        errors = [
            [max(0.0, value - low) for value, (low, _) in zip(measured, intervals)],
            [max(0.0, high - value) for value, (_, high) in zip(measured, intervals)],
        ]
        label = f"{method}, batch {batch}, {sentences} sentence{'s' * (sentences > 1)}, {dtype}"
        label += "" if quantization == "none" else f", {quantization}"
        [line, *_] = axes.errorbar(budgets, measured, yerr=errors, marker="o", capsize=3, label=label)
        axes.plot(budgets, [point["flops"]["bound"] for point in of_series], "x--", color=line.get_color(), alpha=0.6)
    axes.plot([], [], "x--", color="grey", label="bound: ratio of operations")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="visual tokens kept", ylabel="speed-up end to end", title="unpruned time / pruned time")
    axes.set_xticks(sorted({point["budget"] for point in points}))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")


def _stages(axes: Any, points: list[dict[str, Any]]) -> None:
    """Two stacked bars for each point."""
    labels, place = [], 0
    colours = {stage: f"C{index}" for index, stage in enumerate(STAGES)}
    for point in points:
        for side in ("unpruned", "pruned"):
            left = 0.0
            for stage, times in point["stages"][side]["stages"].items():
                axes.barh(place, times["median_ms"], left=left, color=colours[stage])
                left += times["median_ms"]
            labels.append(f"{describe(point) if side == 'pruned' else 'unpruned'}")
            place += 1
    for stage, colour in colours.items():
        axes.barh(0, 0, color=colour, label=stage)
    axes.set_yticks(range(place), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds (medians)", title="stages")
    axes.legend(fontsize="small")


def _memory(axes: Any, points: list[dict[str, Any]]) -> None:
    """Weights, and what a call takes beside them, a bar for each model and setting."""
    labels = []
    for place, (side, point) in enumerate(sides(points)):
        weights, call = point["weight_bytes"] / 1e6, point["memory"][side]["whole_bytes"] / 1e6
        axes.barh(place, weights, color="C0", label="" if place else "weights")
        axes.barh(place, call, left=weights, color="C1", label="" if place else "beside weights and inputs")
        labels.append(describe(point) if side == "pruned" else f"unpruned, {point['quantization']}")
    axes.set_yticks(range(len(labels)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="MB at the worst moment", title="memory of a call")
    axes.legend(fontsize="small")
