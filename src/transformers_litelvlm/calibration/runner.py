"""A calibration from its options to its presets, in one process or several, from the start or from where it was."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from tqdm import tqdm
from transformers.utils import logging

from transformers_litelvlm.calibration.arguments import BASELINE, PUBLISHED, CalibrationArguments
from transformers_litelvlm.calibration.candidates import Candidate, list_candidates
from transformers_litelvlm.calibration.choice import choose
from transformers_litelvlm.calibration.halving import Level, Rules, halve, round_sizes
from transformers_litelvlm.calibration.report import PAGE_NAME, REPORT_NAME, Outcome, describe, write_report
from transformers_litelvlm.calibration.writing import check_checkpoint, write_presets
from transformers_litelvlm.data.refcoco import SPLIT_BY
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.measuring import measure_batch
from transformers_litelvlm.evaluation.records import RecordStore, to_table
from transformers_litelvlm.evaluation.report import RESULTS_NAME
from transformers_litelvlm.evaluation.runner import (
    NOT_IN_SETTINGS,
    evaluate,
    load_segmenter,
    one_thread,
    open_split,
    processes,
    what_records_depend_on,
)
from transformers_litelvlm.evaluation.runs import Run, plan_runs
from transformers_litelvlm.evaluation.statistics import RatioOfSums
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Task, choose_task
from transformers_litelvlm.pruning import import_methods
from transformers_litelvlm.utils.files import check_output


logger = logging.get_logger(__name__)

VALIDATION_NAME, TEST_NAME = "validation", "test"
# What the records of the validation split do not depend on.
_OF_THE_CHOICE = ("test_split", "test_images", "smallest_difference", "write")


def calibrate(args: CalibrationArguments, command: str | None = None) -> dict[str, Any]:
    """Choose a setting for every preset, confirm it, and write `calibration.json` and `calibration.md`.

    Images are processed as in an evaluation, so a result depends on neither batches nor processes. Records are saved
    batch by batch. The test split is read after everything is chosen, and not at all if nothing is.

    Args:
        args: the options. With `write`, the checkpoint is changed at the end: its presets and its card, or nothing.
        command: what was typed, for the report.

    Returns:
        The content of `calibration.json`, on the main process; an empty dict on the others.

    Raises:
        OtherConfigurationError: the folder holds a calibration of another configuration.
        UnreadableImageError: a picture cannot be read and `on_unreadable` is `"stop"`. What is done is saved.
        OSError: no space is left. What is done is saved.
        ValueError: an option is wrong, the data is, or the model is not for such data; or the checkpoint cannot be
            written into.
    """
    import_methods(args.imports)
    check_output(args.output_dir, (REPORT_NAME, PAGE_NAME))
    folder = check_checkpoint(args.model) if args.write else None
    state = processes()
    chosen, described = validate(args, state)
    confirmed = confirm(args, chosen, command)
    if not state.is_main_process:
        return {}
    content = write_report(args, described, confirmed, command)
    if folder is not None:
        for line in write_presets(folder, content, Path(args.output_dir, TEST_NAME, RESULTS_NAME)):
            logger.warning(line)
    return content


def validate(args: CalibrationArguments, state: PartialState) -> tuple[dict[str, Candidate | None], dict[str, Any]]:
    """Measure the candidates on the validation split, and choose.

    Returns:
        The candidate of each level, `None` if nothing could be told apart; and all that was found, as
        `calibration.json` has it.
    """
    if Path(args.source or "").is_file() and args.dataset not in SPLIT_BY:
        raise ValueError(
            f"`source` {args.source} is one file, which is read as a whole, so `split` and `test_split` would be the "
            "same data. Give a folder with a file for each, such as validation.jsonl and test.jsonl."
        )
    with one_thread(state.device):
        split = open_split(args, by_number=True)
        open_split(dataclasses.replace(args, split=args.test_split, test_split=args.split, max_images=1))  # exists
        segmenter = load_segmenter(args, state.device)
        task = choose_task(split, args, segmenter.takes_videos, segmenter.writes_boxes)
        metric = _metric(args, task, split)
        candidates = list_candidates(args.methods, args.layouts, segmenter.model.config)
        groups, skipped = _possible_runs(args, candidates, segmenter)
        order = np.random.default_rng(args.sampling_seed).permutation(len(split))[: args.max_images].tolist()
        sizes = round_sizes(args.first_images, len(order))
        levels = {}
        for level, size in args.levels.items():
            names = [candidate.name for candidate in candidates if (candidate.name, size) in groups]
            levels[level] = Level(names, BASELINE, Rules.of(args.confidence, len(names), len(sizes)))
            if not names or (BASELINE, size) not in groups:
                raise ValueError(f"`budgets`: none of the `methods` reaches {size} visual tokens ({level}).")
        store = RecordStore(Path(args.output_dir, VALIDATION_NAME))
        with state.main_process_first():
            leave_out = (*NOT_IN_SETTINGS, *_OF_THE_CHOICE)
            store.claim(what_records_depend_on(args, segmenter.model, split, leave_out))
        with tqdm(total=len(order), unit="image", disable=not state.is_main_process) as bar:
            measure = Measurement(args, split, segmenter, task, metric, groups, store, state, order, bar)
            halve(levels, sizes, measure)
        outcomes = _outcomes(args, levels, candidates)
        described = describe(args, split, segmenter, metric, sizes, candidates, skipped, outcomes)
    return {name: outcome.chosen for name, outcome in outcomes.items()}, described


def confirm(
    args: CalibrationArguments, candidates: dict[str, Candidate | None], command: str | None
) -> dict[str, Any] | None:
    """The chosen settings, the published default, `random` and the unpruned model on the test split; the content of
    their `results.json`."""
    chosen = {level: candidate for level, candidate in candidates.items() if candidate is not None}
    if not chosen:
        return None
    names = dict.fromkeys(["none", PUBLISHED, BASELINE, *(candidate.name for candidate in chosen.values())])
    inherited = {field.name: getattr(args, field.name) for field in dataclasses.fields(EvaluationArguments)}
    changes = {
        "output_dir": str(Path(args.output_dir, TEST_NAME)),
        "split": args.test_split,
        "methods": list(names),
        "budgets": [args.levels[level] for level in chosen],
        "max_images": args.test_images,
    }
    return evaluate(EvaluationArguments(**{**inherited, **changes}), command)


def _metric(args: CalibrationArguments, task: Task, split: ReferringSplit) -> str:
    if not task.is_scored:
        raise ValueError(f"{split.source} has no masks to compare with, so nothing can be chosen on it.")
    metric = args.metric or task.main[0]
    if metric not in task.metrics:
        raise ValueError(f"`metric` of {task.kind} must be one of {', '.join(task.metrics)}, got {metric!r}.")
    return metric


def _outcomes(args: CalibrationArguments, levels: dict[str, Level], candidates: list[Candidate]) -> dict[str, Outcome]:
    simplicity = {candidate.name: candidate.simplicity for candidate in candidates}
    by_name = {candidate.name: candidate for candidate in candidates}
    outcomes = {}
    for name, level in levels.items():
        choice = choose(level, simplicity, args.smallest_difference, args.confidence)
        outcomes[name] = Outcome(args.levels[name], level, choice, by_name.get(choice.chosen or ""))
    return outcomes


def _possible_runs(
    args: CalibrationArguments, candidates: list[Candidate], segmenter: SweepSegmenter
) -> tuple[dict[tuple[str, Any], list[Run]], list[tuple[Run, str]]]:
    """Runs by candidate and size, that differ in their seed alone; and what is impossible, with the reason."""
    planned = plan_runs(dataclasses.replace(args, methods=[*(each.name for each in candidates), BASELINE]))
    groups: dict[tuple[str, Any], list[Run]] = {}
    skipped = []
    for (name, size), runs in itertools.groupby(planned, key=lambda run: (run.name, run.size)):
        members = list(runs)
        reason = segmenter.why_not(members[0])
        if reason is None:
            groups[name, size] = members
        else:
            skipped.append((members[0], reason))
    return groups, skipped


@dataclass
class Measurement:
    """Scores of candidates on the first images of an order, from records that are made once and saved.

    The processes share the batches.
    """

    args: CalibrationArguments
    split: ReferringSplit
    segmenter: SweepSegmenter
    task: Task
    metric: str
    groups: dict[tuple[str, Any], list[Run]]
    store: RecordStore
    state: PartialState
    order: list[int]  # numbers of the images in the split
    bar: tqdm  # in images
    _num_images: int = 0
    _num_batches: int = 0
    _rows: dict[str, list[list[Any]]] = field(default_factory=dict)

    def __call__(self, asked: dict[str, list[str]], num_images: int) -> dict[str, dict[str, RatioOfSums]]:
        """See [`halve`]: what is asked only ever gets less."""
        groups = {
            level: {name: self.groups[name, self.args.levels[level]] for name in asked[level]} for level in asked
        }
        runs = [run for members in groups.values() for group in members.values() for run in group]
        first, size = self._num_batches, self.args.batch_size
        done = self.store.done()
        for start in range(self._num_images, num_images, size):
            numbers = self.order[start : min(start + size, num_images)]
            if self._num_batches % self.state.num_processes == self.state.process_index:
                self._make(self._num_batches, numbers, runs, done)
            self._num_batches += 1
        self._num_images = num_images
        self.state.wait_for_everyone()
        self._read(first, runs)
        return {
            level: {name: self._score(group) for name, group in members.items()} for level, members in groups.items()
        }

    def _make(self, batch: int, numbers: list[int], runs: list[Run], done: set[int]) -> None:
        if batch not in done:
            samples = [(number, self.split[number]) for number in numbers]
            measured = measure_batch(samples, self.segmenter, runs, self.args, self.task)
            self.store.write(batch, asdict(measured))
        self.bar.set_postfix_str(f"{len(runs)} runs")
        self.bar.update(len(numbers) * self.state.num_processes)

    def _read(self, first: int, runs: list[Run]) -> None:
        check = self.task.check_of(runs, self.args.protocol)
        for batch in self.store.read(self._num_batches, check, first):
            for row in batch["rows"]:
                self._rows.setdefault(row[0], []).append(row)

    def _score(self, group: list[Run]) -> RatioOfSums:
        tables = [to_table(self._rows[run.run_id], self.task.schema, self.task.key) for run in group]
        return self.task.score(tables, self.metric)
