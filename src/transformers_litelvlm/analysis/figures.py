"""The figures of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transformers_litelvlm.analysis.image import of_layer
from transformers_litelvlm.utils.extras import needs_extra


with needs_extra("benchmark", "An analysis"):
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle


WHERE, AGREEMENT, SELECTIONS, EXAMPLES = "where.png", "agreement.png", "selections.png", "examples.png"
FIGURE_NAMES = (WHERE, AGREEMENT, SELECTIONS, EXAMPLES)
_DPI = 110


def draw_figures(
    results: dict[str, Any], examples: list[dict[str, Any]], tokens: dict[str | None, str], folder: Path
) -> None:
    """Write them as PNG into a folder.

    Args:
        results: the content of `analysis.json`.
        examples: of `measuring`, each with its `image`, `sentence` and `mask`; without any there is no such figure.
        tokens: how budgets in `results` are written.
    """
    _where(results["where"], results["settings"]["coverage"]).savefig(folder / WHERE, dpi=_DPI)
    _agreement(results["agreement"]).savefig(folder / AGREEMENT, dpi=_DPI)
    _selections(results["ablation"], tokens).savefig(folder / SELECTIONS, dpi=_DPI)
    if examples:
        _examples(examples).savefig(folder / EXAMPLES, dpi=_DPI)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _where(rows: list[dict[str, Any]], coverage: float) -> Figure:
    rows = [row for row in rows if row["auroc"] and not of_layer(row["score"])][::-1]
    figure = _figure(8, 1.5 + 0.28 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found, colour = row["auroc"], "tab:blue" if row["control"] == "own" else "tab:gray"
        axes.plot([found["low"], found["high"]], [place, place], color=colour)
        axes.plot(found["value"], place, "o", color=colour)
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['score']}, {row['control']}" for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"AUROC for tokens covered by at least {coverage:.0%} (of similarities: of LOW similarity)")
    return figure


def _agreement(rows: list[dict[str, Any]]) -> Figure:
    rows = [row for row in rows if row["spearman"]]
    scores, signals = (list(dict.fromkeys(row[name] for row in rows)) for name in ("score", "signal"))
    values = np.full((len(scores), len(signals)), np.nan)
    for row in rows:
        values[scores.index(row["score"]), signals.index(row["signal"])] = row["spearman"]["value"]
    figure = _figure(3 + 0.6 * len(signals), 2.5 + 0.5 * len(scores))
    axes = figure.subplots()
    image = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(signals)), signals, rotation=60, ha="right")
    axes.set_yticks(range(len(scores)), scores)
    figure.colorbar(image, label="Spearman, mean over sentences")
    return figure


def _selections(rows: list[dict[str, Any]], tokens: dict[str | None, str]) -> Figure:
    full, rows = rows[0], rows[1:]
    sizes = list(dict.fromkeys(row["budget"] for row in rows))
    figure = _figure(5 * len(sizes), 2 + 0.3 * len(rows) / len(sizes))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        of_size = sorted((row for row in rows if row["budget"] == size), key=lambda row: row["giou"]["value"])
        for place, row in enumerate(of_size):
            found, colour = row["giou"], "tab:red" if row["selection"] == "reversed" else "tab:blue"
            axes.barh(place, found["value"], color=colour, alpha=0.7)
            axes.plot([found["low"], found["high"]], [place, place], color="black")
        axes.axvline(full["giou"]["value"], color="black", linestyle=":", label="unpruned")
        axes.set_yticks(range(len(of_size)), [row["selection"] for row in of_size])
        axes.set_title(f"{tokens[size]} tokens")
        axes.set_xlabel("gIoU")
        axes.legend(fontsize=8, loc="lower right")
    return figure


def _examples(examples: list[dict[str, Any]]) -> Figure:
    names = list(dict.fromkeys(name for example in examples for name in example["maps"]))
    figure = _figure(2.2 * (len(names) + 1), 2.5 * len(examples))
    all_axes = figure.subplots(len(examples), len(names) + 1, squeeze=False)
    for of_example, example in zip(all_axes, examples, strict=True):
        for axes in of_example:
            axes.axis("off")
        image: Image.Image = example["image"]
        left, top, right, bottom = example["region"]
        of_example[0].imshow(image)
        of_example[0].contour(example["mask"], levels=[0.5], colors="red")
        of_example[0].set_title(f"{example['sentence']:.40}", fontsize=8, parse_math=False)  # it may have dollars
        for axes, name in zip(of_example[1:], names):
            if name not in example["maps"]:
                continue
            rows, columns = example["grid"]
            axes.imshow(image.convert("L"), cmap="gray", alpha=0.5)
            values = np.reshape(example["maps"][name], (rows, columns))
            axes.imshow(values, extent=(left, right, bottom, top), cmap="viridis", alpha=0.75)
            _outline_tokens(axes, example)
            axes.set_xlim(0, image.width)
            axes.set_ylim(image.height, 0)
            axes.set_title(name.replace("_", " "), fontsize=8)
    figure.suptitle("The first sentence of each image. Outlined: what the reversed ranking keeps", fontsize=9)
    return figure


def _outline_tokens(axes: Any, example: dict[str, Any]) -> None:
    (rows, columns), (left, top, right, bottom) = example["grid"], example["region"]
    width, height = (right - left) / columns, (bottom - top) / rows
    for token in example["kept"]:
        y, x = divmod(token, columns)
        corner = (left + x * width, top + y * height)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="white", linewidth=0.6))
