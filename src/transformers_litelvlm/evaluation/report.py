"""`results.json`, `results.md` and `records.parquet` from the records of all batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data.splits import CountReport, ReferringSplit, SplitCounts
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.metrics import THRESHOLDS
from transformers_litelvlm.evaluation.provenance import git_commit, hardware, now, versions
from transformers_litelvlm.evaluation.records import RecordStore, space_needed, to_table
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.stopwatch import STAGES
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.utils.files import write_atomically


SCHEMA = "litelvlm-results/1"
RECORDS_NAME, RESULTS_NAME, TABLE_NAME = "records.parquet", "results.json", "results.md"
METRICS = ("giou", "ciou", *(f"precision@{threshold}" for threshold in THRESHOLDS))


class Scores(NamedTuple):
    """Records of the seeds of one setting: `(seeds, sentences)`, and the image of each sentence."""

    intersections: np.ndarray
    unions: np.ndarray
    ious: np.ndarray
    image_ids: np.ndarray

    def metric(self, name: str) -> statistics.RatioOfSums:
        """A score, from which value, interval and tests follow. An IoU of 0 by decree (unreadable) stays 0."""
        if name == "giou":
            return statistics.mean(self.ious, self.image_ids)
        if name == "ciou":
            if not self.unions.any():  # nothing meant and nothing predicted in the whole split
                return statistics.mean(self.ious, self.image_ids)
            return statistics.ratio_of_sums(self.intersections, self.unions, self.image_ids)
        return statistics.mean(self.ious >= float(name.partition("@")[2]), self.image_ids)


def write_report(
    args: EvaluationArguments,
    store: RecordStore,
    num_batches: int,
    split: ReferringSplit,
    segmenter: SweepSegmenter,
    runs: list[Run],
    skipped: list[tuple[Run, str]],
    num_processes: int,
) -> dict[str, Any]:
    """
    Puts the batches together and writes the three files, all or none.

    Args:
        args, split, segmenter, runs: What was measured.
        store, num_batches: Where the batches are.
        skipped: Runs that are impossible, with the reason.
        num_processes: That took part in this launch.

    Returns:
        The content of `results.json`.
    """
    batches = list(store.read(num_batches))
    # By run, then in the order of the data: for a reader, and for compression.
    order = {run.run_id: place for place, run in enumerate(runs)}
    rows = sorted((row for batch in batches for row in batch["rows"]), key=lambda row: order[row[0]])
    table = to_table(rows)
    scores = _scores(rows, runs)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "model": _describe_model(args, segmenter),
        "dataset": _describe_dataset(args, split, batches, table),
        "settings": asdict(args),
        "environment": {
            **versions(),
            "git_commit": git_commit(),
            "hardware": hardware(segmenter.model.device, num_processes),
            "date": now(),
        },
        "runs": [
            {
                **_describe_run(run, segmenter.base_pruning),
                **_measured(scores[run.run_id], scores.get(_unpruned_twin(run, runs))),
                **_cost(run, batches),
            }
            for run in runs
        ],
        "skipped": [{**_describe_run(run, None), "reason": reason} for run, reason in skipped],
    }
    results["groups"], results["comparisons"] = _grouped(runs, scores, results["runs"])
    results["records"] = RECORDS_NAME
    with space_needed(store.folder), write_atomically(store.folder) as staging:
        pq.write_table(table, staging / RECORDS_NAME, compression="zstd")
        (staging / RESULTS_NAME).write_text(json.dumps(results, indent=1), encoding="utf-8")
        (staging / TABLE_NAME).write_text(markdown(results), encoding="utf-8")
    return results


def _scores(rows: list[list[Any]], runs: list[Run]) -> dict[str, Scores]:
    """By run; one seed each."""
    by_run: dict[str, list[list[Any]]] = {run.run_id: [] for run in runs}
    for row in rows:
        by_run[row[0]].append(row)
    return {
        run_id: Scores(
            intersections=np.array([[row[4] for row in of_run]]),
            unions=np.array([[row[5] for row in of_run]]),
            ious=np.array([[row[6] for row in of_run]]),
            image_ids=np.array([row[1] for row in of_run]),
        )
        for run_id, of_run in by_run.items()
    }


def _joined(parts: Sequence[Scores]) -> Scores:
    """Seeds of one setting together: as many sentences of each image, in the same order."""
    return Scores(
        intersections=np.concatenate([part.intersections for part in parts]),
        unions=np.concatenate([part.unions for part in parts]),
        ious=np.concatenate([part.ious for part in parts]),
        image_ids=parts[0].image_ids,
    )


def _measured(scores: Scores, unpruned: Scores | None) -> dict[str, Any]:
    """Metrics, intervals over images, and what is retained of the unpruned run."""
    found = {name: scores.metric(name) for name in METRICS}
    result: dict[str, Any] = {
        "metrics": {name: score.value for name, score in found.items()},
        "intervals": {name: _ends(statistics.bootstrap_interval(found[name])) for name in METRICS[:2]},
        "retention": None,
        "retention_intervals": None,
    }
    if unpruned is not None:
        full = {name: unpruned.metric(name) for name in METRICS[:2]}
        if all(score.value > 0 for score in full.values()):
            retained = {name: statistics.retention(found[name], full[name]) for name in full}
            result["retention"] = {name: interval.value for name, interval in retained.items()}
            result["retention_intervals"] = {name: _ends(interval) for name, interval in retained.items()}
    return result


def _ends(interval: statistics.Interval) -> list[float]:
    return [interval.low, interval.high]


def _unpruned_twin(run: Run, runs: list[Run]) -> str | None:
    """The unpruned run that asked the same questions."""
    return next((other.run_id for other in runs if not other.is_pruned and other.seed in (None, run.seed)), None)


def _grouped(
    runs: list[Run], scores: dict[str, Scores], described: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One entry per method and budget, seeds together; the first pruned method against the others, and these against
    `random`."""
    members: dict[tuple[str, Any], list[int]] = {}
    for place, run in enumerate(runs):
        members.setdefault((run.name, run.size), []).append(place)
    joined = {key: _joined([scores[runs[place].run_id] for place in places]) for key, places in members.items()}
    unpruned = next((joined[key] for key, places in members.items() if not runs[places[0]].is_pruned), None)
    groups = []
    for key, places in members.items():
        first = {name: value for name, value in described[places[0]].items() if name not in ("run_id", "seed")}
        parts = [described[place] for place in places]
        costs = {
            "num_kept_mean": _mean([part["num_kept_mean"] for part in parts]),
            "timings_ms": {
                stage: _mean([part["timings_ms"][stage] for part in parts]) for stage in parts[0]["timings_ms"]
            },
            "peak_memory_bytes": max((p["peak_memory_bytes"] for p in parts if p["peak_memory_bytes"]), default=None),
        }
        groups.append({**first, "num_seeds": len(places), **_measured(joined[key], unpruned), **costs})
    names = list(dict.fromkeys(run.name for run in runs if run.is_pruned))
    pairs = [(names[0], other) for other in names[1:]]
    pairs += [(other, "random") for other in names[1:] if other != "random" and "random" in names]
    comparisons = [
        _compared(method, baseline, size, metric, joined)
        for method, baseline in pairs
        for size in dict.fromkeys(run.size for run in runs if run.is_pruned)
        if (method, size) in joined and (baseline, size) in joined
        for metric in METRICS[:2]
    ]
    return groups, comparisons


