"""Quality against the number of visual tokens as a picture; importing this needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_litelvlm.hub.results import read_results
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import write_atomically
from transformers_litelvlm.visualization.colours import DASHES, GREY, INK, LINE_COLOURS, Colour
from transformers_litelvlm.visualization.quality_panels import Line, Panel, is_inside, panels_of


with needs_extra("benchmark", "A plot"):
    from matplotlib.figure import Figure
    from matplotlib.textpath import TextPath


SUFFIXES = (".png", ".svg")
# What others are compared with is grey; it chooses without looking.
BASELINES = ("random", "uniform")
MARKERS = "os^DvPX"
# Points, for a page that shows the picture at half its size; inches around the axes.
LABEL_SIZE, TEXT_SIZE, LINE_SPACING = 11.0, 12.0, 1.3
LEFT, TOP, BOTTOM, WIDTH = 0.85, 0.7, 0.95, 6.0
LEADER, KEY = 0.4, 0.45  # inches from the axes to the labels, and of the piece of line before each
LONGEST_NAME = 40
MARGIN = 1.13  # factor between the outer budgets and the ends of the axis
INSIDE_NOTE = " Hollow: a method inside the language model, whose first layers read all tokens."


class Label(NamedTuple):
    """What stands at the right end of a line: its end (x, y) in data, its text, and how it is drawn."""

    x: float
    y: float
    text: str
    style: dict[str, Any]


def plot_quality(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike, metric: str | None = None
) -> list[Panel]:
    """
    Draw each method's metric, with 95 % intervals, against the number of visual tokens, opaque on white.

    Args:
        paths: of `results.json` files. Those about the same model and data go into one panel, others beside it.
        output: a `.png` or `.svg`.
        metric: `"giou"` or `"ciou"`; of videos `"j_and_f"`, `"j"` or `"f"`. Default: the first of these.

    Returns:
        What was drawn.

    Raises:
        ValueError: a file has no results, or none of pruned runs or of the metric; two files contradict each other;
            another suffix of `output`.
    """
    output = Path(output)
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"`output` must end in .png or .svg, got {output.name!r:.80}.")
    panels = panels_of([read_results(path) for path in paths], metric)
    figure = draw_quality(panels)
    with write_atomically(output.absolute().parent) as staging:
        figure.savefig(staging / output.name, dpi=150, facecolor="white")
    return panels


def draw_quality(panels: Sequence[Panel]) -> Figure:
    """The figure of panels beside one another, each with the names of its lines at their right ends."""
    label_widths = [max(map(_width, _texts(panel))) + LEADER + KEY + 0.25 for panel in panels]
    most = max(len(_texts(panel)) for panel in panels)
    height = max(3.6, (most + 1) * LABEL_SIZE * LINE_SPACING / 72)
    size = (sum(LEFT + WIDTH + width for width in label_widths), TOP + height + BOTTOM)
    figure = Figure(figsize=size, facecolor="white")
    left = LEFT
    for panel, label_width in zip(panels, label_widths, strict=True):
        box = (left / size[0], BOTTOM / size[1], WIDTH / size[0], height / size[1])
        _draw_panel(figure.add_axes(box), panel, height)
        left += WIDTH + label_width + LEFT
    return figure


def _draw_panel(axes: Any, panel: Panel, height: float) -> None:
    sizes = sorted({size for line in panel.lines for size, *_ in line.points})
    styles = _styles(panel.lines)
    ends = []
    for line, style, shift in zip(panel.lines, styles, _shifts(sizes, len(styles)), strict=True):
        at, values, low, high = np.array(line.points).T
        errors = np.maximum(0, [values - low, high - values])
        axes.errorbar(at * shift, values, yerr=errors, label=line.name, elinewidth=1.0, **style)
        ends.append((at[-1] * shift, values[-1], style))
    if panel.unpruned:
        value, low, high = panel.unpruned
        style = {"color": _hex(INK), "linewidth": 1.8}
        axes.axhspan(low, high, color=_hex(INK), alpha=0.12, linewidth=0)
        axes.axhline(value, **style)
        ends.append((sizes[-1] * MARGIN, value, style))
    _set_axes(axes, panel, sizes)
    labels = [Label(x, y, text, style) for (x, y, style), text in zip(ends, _texts(panel), strict=True)]
    _write_labels(axes, sorted(labels, key=lambda label: label.y), height)


def _texts(panel: Panel) -> list[str]:
    """Last values and names: of the lines, then of the unpruned model."""
    names = [
        line.name if len(line.name) <= LONGEST_NAME else f"{line.name[: LONGEST_NAME - 1]}…" for line in panel.lines
    ]
    texts = [f"{line.points[-1][1]:.2f}  {name}" for line, name in zip(panel.lines, names, strict=True)]
    return texts + ([f"{panel.unpruned[0]:.2f}  unpruned"] if panel.unpruned else [])


def _styles(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Of each line; the first twenty differ in colour or dashes, and markers tell neighbours apart once more."""
    styles = []
    place = 0
    for number, line in enumerate(lines):
        if line.method in BASELINES:
            colour, dashes = _hex(GREY), DASHES[1 + BASELINES.index(line.method)]
        else:
            colour = _hex(LINE_COLOURS[place % len(LINE_COLOURS)])
            dashes = DASHES[place // len(LINE_COLOURS) % len(DASHES)]
            place += 1
        marker = {"marker": MARKERS[number % len(MARKERS)], "markersize": 6.0, "markeredgewidth": 1.4}
        marker["markerfacecolor"] = "white" if is_inside(line.method) else colour
        styles.append({"color": colour, "linestyle": dashes, "linewidth": 1.8, **marker})
    return styles


def _shifts(sizes: Sequence[float], count: int) -> np.ndarray:
    """Factors that set lines side by side, so that intervals can be told apart, and budgets too."""
    nearest = np.diff(np.log2(sizes)).min() if len(sizes) > 1 else 1.0
    return 2 ** (min(0.1, 0.3 * nearest) * np.linspace(-1, 1, count)) if count > 1 else np.ones(1)


def _set_axes(axes: Any, panel: Panel, sizes: Sequence[float]) -> None:
    numbers = [number for line in panel.lines for point in line.points for number in point[2:]]
    numbers += panel.unpruned or ()
    margin = 0.04 * (max(numbers) - min(numbers)) or 0.02
    axes.set_ylim(max(0.0, min(numbers) - margin), max(numbers) + margin)
    axes.set_xscale("log", base=2)
    axes.set_xlim(sizes[0] / MARGIN, sizes[-1] * MARGIN)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.tick_params(labelsize=LABEL_SIZE)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(panel.size_name, fontsize=TEXT_SIZE)
    axes.set_ylabel(panel.metric, fontsize=TEXT_SIZE)
    note = "95 % intervals. Points of one budget are moved apart." + (
        INSIDE_NOTE if any(is_inside(line.method) for line in panel.lines) else ""
    )
    where = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(_plain(panel.title), (0, 1), (-45, 18), fontsize=TEXT_SIZE, color=_hex(INK), **where)
    axes.annotate(note, (0, 0), (-45, -58), fontsize=LABEL_SIZE - 1, color=_hex(GREY), **where)


def _write_labels(axes: Any, labels: Sequence[Label], height: float) -> None:
    """Beside the axes, by rising y: each at the height of the end of its line, or as near as there is room."""
    low, high = axes.get_ylim()
    wanted = np.array([(label.y - low) / (high - low) * height for label in labels])
    start, end = 1 + LEADER / WIDTH, 1 + (LEADER + KEY) / WIDTH
    for label, place in zip(labels, spread(wanted, LABEL_SIZE * LINE_SPACING / 72, 0.0, height), strict=True):
        y = place / height
        leader = {"arrowstyle": "-", "color": label.style["color"], "alpha": 0.6, "linewidth": 0.9, "shrinkA": 0}
        axes.annotate(
            "", (label.x, label.y), (start, y), textcoords="axes fraction", annotation_clip=False, arrowprops=leader
        )
        key = [start, (start + end) / 2, end]
        axes.plot(key, [y] * 3, transform=axes.transAxes, clip_on=False, markevery=[1], **label.style)
        text = _plain(label.text)
        at = (end + 0.1 / WIDTH, y)
        axes.text(*at, text, transform=axes.transAxes, fontsize=LABEL_SIZE, color=label.style["color"], va="center")


def _width(text: str) -> float:
    """Inches that a label is wide."""
    return float(TextPath((0, 0), _plain(text), size=LABEL_SIZE).get_extents().width) / 72


def _plain(text: str) -> str:
    """A text whose dollars are no formulas."""
    return text.replace("$", r"\$")


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Ascending places at least `gap` apart between `low` and `high`, as near to ascending `wanted` as can be.

    Least squares: places that are too near one another form a block around the mean of what they want.
    """
    steps = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []  # sum, count
    for value in wanted - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    means = np.concatenate([np.full(int(count), total / count) for total, count in blocks])
    return means.clip(low, max(low, high - steps[-1])) + steps
