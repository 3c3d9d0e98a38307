"""`calibration.json` and `calibration.md`: what was tried, left out in which round, chosen, and confirmed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from transformers_litelvlm.calibration.arguments import BASELINE, PUBLISHED, CalibrationArguments
from transformers_litelvlm.calibration.candidates import SIMPLICITY, Candidate
from transformers_litelvlm.calibration.choice import Choice
from transformers_litelvlm.calibration.halving import Level, Round
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.provenance import (
    describe_model,
    git_commit,
    third_party_methods,
    used_methods,
    versions,
    without_secrets,
)
from transformers_litelvlm.evaluation.records import space_needed
from transformers_litelvlm.evaluation.report import METRIC_NAMES
from transformers_litelvlm.evaluation.runs import Run, sized
from transformers_litelvlm.evaluation.statistics import Comparison, Interval
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.hub.markdown import templates
from transformers_litelvlm.utils.files import to_json, write_atomically


SCHEMA = "litelvlm-calibration/1"
REPORT_NAME, PAGE_NAME = "calibration.json", "calibration.md"
TEMPLATES = templates(Path(__file__).parent, trim_blocks=True, lstrip_blocks=True)


class Outcome(NamedTuple):
    """One preset: its candidates and rounds, and what came of them."""

    size: int | float  # budget or ratio
    level: Level
    choice: Choice
    chosen: Candidate | None


def describe(
    args: CalibrationArguments,
    split: ReferringSplit,
    segmenter: SweepSegmenter,
    metric: str,
    sizes: list[int],
    candidates: list[Candidate],
    skipped: list[tuple[Run, str]],
    outcomes: dict[str, Outcome],
) -> dict[str, Any]:
    """What the validation split says, as JSON has it."""
    model = segmenter.model
    ranked = sorted(candidates, key=lambda candidate: candidate.simplicity)
    return {
        "schema": SCHEMA,
        "model": describe_model(args, model),
        "data": {
            "name": split.name,
            "source": without_secrets(split.source),
            "split": split.split,
            "num_images": len(split),
            "sampling_seed": args.sampling_seed,
            "test_split": args.test_split,
            "notes": list(split.notes),
        },
        "metric": metric,
        "settings": {name: without_secrets(value) for name, value in asdict(args).items() if name != "write"},
        "third_party_methods": third_party_methods(used_methods(args, model)),
        "rounds": sizes,
        "simplicity": list(SIMPLICITY),
        "candidates": [
            {"name": each.name, "method": each.method, "method_options": each.options, **each.layout}
            for each in ranked
        ],
        "skipped": [{"run_id": run.run_id, "reason": reason} for run, reason in skipped],
        "presets": {name: _describe_outcome(outcome, segmenter) for name, outcome in outcomes.items()},
    }


def _describe_outcome(outcome: Outcome, segmenter: SweepSegmenter) -> dict[str, Any]:
    size, level, choice, chosen = outcome
    base, whole = segmenter.base_pruning, segmenter.num_visual_tokens
    return {
        "size": size,
        "num_tokens": None if whole is None else base.replace(method=BASELINE, **sized(size)).resolve(whole),
        "significance": level.rules.significance,
        "rounds": [_describe_round(entry) for entry in level.rounds],
        "choice": {
            **vars(choice),
            "alike": list(choice.alike),
            "over_baseline": {name: _describe_comparison(over) for name, over in choice.over_baseline.items()},
        },
        "preset": None if chosen is None else chosen.preset(base, size),
    }


def _describe_round(found: Round) -> dict[str, Any]:
    scores = sorted(found.scores.items(), key=lambda item: -item[1].value)
    return {
        "num_images": found.num_images,
        "best": found.best,
        "scores": {name: _describe_interval(statistics.bootstrap_interval(score)) for name, score in scores},
        "behind": {name: _describe_comparison(comparison) for name, comparison in found.behind.items()},
        "dropped": list(found.dropped),
    }


def _describe_interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "interval": [interval.low, interval.high]}


def _describe_comparison(comparison: Comparison) -> dict[str, Any]:
    return {**_describe_interval(comparison.difference), "p_value": comparison.p_value}


def write_report(
    args: CalibrationArguments, described: dict[str, Any], confirmed: dict[str, Any] | None, command: str | None
) -> dict[str, Any]:
    """Write both files, or none; returns the content of `calibration.json`.

    Args:
        described: of the validation split, see [`describe`].
        confirmed: content of the `results.json` of the test split; `None` if nothing was chosen.
        command: what was typed.
    """
    content = {
        **described,
        "test": None if confirmed is None else _describe_test(described, confirmed),
        "environment": {**versions(), "git_commit": git_commit(), "command": without_secrets(command)},
    }
    page = TEMPLATES.get_template("calibration.md.jinja").render(
        content,
        names=METRIC_NAMES,
        published=PUBLISHED,
        baseline=BASELINE,
        tried={name: _last_seen(preset) for name, preset in content["presets"].items()},
    )
    folder = Path(args.output_dir)
    with space_needed(folder), write_atomically(folder) as staging:
        (staging / REPORT_NAME).write_text(to_json(content, indent=1), encoding="utf-8")
        (staging / PAGE_NAME).write_text(page, encoding="utf-8")
    return content


def _last_seen(preset: dict[str, Any]) -> list[dict[str, Any]]:
    """Every setting in the last round that measured it: those that were measured longest first, then by score."""
    choice = preset["choice"]

    def end_of(name: str, found: dict[str, Any]) -> str:
        if name == choice["chosen"]:
            return "chosen"
        if name in choice["alike"]:
            return "as good as the best"
        if name == BASELINE:
            return "baseline"
        return "left out" if name in found["dropped"] else "worse in a single comparison"

    rows: dict[str, dict[str, Any]] = {}
    for found in reversed(preset["rounds"]):
        for name, score in found["scores"].items():
            row = {"name": name, "num_images": found["num_images"], "score": score, "end": end_of(name, found)}
            rows.setdefault(name, {**row, "behind": found["behind"].get(name)})
    return list(rows.values())


def _verdict(confirmed: dict[str, Any], chosen: str, size: int | float, metric: str) -> str:
    """What the test split says of a chosen setting, against the baseline and the published default."""
    found = {
        (each["method"], each["baseline"]): each
        for each in confirmed["comparisons"]
        if each["metric"] == metric and size in (each["budget"], each["retention_ratio"])
    }
    said = []
    # Of the published default, comparisons say how much better than the chosen setting it is.
    for pair, other, sign in (((chosen, BASELINE), BASELINE, 1), ((PUBLISHED, chosen), "the published default", -1)):
        if pair in found:
            ahead, p_value, (low, high) = (found[pair][key] for key in ("difference", "p_value", "interval"))
            word = "better than" if sign * ahead > 0 else "WORSE than"
            word = word if low * high > 0 and p_value <= 0.05 else "NOT told apart from"
            said.append(f"{word} {other} ({sign * ahead:+.4f}, p = {p_value:.4f})")
    return ", ".join(said) or "not compared"


def _describe_test(described: dict[str, Any], confirmed: dict[str, Any]) -> dict[str, Any]:
    """Figures of the test split: of every preset that was chosen, and of what it is compared with, at its budget."""
    dataset = confirmed["dataset"]
    kind = dataset["kind"]
    figures: dict[str, Any] = {}
    for name, preset in described["presets"].items():
        if preset["choice"]["chosen"] is None:
            continue
        groups = {
            group["name"]: group
            for group in confirmed["groups"]
            if group["method"] == "none" or preset["size"] in (group["budget"], group["retention_ratio"])
        }
        roles = {
            "chosen": preset["choice"]["chosen"],
            "published": PUBLISHED,
            "baseline": BASELINE,
            "unpruned": "none",
        }
        figures[name] = {
            role: {
                part: groups[member][part] for part in ("name", "metrics", "intervals", "retention", "num_kept_mean")
            }
            for role, member in roles.items()
            if member in groups
        }
        figures[name]["verdict"] = _verdict(confirmed, roles["chosen"], preset["size"], described["metric"])
    return {
        "split": dataset["split"],
        "num_samples": dataset[f"num_{kind}"],
        "num_expressions": dataset["num_expressions"],
        "kind": kind,
        "presets": figures,
    }
