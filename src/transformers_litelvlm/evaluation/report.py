"""`results.json`, `results.md` and `records.parquet` from the records of all batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.samples import VideoSample
from transformers_litelvlm.data.splits import CountReport, ReferringSplit, SplitCounts
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.provenance import git_commit, hardware, now, versions, without_secrets
from transformers_litelvlm.evaluation.records import RecordStore, space_needed, to_table
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.stopwatch import STAGES
from transformers_litelvlm.evaluation.submissions import video_submission
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.evaluation.tables import markdown
from transformers_litelvlm.evaluation.tasks import Scores, Task
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import write_atomically


with needs_extra("eval", "An evaluation"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq


SCHEMA = "litelvlm-results/1"
RECORDS_NAME, RESULTS_NAME, TABLE_NAME = "records.parquet", "results.json", "results.md"


class Sweep(NamedTuple):
    """What was measured.

    Args:
        args, task, split, segmenter, runs: options, and what they came to.
        skipped: runs that are impossible, with the reason.
        num_processes: that took part in this launch.
        command: what was typed, if anything was.
    """

    args: EvaluationArguments
    task: Task
    split: ReferringSplit
    segmenter: SweepSegmenter
    runs: list[Run]
    skipped: list[tuple[Run, str]]
    num_processes: int
    command: str | None


def write_report(sweep: Sweep, store: RecordStore, num_batches: int) -> dict[str, Any]:
    """Put the batches together and write the files, all or none.

    Args:
        sweep: what was measured.
        store, num_batches: where the batches are.

    Returns:
        The content of `results.json`.
    """
    task, runs = sweep.task, sweep.runs
    batches = []
    for batch in store.read(num_batches):
        del batch["masks"]  # large, and needed at the end only
        batches.append(batch)
    # By run, then in the order of the data: for a reader, and for compression.
    order = {run.run_id: place for place, run in enumerate(runs)}
    rows = sorted((row for batch in batches for row in batch["rows"]), key=lambda row: order[row[0]])
    table = to_table(rows, task.schema, task.key)
    scores = _scores(table, task, runs)
    dataset = _describe_dataset(sweep, batches, table)
    archives = _archives(sweep, dataset[f"num_{task.kind}"])
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "model": _describe_model(sweep),
        "dataset": dataset,
        "settings": {name: without_secrets(value) for name, value in asdict(sweep.args).items()},
        "environment": {
            **versions(),
            "git_commit": git_commit(),
            "hardware": hardware(sweep.segmenter.model.device, sweep.num_processes),
            "date": now(),
            "command": without_secrets(sweep.command),
        },
        "runs": [
            {
                **_describe_run(run, sweep.segmenter.base_pruning),
                **_measured(task, scores[run.run_id], scores.get(_unpruned_twin(run, runs))),
                **_cost(run, batches),
                **({"submission": archives[run.run_id]} if run.run_id in archives else {}),
            }
            for run in runs
        ],
        "skipped": [{**_describe_run(run, None), "reason": reason} for run, reason in sweep.skipped],
    }
    results["groups"], results["comparisons"] = _grouped(task, runs, scores, results["runs"])
    results["records"] = RECORDS_NAME
    with space_needed(store.folder), write_atomically(store.folder) as staging:
        _write_archives(sweep, store, num_batches, archives, staging)
        pq.write_table(table, staging / RECORDS_NAME, compression="zstd")
        (staging / RESULTS_NAME).write_text(json.dumps(results, indent=1), encoding="utf-8")
        (staging / TABLE_NAME).write_text(markdown(results), encoding="utf-8")
    return results


def _archives(sweep: Sweep, num_samples: int) -> dict[str, str]:
    """Name of the archive of each run, if a server has the masks; a server takes whole splits only."""
    if sweep.task.is_scored or num_samples < len(sweep.split):
        return {}
    return {run.run_id: f"submission-{re.sub(r'[^A-Za-z0-9.=]+', '-', run.run_id)}.zip" for run in sweep.runs}


def _write_archives(
    sweep: Sweep, store: RecordStore, num_batches: int, archives: dict[str, str], folder: Path
) -> None:
    """One archive after the other: the masks of a run are read again for each, and never held together."""
    videos = [sample for sample in sweep.split if isinstance(sample, VideoSample)]
    for run_id, name in archives.items():
        with video_submission(folder / name, sweep.split.name, videos) as submission:
            for batch in store.read(num_batches):
                for run, video, expression, size, counts in batch["masks"]:
                    if run == run_id:
                        masks = (decode_mask({"size": size, "counts": frame}) for frame in counts)
                        submission.add(video, expression, masks)


def _scores(table: pa.Table, task: Task, runs: list[Run]) -> dict[str, Scores]:
    """By run; one seed each."""
    names = task.schema.names
    by_run = {}
    for run in runs:
        rows = table.filter(pc.equal(table["run_id"], run.run_id))
        columns = {name: rows[name].to_numpy()[None] for name in names[4:-1]}
        by_run[run.run_id] = Scores(columns, np.array(rows[names[1]].to_pylist()))
    return by_run


def _joined(parts: Sequence[Scores]) -> Scores:
    """Seeds of one setting together: as many sentences of each image, in the same order."""
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Scores(columns, parts[0].sample_ids)


def _measured(task: Task, scores: Scores, unpruned: Scores | None) -> dict[str, Any]:
    """Metrics, intervals over images or videos, and what is retained of the unpruned run."""
    found = {name: task.score(scores, name) for name in task.metrics}
    result: dict[str, Any] = {
        "metrics": {name: score.value for name, score in found.items()},
        "intervals": {name: _ends(statistics.bootstrap_interval(found[name])) for name in task.main},
        "retention": None,
        "retention_intervals": None,
    }
    if unpruned is not None and task.is_scored:
        full = {name: task.score(unpruned, name) for name in task.main}
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
    task: Task, runs: list[Run], scores: dict[str, Scores], described: list[dict[str, Any]]
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
        groups.append({**first, "num_seeds": len(places), **_measured(task, joined[key], unpruned), **costs})
    names = list(dict.fromkeys(run.name for run in runs if run.is_pruned))
    pairs = [(names[0], other) for other in names[1:]]
    pairs += [(other, "random") for other in names[1:] if other != "random" and "random" in names]
    comparisons = [
        _compared(task, method, baseline, size, metric, joined)
        for method, baseline in pairs
        for size in dict.fromkeys(run.size for run in runs if run.is_pruned)
        if (method, size) in joined and (baseline, size) in joined
        for metric in task.main
    ]
    return groups, comparisons


def _compared(
    task: Task, method: str, baseline: str, size: int | float, metric: str, joined: dict[tuple[str, Any], Scores]
) -> dict[str, Any]:
    first, second = (task.score(joined[name, size], metric) for name in (method, baseline))
    outcome = statistics.compare(first, second)
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


def _describe_model(sweep: Sweep) -> dict[str, Any]:
    model = sweep.segmenter.model
    return {
        "path_or_id": without_secrets(sweep.args.model) or "embedded",
        "class": type(model).__name__,
        "family": model.config.model_type,
        "commit_hash": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_visual_tokens": sweep.segmenter.num_visual_tokens,
    }


def _describe_dataset(sweep: Sweep, batches: list[dict[str, Any]], table: pa.Table) -> dict[str, Any]:
    """What was read, and whether it is the whole official split."""
    split = sweep.split
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
        "source": without_secrets(split.source),
        "kind": sweep.task.kind,
        "protocol": sweep.args.protocol,
        f"num_{sweep.task.kind}": sums["samples"],
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
    """Tokens, milliseconds per image or video, memory. Shared stages count in full: it is what the run takes alone."""
    count = sum(batch["num_samples"] for batch in batches)
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
