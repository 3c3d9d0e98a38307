"""An evaluation from its options to its results, in one process or several, from the start or from where it was."""

from __future__ import annotations

import datetime
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm
from transformers.utils import logging

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.loading import DATASETS, load_split
from transformers_litelvlm.data.refshapes import DEFAULT_NUM_SCENES
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation.arguments import DataArguments, EvaluationArguments
from transformers_litelvlm.evaluation.measuring import measure_batch
from transformers_litelvlm.evaluation.provenance import (
    third_party_methods,
    used_methods,
    versions,
    weights_digest,
    without_secrets,
)
from transformers_litelvlm.evaluation.records import RecordStore
from transformers_litelvlm.evaluation.report import (
    METRIC_NAMES,
    RECORDS_NAME,
    RESULTS_NAME,
    TABLE_NAME,
    Sweep,
    write_report,
)
from transformers_litelvlm.evaluation.runs import Run, plan_runs
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Task, choose_task
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.pruning import import_methods
from transformers_litelvlm.utils.files import check_output


logger = logging.get_logger(__name__)

# Options that say where, in what portions and what to do on trouble, not what comes out.
NOT_IN_SETTINGS = ("output_dir", "on_unreadable", "imports")


def evaluate(args: EvaluationArguments, command: str | None = None) -> dict[str, Any]:
    """Run a sweep, or what is missing of it, and write its files.

    These are `results.json`, `results.md` and `records.parquet`, and for videos whose masks are not public the file
    for the server.

    The vision tower and SAM's encoder run once per image or video, whatever the number of runs. Images are processed
    one at a time and, on the CPU, by one thread per process: the number of threads, and what an image is batched with,
    would change the last bits of its result. Batches are dealt to the processes of `accelerate launch` in turn.

    Args:
        args: the options.
        command: what was typed, for `results.json`.

    Returns:
        The content of `results.json`, on the main process; an empty dict on the others.

    Raises:
        OtherConfigurationError: the folder holds results of another configuration.
        UnreadableImageError: a picture cannot be read and `on_unreadable` is `"stop"`. What is done is saved.
        OSError: no space is left. What is done is saved.
        ValueError: an option is wrong, the data is, or the model is not for such data; or an import
            of `imports` fails.
    """
    import_methods(args.imports)
    planned = plan_runs(args)
    check_output(args.output_dir, (RECORDS_NAME, RESULTS_NAME, TABLE_NAME))
    state = processes()
    with one_thread(state.device):
        split = open_split(args)
        segmenter = load_segmenter(args, state.device)
        task = choose_task(split, args, segmenter.takes_videos, segmenter.writes_boxes)
        reasons = {run.run_id: segmenter.why_not(run) for run in planned}
        runs = [run for run in planned if reasons[run.run_id] is None]
        skipped = [(run, reasons[run.run_id]) for run in planned if reasons[run.run_id] is not None]
        for run, reason in skipped if state.is_main_process else ():
            logger.warning(f"{run.run_id} is left out: {reason}")
        if not runs:
            raise ValueError("There is nothing to run: none of the `methods` reaches any of the `budgets`.")
        store = RecordStore(args.output_dir)
        with state.main_process_first():
            store.claim(what_records_depend_on(args, segmenter.model, split))
        num_batches = make_batches(store, split, args, state, _progress(segmenter, runs, args, task))
        state.wait_for_everyone()
        if not state.is_main_process:
            return {}
        sweep = Sweep(args, task, split, segmenter, runs, skipped, state.num_processes, command)
        return write_report(sweep, store, num_batches)


def open_split(args: DataArguments, by_number: bool = False) -> ReferringSplit:
    """The data, read while they are needed if that saves more than it costs.

    Parquet files on this machine are read in place instead of being copied into the cache of `datasets` first. A set
    on the Hub is downloaded, once for all processes and later evaluations; if only its first images are wanted, these
    alone are fetched.

    Args:
        by_number: any image will be asked for, by its number, whatever `max_images` says: nothing is streamed.
    """
    options: dict[str, Any] = {}
    if by_number:
        return load_split(args.dataset, args.split, args.source)
    if args.dataset == "refshapes" and args.max_images:  # scenes do not depend on how many there are
        options["num_scenes"] = min(args.max_images, DEFAULT_NUM_SCENES.get(args.split, args.max_images))
    info = DATASETS.get(args.dataset)
    if info is not None and "streaming" in inspect.signature(info.open).parameters:
        source = Path(args.source or "")
        if args.source and source.exists():
            options["streaming"] = source.suffix not in (".json", ".jsonl")
        else:
            options["streaming"] = args.max_images is not None
    return load_split(args.dataset, args.split, args.source, **options)


