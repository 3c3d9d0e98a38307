"""The page, the picture and the JSON of a GPU report."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from transformers_litelvlm.benchmark.plot import plot_all
from transformers_litelvlm.benchmark.report import notes, overview, sections, table
from transformers_litelvlm.benchmark.timing import machine_line
from transformers_litelvlm.utils.files import read_json, to_json, write_atomically


NAME = "performance_gpu"
FILES = tuple(f"{NAME}.{ending}" for ending in ("json", "md", "png"))
GOAL_OF_BOUND, GOAL_OF_SENTENCES = 0.9, 2.5

INTRODUCTION = """\
`litelvlm gpu-report` wrote this page: [gpu_report.md](gpu_report.md) says how, and [performance.md](performance.md)
what each number means. All weights are random, so nothing here is about the quality of masks."""


def write_report(result: dict[str, Any], folder: str | os.PathLike) -> None:
    """Write performance_gpu.json into `folder`, then .md and .png; files of these names are replaced, each whole."""
    json_file, page, picture = FILES
    with write_atomically(folder) as staging:
        (staging / json_file).write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
    with write_atomically(folder) as staging:
        (staging / page).write_text(page_of(result), encoding="utf-8")
        plot_all([model for model in result["models"] if _has_points(model)], staging / picture)


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """A result that [`write_report`] wrote. Raises ValueError if the file holds none."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; `litelvlm gpu-report` writes {FILES[0]}")
    result = read_json(Path(path))
    if not isinstance(result, dict) or result.get("benchmark") != "GPU report":
        raise ValueError(f"{path} is no GPU report: give the {FILES[0]} of `litelvlm gpu-report`.")
    return result


def page_of(result: dict[str, Any]) -> str:
    """The page in Markdown."""
    blocks = [f"# Speed on {result['device']}", INTRODUCTION, machine_line(result) + "."]
    if not result["is_complete"]:
        blocks.append("**Not complete**: the time was over, something failed, or somebody stopped it.")
    if "card" in result:
        card = result["card"]
        blocks.append(
            f"In large products of matrices the device reaches {card['flops_per_second'] / 1e12:.3g} TFLOP/s, and in"
            f" large copies {card['bytes_per_second'] / 1e12:.3g} TB/s. The roofline is computed from these two."
        )
    blocks += ["## Goals", _goals(result["models"]), _checks(result["checks"])]
    if any(map(_has_points, result["models"])):
        blocks.append(f"![Speed-ups and stages]({FILES[2]})")
    for model in result["models"]:
        if "failed" in model:
            blocks.append(f"## {model['model']}\n\nNot measured to the end: {model['failed']}")
            blocks += [overview(model["points"])] if model["points"] else []
        else:  # as a part of this page
            blocks.append(re.sub(r"^#", "##", "\n\n".join(sections(model)), flags=re.MULTILINE))
    points = [point for model in result["models"] for point in model.get("points", [])]
    return "\n\n".join([*blocks, "## Notes", notes(points)]) + "\n"


def _has_points(model: dict[str, Any]) -> bool:
    """Whether there is something to draw, with the machine that it was measured on."""
    return "failed" not in model and bool(model["points"])


def _goals(models: list[dict[str, Any]]) -> str:
    rows = []
    points = [(model["model"], point) for model in models if model.get("has_masks") for point in model["points"]]
    for model, point in points:
        if point["batch_size"] != 1:
            continue
        name = f"{model}, {point['budget']} of {point['num_visual_tokens']} tokens"
        if point["sentences"] == 1:
            share = point["roofline"]["share_of_lower_bound"]
            rows.append(
                [name, "share of the lower bound", f"{GOAL_OF_BOUND:.0%}", f"{share:.0%}", _met(share, GOAL_OF_BOUND)]
            )
        elif "against_one_by_one" in point and point["sentences"] == 3:
            speedup = point["against_one_by_one"]["speedup"]
            what = "3 sentences against one by one, unpruned"
            rows.append([name, what, f"{GOAL_OF_SENTENCES}x", f"{speedup:.2f}x", _met(speedup, GOAL_OF_SENTENCES)])
    if not rows:
        return "No model with masks was measured."
    return table(["point", "what", "goal", "measured", "met"], rows)


def _met(value: float, goal: float) -> str:
    return "yes" if value >= goal else "no"


def _checks(checks: list[dict[str, str]]) -> str:
    if not checks:
        return "## Checks\n\nNo tests ran."
    counts = Counter(check["outcome"] for check in checks)
    shown = [[check["test"].rpartition("/")[2], check["outcome"], check.get("reason", "")[:200]] for check in checks]
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    return f"## Checks\n\n{summary}.\n\n" + table(["test", "outcome", "reason"], shown)
