"""The Markdown of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


METRIC_NAMES = {"giou": "gIoU", "ciou": "cIoU", "iou": "gIoU", "j_and_f": "J&F", "j": "J", "f": "F"}
# Metrics with a column of their own beside those with intervals.
EXTRA_METRICS = {"precision@0.5": "P@0.5"}
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, trim_blocks=True
)


def markdown(results: dict[str, Any]) -> str:
    """The groups and comparisons of `results.json` as tables."""
    num_tokens, groups = results["model"]["num_visual_tokens"], results["groups"]
    sample, sentences = ("image", "sentences") if results["dataset"]["kind"] == "images" else ("video", "expressions")
    settings = {name: value for name, value in results["settings"].items() if name != "output_dir"}
    made_by = {name: value for name, value in results["environment"].items() if name not in ("hardware", "command")}
    return _TEMPLATES.get_template("results.md.jinja").render(
        results,
        sample=sample,
        sentences=sentences,
        main=list(groups[0]["intervals"]),
        extra=[name for name in EXTRA_METRICS if name in groups[0]["metrics"]],
        names=METRIC_NAMES | EXTRA_METRICS,
        options=" ".join(f"{name}={value}" for name, value in settings.items()),
        made_by=", ".join(f"{name} {value}" for name, value in made_by.items() if value is not None),
    )
