"""A picture of a benchmark: speed-up against its bound, and where the time goes."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from transformers_litelvlm.benchmark.grid import describe, sides
from transformers_litelvlm.benchmark.stages import STAGES
from transformers_litelvlm.visualization.colours import DASHES, LINE_COLOURS


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_BARS = 8  # points whose stages are drawn
# Under the axes.
LEGEND = {"fontsize": "small", "loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
# Of Okabe and Ito, for colour-blind readers; neighbours in a bar differ in brightness, too.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#882255", "#cc79a7", "#999999")
MARKERS = "osD^vPX"


def plot(result: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a PNG, opaque on white. Raises ImportError if matplotlib is not installed."""
    _save(figure_of(result), path)


def plot_all(results: list[dict[str, Any]], path: str | os.PathLike) -> None:
    """As [`plot`], several results below one another; an empty list gives an empty picture."""
    widths, heights = zip(*[_size(*_panels(result)) for result in results] or [(7.0, 1.0)])
    figure = _figure(max(widths), sum(heights))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, result in zip(parts, results):
        _draw(part, result)
    _save(figure, path)


def figure_of(result: dict[str, Any]) -> Figure:
    """The figure: speed-ups and, where they were measured, stages and memory."""
    figure = _figure(*_size(*_panels(result)))
    _draw(figure, result)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(result: dict[str, Any]) -> tuple[list[tuple[Any, list]], int]:
    """What is drawn, with the points of each, and the number of bars."""
    timed = [point for point in result["points"] if "stages" in point][:MAX_BARS]
    weighed = [point for point in result["points"] if "weight_bytes" in point and "memory" in point][:MAX_BARS]
    panels: list[tuple[Any, list]] = [(_speedups, result["points"]), (_stages, timed), (_memory, weighed)]
    return [(draw, points) for draw, points in panels if points or draw is _speedups], max(len(timed), len(weighed))


def _size(panels: list, num_bars: int) -> tuple[float, float]:
    return 7.0 * len(panels), 4.6 + 0.4 * num_bars


def _draw(figure: Any, result: dict[str, Any]) -> None:
    panels, _ = _panels(result)
    for axes, (draw, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw(axes, points)
    figure.suptitle(f"{result['model']} on {result['device']}, {result['threads']} threads", parse_math=False)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    figure.savefig(path, dpi=120, format="png", facecolor="white")


def _speedups(axes: Any, points: list[dict[str, Any]]) -> None:
    """A line of measured speed-ups with intervals, and one of bounds, for everything but the budget."""
    points = [{**point, "budget": point.get("num_kept_mean", point["budget"])} for point in points]
    series: dict[tuple, list[dict[str, Any]]] = {}
    for point in sorted(points, key=lambda point: point["budget"]):
        names = ("method", "batch_size", "sentences", "dtype")
        key = *(point[name] for name in names), point.get("quantization", "none")
        series.setdefault(key, []).append(point)
    all_budgets = sorted({point["budget"] for point in points})
    nearest = min((after - before for before, after in itertools.pairwise(all_budgets)), default=1)
    step = 0.3 * nearest / max(len(series), 6)
    ends = [1.0]  # of what is drawn; 1 is where neither is faster
    for place, ((method, batch, sentences, dtype, quantization), of_series) in enumerate(series.items()):
        budgets = [point["budget"] for point in of_series]
        measured = [point["end_to_end"]["speedup"] for point in of_series]
        intervals = [point["end_to_end"]["speedup_interval_95"] for point in of_series]
        low, high = np.array(intervals).T
        errors = np.maximum(0.0, [measured - low, high - measured])
        label = f"{method}, batch {batch}, {sentences} sentence{'s' * (sentences > 1)}, {dtype}"
        label += "" if quantization == "none" else f", {quantization}"
        colour = tuple(channel / 255 for channel in LINE_COLOURS[place % len(LINE_COLOURS)])
        style = {"color": colour, "ls": DASHES[place // len(LINE_COLOURS) % len(DASHES)], "marker": MARKERS[place % 7]}
        # Side by side, so that intervals can be told apart.
        shifted = [budget + step * (place - (len(series) - 1) / 2) for budget in budgets]
        axes.errorbar(shifted, measured, yerr=errors, capsize=3, label=label, **style)
        bounds = [point["flops"]["bound"] for point in of_series]
        axes.plot(budgets, bounds, "x:", color=colour)
        if all("roofline" in point for point in of_series):
            bounds += (rooflines := [point["roofline"]["bound"] for point in of_series])
            axes.plot(budgets, rooflines, "+-.", color=colour)
        ends += bounds + [end for interval in intervals for end in interval] + measured
    axes.plot([], [], "x:", color="grey", label="bound: ratio of operations")
    if any("roofline" in point for point in points):
        axes.plot([], [], "+-.", color="grey", label="bound: roofline")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="visual tokens kept", ylabel="speed-up end to end", title="unpruned time / pruned time")
    axes.set_xticks(all_budgets)
    margin = 0.06 * (max(ends) - min(ends)) or 0.1
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.legend(**LEGEND)


def _stages(axes: Any, points: list[dict[str, Any]]) -> None:
    """A stacked bar for each point, after one for its unpruned model."""
    colours = dict(zip(STAGES, COLOURS, strict=True))
    for place, (side, point) in enumerate(sides(points)):
        left = 0.0
        for stage, times in point["stages"][side]["stages"].items():
            axes.barh(place, times["median_ms"], left=left, color=colours[stage])
            left += times["median_ms"]
    for stage, colour in colours.items():
        axes.barh(0, 0, color=colour, label=stage)
    axes.set(xlabel="milliseconds (medians)", title="stages")
    _name_bars(axes, points)


def _memory(axes: Any, points: list[dict[str, Any]]) -> None:
    """Weights, and what a call takes beside them, a bar for each model and setting."""
    for place, (side, point) in enumerate(sides(points)):
        weights, call = point["weight_bytes"] / 1e6, point["memory"][side]["whole_bytes"] / 1e6
        axes.barh(place, weights, color=COLOURS[0], label="" if place else "weights")
        axes.barh(place, call, left=weights, color=COLOURS[1], label="" if place else "activation memory")
    axes.set(xlabel="MB at the worst moment", title="memory of a call")
    _name_bars(axes, points)


def _name_bars(axes: Any, points: list[dict[str, Any]]) -> None:
    labels = []
    for side, point in sides(points):
        every = dict.fromkeys(("budget", "num_kept_mean"), point["num_visual_tokens"])
        labels.append(describe(point if side == "pruned" else {**point, **every, "method": "unpruned"}))
    axes.set_yticks(range(len(labels)), labels, fontsize="medium")
    axes.invert_yaxis()
    axes.legend(**LEGEND, ncols=2)