def _compared(
    method: str, baseline: str, size: int | float, metric: str, joined: dict[tuple[str, Any], Scores]
) -> dict[str, Any]:
    outcome = statistics.compare(joined[method, size].metric(metric), joined[baseline, size].metric(metric))
    return {
        "method": method,
        "baseline": baseline,
        "budget": size if isinstance(size, int) else None,
        "retention_ratio": size if isinstance(size, float) else None,
        "metric": metric,
        "difference": outcome.difference.value,
        "interval": _ends(outcome.difference),
        "p_value": outcome.p_value,
        "test": "permutation",
    }


def _describe_model(args: EvaluationArguments, segmenter: SweepSegmenter) -> dict[str, Any]:
    model = segmenter.model
    return {
        "path_or_id": args.model or "embedded",
        "class": type(model).__name__,
        "family": model.config.model_type,
        "commit_hash": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_visual_tokens": segmenter.num_visual_tokens,
    }


def _describe_dataset(
    args: EvaluationArguments, split: ReferringSplit, batches: list[dict[str, Any]], table: pa.Table
) -> dict[str, Any]:
    """What was read, and whether it is the whole official split."""
    parts = [batch["counts"] for batch in batches]
    sums = {
        name: None if any(part[name] is None for part in parts) else sum(part[name] for part in parts)
        for name in parts[0]
    }
    report = CountReport(f"{split.name} {split.split}", SplitCounts(**sums), split.official)
    flags = Counter(flag for flags in table["flags"].to_pylist() for flag in flags)
    first_run = pc.equal(table["run_id"], table["run_id"][0])
    return {
        "name": split.name,
        "split": split.split,
        "source": split.source,
        "protocol": args.protocol,
        "num_images": sums["samples"],
        "num_expressions": pc.sum(first_run).as_py(),
        "official_counts": asdict(split.official[0]) if split.official else None,
        "counts_match": report.matches,
        "notes": list(split.notes),
        "flags": dict(flags),
    }


