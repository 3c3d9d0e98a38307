"""`results.json`, `results.md` and `records.parquet` from the records of all batches."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data.masks import decode_mask
from transformers_litelvlm.data.samples import VideoSample
from transformers_litelvlm.data.splits import CountReport, ReferringSplit, SplitCounts
from transformers_litelvlm.evaluation import statistics
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.provenance import describe_model, environment, without_secrets
from transformers_litelvlm.evaluation.records import RecordStore, space_needed, to_table
from transformers_litelvlm.evaluation.runs import Run, sized
from transformers_litelvlm.evaluation.stopwatch import STAGES
from transformers_litelvlm.evaluation.submissions import video_submission
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.evaluation.tasks import COSTS, Task
from transformers_litelvlm.hub.markdown import templates
from transformers_litelvlm.hub.results import METRICS, SCHEMA
from transformers_litelvlm.pruning import resolve_budget
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import to_json, write_atomically


with needs_extra("eval", "An evaluation"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq


RECORDS_NAME, RESULTS_NAME, TABLE_NAME = "records.parquet", "results.json", "results.md"
METRIC_NAMES = {**METRICS["images"], **METRICS["videos"]}
# Metrics with a column of their own beside those with intervals.
EXTRA_METRICS = {"precision@0.5": "P@0.5", "box_accuracy@0.5": "box accuracy"}
# In `flags` of a record.
FLAGS = {
    "empty_prediction": "the predicted mask is empty, which counts as IoU 0 unless the target is empty, too",
    "empty_target": "nothing in the picture is meant by it, says the data",
    "unreadable_image": "its picture cannot be read, which counts as IoU 0",
}
TEMPLATES = templates(Path(__file__).parent, trim_blocks=True)


class Sweep(NamedTuple):
    """What was measured: the options and what they came to; `skipped` runs, which are impossible, with the reason."""

    args: EvaluationArguments
    task: Task
    split: ReferringSplit
    segmenter: SweepSegmenter
    runs: list[Run]
    skipped: list[tuple[Run, str]]
    num_processes: int  # of this launch
    command: str | None  # that was typed


def write_report(sweep: Sweep, store: RecordStore, num_batches: int) -> dict[str, Any]:
    """Put the batches together and write the files, all or none; returns the content of `results.json`."""
    task, runs = sweep.task, sweep.runs
    rows, costs, counts = [], [], []
    # Without its masks: they are large, and needed at the end only.
    for batch in store.read(num_batches, task.check_of(runs, sweep.args.protocol)):
        rows += batch["rows"]
        costs += batch["costs"]
        counts.append(batch["counts"])
    # By run, then in the order of the data: for a reader, and for compression.
    order = {run.run_id: place for place, run in enumerate(runs)}
    table = to_table(sorted(rows, key=lambda row: order[row[0]]), task.schema, task.key)
    dataset = _describe_dataset(sweep, counts, table)
    archives = _archives(sweep, dataset[f"num_{task.kind}"])
    measured = MeasuredRuns(sweep, table, pa.Table.from_pylist(costs, schema=COSTS))
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "model": describe_model(sweep.args, sweep.segmenter.model),
        "dataset": dataset,
        "settings": {name: without_secrets(value) for name, value in asdict(sweep.args).items()},
        "environment": environment(sweep.args, sweep.segmenter.model, sweep.num_processes, sweep.command),
        "runs": [{**measured.result([run]), **archives.get(run.run_id, {})} for run in runs],
        "skipped": [{**_describe_run(run, None), "reason": reason} for run, reason in sweep.skipped],
        "groups": [],
        "comparisons": measured.comparisons(),
        "records": RECORDS_NAME,
    }
    for members in measured.groups.values():
        result = {**measured.result(members), **archives.get(members[0].run_id, {}), "num_seeds": len(members)}
        results["groups"].append({name: value for name, value in result.items() if name not in ("run_id", "seed")})
    with space_needed(store.folder), write_atomically(store.folder) as staging:
        _write_archives(sweep, store, num_batches, archives, staging)
        pq.write_table(table, staging / RECORDS_NAME, compression="zstd")
        (staging / RESULTS_NAME).write_text(to_json(results, indent=1), encoding="utf-8")
        (staging / TABLE_NAME).write_text(_page(results), encoding="utf-8")
    return results


class MeasuredRuns:
    """Results of runs, alone and in groups.

    Attributes:
        groups: by method and budget, the runs that differ in nothing but their seed.
    """

    def __init__(self, sweep: Sweep, records: pa.Table, costs: pa.Table) -> None:
        self.task, self.runs, self.costs = sweep.task, sweep.runs, costs
        self.base_pruning = sweep.segmenter.base_pruning
        self._records = {run.run_id: records.filter(pc.equal(records["run_id"], run.run_id)) for run in self.runs}
        self.groups: dict[tuple[str, Any], list[Run]] = {}
        for run in self.runs:
            self.groups.setdefault((run.name, run.size), []).append(run)

    def score(self, members: list[Run], metric: str) -> statistics.RatioOfSums:
        """A metric of runs together, which ask as many sentences of each image in the same order."""
        return self.task.score([self._records[run.run_id] for run in members], metric)

    def result(self, members: list[Run]) -> dict[str, Any]:
        """Setting, metrics, intervals over images or videos, what is retained of the unpruned model, and costs."""
        task = self.task
        found = {name: self.score(members, name) for name in task.metrics}
        result: dict[str, Any] = {
            **_describe_run(members[0], self.base_pruning),
            "metrics": {name: score.value for name, score in found.items()},
            "intervals": {name: _ends(statistics.bootstrap_interval(found[name])) for name in task.main},
            "retention": None,
            "retention_intervals": None,
            **self._cost(members),
        }
        # The unpruned runs that asked the same questions.
        group = next((runs for runs in self.groups.values() if not runs[0].is_pruned), [])
        unpruned = [run for run in group if run.seed in (None, *(member.seed for member in members))]
        full = {name: self.score(unpruned, name) for name in (task.main if unpruned else ())}
        if full and all(score.value > 0 for score in full.values()):
            retained = {name: statistics.retention(found[name], full[name]) for name in full}
            result["retention"] = {name: interval.value for name, interval in retained.items()}
            result["retention_intervals"] = {name: _ends(interval) for name, interval in retained.items()}
        return result

    def comparisons(self) -> list[dict[str, Any]]:
        """The first pruned method against the others, and these against `random`."""
        names = list(dict.fromkeys(run.name for run in self.runs if run.is_pruned))
        pairs = [(names[0], other) for other in names[1:]]
        pairs += [(other, "random") for other in names[1:] if other != "random" and "random" in names]
        return [
            self._compared(method, baseline, size, metric)
            for method, baseline in pairs
            for size in dict.fromkeys(run.size for run in self.runs if run.is_pruned)
            if (method, size) in self.groups and (baseline, size) in self.groups
            for metric in self.task.main
        ]

    def _compared(self, method: str, baseline: str, size: int | float | None, metric: str) -> dict[str, Any]:
        first, second = (self.score(self.groups[name, size], metric) for name in (method, baseline))
        outcome = statistics.compare(first, second)
        return {
            "method": method,
            "baseline": baseline,
            **sized(size),
            "metric": metric,
            "difference": outcome.difference.value,
            "interval": _ends(outcome.difference),
            "p_value": outcome.p_value,
            "test": "permutation",
        }

    def _cost(self, members: list[Run]) -> dict[str, Any]:
        """Means per image or video; the most memory. Shared stages count in full: it is what a run takes alone."""
        ids = pa.array([run.run_id for run in members])
        costs = self.costs.filter(pc.is_in(self.costs["run_id"], ids))
        times = dict.fromkeys((*STAGES, "total"))
        if costs.num_rows:  # a stage that a run does without is in none of its rows
            times = {stage: pc.mean(costs[stage]).as_py() or 0.0 for stage in STAGES}
            times["total"] = sum(times.values())
        return {
            "num_kept_mean": pc.mean(costs["num_kept"]).as_py(),
            "timings_ms": times,
            "peak_memory_bytes": pc.max(costs["peak_memory"]).as_py(),
        }


def _page(results: dict[str, Any]) -> str:
    """The groups and comparisons of `results.json` in Markdown."""
    settings = {name: value for name, value in results["settings"].items() if name != "output_dir"}
    apart = ("hardware", "command", "third_party_methods")
    made_by = {name: value for name, value in results["environment"].items() if name not in apart}
    first = results["groups"][0]
    return TEMPLATES.get_template("results.md.jinja").render(
        results,
        main=list(first["intervals"]),
        extra=[name for name in EXTRA_METRICS if name in first["metrics"]],
        names=METRIC_NAMES | EXTRA_METRICS,
        flags=FLAGS,
        tokens=partial(_tokens, num_tokens=results["model"]["num_visual_tokens"]),
        time=_time,
        options=" ".join(f"{name}={value}" for name, value in settings.items()),
        made_by=", ".join(f"{name} {value}" for name, value in made_by.items() if value is not None),
    )


def describe_size(size: int | float | None, num_tokens: int | None) -> str:
    """A budget, a ratio or neither, of so many visual tokens: `48`, `48 (1/3)`, or `1/3` if the size of a picture
    decides; `144` or `all` of the unpruned model."""
    if not isinstance(size, float):
        return str(size or num_tokens or "all")
    near = Fraction(size).limit_denominator(9)
    share = str(near) if abs(float(near) - size) < 5e-4 else f"{size:.4g}"  # 0.3333 is meant as a third
    return share if num_tokens is None else f"{resolve_budget(num_tokens, retention_ratio=size)} ({share})"


def _tokens(entry: dict[str, Any], num_tokens: int | None) -> str:
    """Visual tokens that a group or comparison keeps; of a group also the mean, where it is not what was asked for."""
    budget, ratio, kept = entry["budget"], entry["retention_ratio"], entry.get("num_kept_mean")
    text = describe_size(budget or ratio, num_tokens)
    asked = resolve_budget(num_tokens, budget, ratio) if num_tokens else budget
    if not kept or asked in (None, kept):
        return text
    return f"{text}, kept {kept:.4g}"


def _time(group: dict[str, Any], stage: str) -> str:
    """Milliseconds of a stage; `-` where there is none: an unpruned model selects nothing, whatever the clock says."""
    is_pruned = group["budget"] is not None or group["retention_ratio"] is not None
    milliseconds = group["timings_ms"][stage]
    if stage == "selection" and not is_pruned:
        return "-"
    return "" if milliseconds is None else f"{milliseconds:.1f}"


def _archives(sweep: Sweep, num_samples: int) -> dict[str, dict[str, str]]:
    """`submission`, the archive of each run, if a server has the masks; a server takes whole splits only."""
    if sweep.task.is_scored or num_samples < len(sweep.split):
        return {}
    names = {run.run_id: re.sub(r"[^A-Za-z0-9.=]+", "-", run.run_id) for run in sweep.runs}
    return {run_id: {"submission": f"submission-{name}.zip"} for run_id, name in names.items()}


def _write_archives(
    sweep: Sweep, store: RecordStore, num_batches: int, archives: dict[str, dict[str, str]], folder: Path
) -> None:
    """One archive after the other: the masks of a run are read again for each, and never held together."""
    videos = [sample for sample in sweep.split if isinstance(sample, VideoSample)]
    for run_id, archive in archives.items():
        with video_submission(folder / archive["submission"], sweep.split.name, videos) as submission:
            for batch in store.read(num_batches):
                for run, video, expression, size, counts in batch["masks"]:
                    if run == run_id:
                        masks = (decode_mask({"size": size, "counts": frame}) for frame in counts)
                        submission.add(video, expression, masks)


def _ends(interval: statistics.Interval) -> list[float]:
    return [interval.low, interval.high]


def _describe_dataset(sweep: Sweep, counts: list[dict[str, int | None]], table: pa.Table) -> dict[str, Any]:
    """What was read, and whether it is the whole official split."""
    split = sweep.split
    columns = {name: [part[name] for part in counts] for name in counts[0]}
    sums = {name: None if None in column else sum(column) for name, column in columns.items()}
    report = CountReport(f"{split.name} {split.split}", SplitCounts(**sums), split.official)
    flags = Counter(flag for flags in table["flags"].to_pylist() for flag in flags)
    first_run = pc.equal(table["run_id"], table["run_id"][0])
    return {
        "name": split.name,
        "split": split.split,
        "source": without_secrets(split.source),
        "kind": sweep.task.kind,
        "protocol": sweep.args.protocol,
        # Several rows may be about one image, and what is said of images (intervals, tests) counts it once.
        f"num_{sweep.task.kind}": pc.count_distinct(table[f"{sweep.task.kind[:-1]}_id"]).as_py(),
        "num_expressions": pc.sum(first_run).as_py(),
        "official_counts": None if report.version is None else asdict(report.version),
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