def make_batches(
    store: RecordStore,
    split: ReferringSplit,
    args: DataArguments,
    state: PartialState,
    measure: Callable[[list[Any]], tuple[dict[str, Any], str]],
) -> int:
    """Make the batches of this process that are not there yet; returns the number of all batches.

    Args:
        measure: gets samples with their numbers; returns what is saved of them, and how it stands, for the progress.
    """
    done = store.done()

    def is_mine(number: int) -> bool:
        return number % state.num_processes == state.process_index and number not in done

    total = None if split.is_streamed else math.ceil(min(len(split), args.max_images or len(split)) / args.batch_size)
    number = -1
    with tqdm(total=total, initial=len(done), unit="batch", disable=not state.is_main_process) as bar:
        for number, samples in split.batches(args.batch_size, args.max_images, is_mine):
            if samples is None:
                continue
            content, progress = measure(samples)
            store.write(number, content)
            bar.set_postfix_str(progress)
            bar.update(len(store.done()) - bar.n)  # of all processes
    return number + 1


def _progress(
    segmenter: SweepSegmenter, runs: list[Run], args: EvaluationArguments, task: Task
) -> Callable[[list[Any]], tuple[dict[str, Any], str]]:
    """Measures samples, and says the means of the first settings so far, over all seeds: they run side by side."""
    column = task.schema.get_field_index(task.progress)
    shown = {run.run_id: run.run_id if run.seed is None else run.run_id.rpartition("#")[0] for run in runs}
    values: dict[str, list[float]] = {}

    def measure(samples: list[Any]) -> tuple[dict[str, Any], str]:
        batch = measure_batch(samples, segmenter, runs, args, task)
        for row in batch.rows:
            values.setdefault(shown[row[0]], []).append(row[column])
        means = ", ".join(f"{name} {np.mean(values[name]):.3f}" for name in list(values)[:4])
        return asdict(batch), f"{METRIC_NAMES[task.main[0]]} {means}" if task.is_scored else ""

    return measure


def processes() -> PartialState:
    """The processes that were launched together."""
    # Unless it is told, accelerate does not see the processes of torchrun if there is no accelerator.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    with _libraries_print_to_stderr() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else nullcontext():
        # The first process may be done hours before the last.
        return PartialState(cpu=on_cpu, timeout=datetime.timedelta(days=7))


@contextmanager
def _libraries_print_to_stderr() -> Iterator[None]:
    """Gloo of torch 2.10 writes to standard output that it is connected, from C++; results are on standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU, as many threads for every number of processes, namely one: another number rounds differently."""
    num_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def load_segmenter(args: EvaluationArguments, device: torch.device) -> SweepSegmenter:
    """The model of the options, ready for a sweep."""
    model, processor = load_for_segmentation(
        args.model or DEFAULT_CHECKPOINT, quantization=args.quantization, device=device, mask_model=args.mask_model
    )
    return SweepSegmenter(model, processor, joint_dialogue=args.protocol == "glamm")


def what_records_depend_on(
    args: DataArguments, model: Any, split: ReferringSplit, leave_out: Sequence[str] = NOT_IN_SETTINGS
) -> dict[str, Any]:
    """Everything that records depend on, but for the options of these names."""
    options = {name: without_secrets(value) for name, value in asdict(args).items() if name not in leave_out}
    # Data that changed under the same name: by their number, or if that is not known, by the size of the file.
    source = Path(args.source or "")
    data = {
        "num_samples": None if split.is_streamed else len(split),
        "source_bytes": source.stat().st_size if args.source and source.is_file() else None,
    }
    layout = model.config.pruning_config.to_dict()
    for name in ("presets", "litelvlm_version"):  # a calibration writes them
        del layout[name]
    weights = {"weights": weights_digest(model), "dtype": str(model.dtype), "device": model.device.type}
    depends = {**options, **data, "layout": layout, **weights, "versions": versions()}
    # Code that can change while its path and its version do not.
    digests = {name: known["sha256"] for name, known in third_party_methods(used_methods(args, model)).items()}
    return {**depends, "third_party_methods": digests} if digests else depends