def _describe_run(run: Run, base: PruningConfig | None) -> dict[str, Any]:
    pruning = run.pruning(base) if base is not None and run.is_pruned else None
    return {
        "run_id": run.run_id,
        "name": run.name,
        "method": run.method,
        "method_options": run.options,
        "budget": run.budget,
        "retention_ratio": run.retention_ratio,
        "seed": run.seed,
        "token_order": None if pruning is None else pruning.resolved_token_order,
        "position_ids": None if pruning is None else pruning.resolved_position_ids,
    }


def _cost(run: Run, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens, milliseconds per image and memory. Shared stages count in full: they are what the run takes alone."""
    count = sum(batch["num_images"] for batch in batches)
    parts = [batch for batch in batches if run.run_id in batch["milliseconds"]]
    if not parts:
        return {"num_kept_mean": None, "timings_ms": dict.fromkeys((*STAGES, "total")), "peak_memory_bytes": None}
    times = {
        stage: sum(part["milliseconds"][run.run_id].get(stage, 0.0) for part in parts) / count for stage in STAGES
    }
    peaks = [part["peak_memory"][run.run_id] for part in parts if part["peak_memory"][run.run_id] is not None]
    return {
        "num_kept_mean": sum(part["num_kept"][run.run_id] for part in parts) / count,
        "timings_ms": {**times, "total": sum(times.values())},
        "peak_memory_bytes": max(peaks, default=None),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def markdown(results: dict[str, Any]) -> str:
    """The groups and comparisons of `results.json` as tables."""
    data, model = results["dataset"], results["model"]
    expected = "" if data["counts_match"] is not False else ", not the whole official split"
    lines = [
        f"# {data['name']} {data['split']}, {model['path_or_id']}",
        "",
        f"{data['num_images']} images, {data['num_expressions']} sentences{expected}; protocol `{data['protocol']}`; "
        f"{model['num_visual_tokens']} visual tokens, {model['dtype']}. Intervals: 95 %, bootstrap over images.",
        *(f"\nNote: {note}." for note in data["notes"]),
        *(f"\n{count} records are flagged `{flag}`." for flag, count in data["flags"].items()),
        "",
        "| tokens | method | seeds | gIoU | 95 % | cIoU | 95 % | P@0.5 | gIoU retained | selection, ms | image, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_table_row(group, model["num_visual_tokens"]) for group in results["groups"]]
    if results["comparisons"]:
        lines += ["", "| tokens | difference | of | value | 95 % | p (permutation) |", "|---|---|---|---|---|---|"]
        for entry in results["comparisons"]:
            size, names = entry["budget"] or entry["retention_ratio"], f"{entry['method']} - {entry['baseline']}"
            numbers = f"{entry['difference']:+.4f} | {_range(entry['interval'], '+.4f')} | {entry['p_value']:.4f}"
            lines.append(f"| {size} | {names} | {entry['metric']} | {numbers} |")
    lines += [f"\nLeft out: {entry['run_id']}: {entry['reason']}" for entry in results["skipped"]]
    options = " ".join(f"{name}={value}" for name, value in results["settings"].items() if name != "output_dir")
    made_by = ", ".join(f"{name} {value}" for name, value in results["environment"].items() if name != "hardware")
    lines += [f"\nOptions: `{options}`.", f"\nMade by {made_by}."]
    return "\n".join(lines) + "\n"


def _table_row(group: dict[str, Any], num_tokens: int) -> str:
    metrics, intervals, retained = group["metrics"], group["intervals"], group["retention"]
    cells = [
        str(group["budget"] or group["retention_ratio"] or num_tokens),
        group["name"],
        str(group["num_seeds"]),
        *(text for name in METRICS[:2] for text in (f"{metrics[name]:.4f}", _range(intervals[name], ".4f"))),
        f"{metrics['precision@0.5']:.4f}",
        "" if retained is None else f"{retained['giou']:.1%}",
        *(
            "" if ms is None else f"{ms:.1f}"
            for ms in (group["timings_ms"][stage] for stage in ("selection", "total"))
        ),
    ]
    return f"| {' | '.join(cells)} |"


def _range(ends: list[float], style: str) -> str:
    return f"{ends[0]:{style}} to {ends[1]:{style}}"
