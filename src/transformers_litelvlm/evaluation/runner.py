"""An evaluation from its options to its results, in one process or several, from the start or from where it was."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from tqdm import tqdm
from transformers import AutoProcessor
from transformers.utils import logging

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.data.loading import load_split
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.measuring import measure_batch
from transformers_litelvlm.evaluation.provenance import versions, weights_digest
from transformers_litelvlm.evaluation.records import RecordStore
from transformers_litelvlm.evaluation.report import write_report
from transformers_litelvlm.evaluation.runs import Run, plan_runs
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import AutoModelForReferringSegmentation


logger = logging.get_logger(__name__)

# Options that say where, in what portions and what to do on trouble, not what comes out.
NOT_IN_SETTINGS = ("output_dir", "on_unreadable")


def evaluate(args: EvaluationArguments) -> dict[str, Any]:
    """
    Runs a sweep, or what is missing of it, and writes `results.json`, `results.md` and `records.parquet`.

    The vision tower and SAM's encoder run once per image, whatever the number of runs. Images are processed one at a
    time and, on the CPU, by one thread per process: the number of threads, and what an image is batched with, would
    change the last bits of its result. Batches are dealt to the processes of `accelerate launch` in turn.

    Args:
        args: The options.

    Returns:
        The content of `results.json`, on the main process; an empty dict on the others.

    Raises:
        OtherConfigurationError: The folder holds results of another configuration.
        UnreadableImageError: A picture cannot be read and `on_unreadable` is `"stop"`. What is done is saved.
        OSError: No space is left. What is done is saved.
        ValueError: An option is wrong, or the data is.
    """
    planned = plan_runs(args)
    state = _processes()
    with _one_thread(state.device):
        split = open_split(args)
        segmenter = _load(args, state.device)
        reasons = {run.run_id: segmenter.why_not(run) for run in planned}
        runs = [run for run in planned if reasons[run.run_id] is None]
        skipped = [(run, reasons[run.run_id]) for run in planned if reasons[run.run_id] is not None]
        for run, reason in skipped if state.is_main_process else ():
            logger.warning(f"{run.run_id} is left out: {reason}")
        if not runs or not len(split):
            raise ValueError(
                "There is nothing to run: no image, or none of the `methods` reaches any of the `budgets`."
            )
        store = RecordStore(args.output_dir)
        with state.main_process_first():
            store.claim({**_settings(args, segmenter.model), "num_images": len(split)})
        num_images = len(split) if args.max_images is None else min(args.max_images, len(split))
        batches = [
            range(start, min(start + args.batch_size, num_images)) for start in range(0, num_images, args.batch_size)
        ]
        _fill(store, split, segmenter, runs, batches, args, state)
        state.wait_for_everyone()
        if not state.is_main_process:
            return {}
        return write_report(args, store, len(batches), split, segmenter, runs, skipped, state.num_processes)


def open_split(args: EvaluationArguments) -> ReferringSplit:
    """The data, by number."""
    # Generated scenes do not depend on how many there are.
    options: dict[str, Any] = (
        {"num_scenes": args.max_images} if args.dataset == "refshapes" and args.max_images else {}
    )
    return load_split(args.dataset, args.split, args.source, **options)


def _fill(
    store: RecordStore,
    split: ReferringSplit,
    segmenter: SweepSegmenter,
    runs: list[Run],
    batches: list[range],
    args: EvaluationArguments,
    state: PartialState,
) -> None:
    """Makes the batches of this process that are not there yet."""
    done = store.done()
    ious: dict[str, list[float]] = {}
    with tqdm(total=len(batches), initial=len(done), unit="batch", disable=not state.is_main_process) as bar:
        for number in range(state.process_index, len(batches), state.num_processes):
            if number in done:
                continue
            batch = measure_batch([(index, split[index]) for index in batches[number]], segmenter, runs, args)
            store.write(number, asdict(batch))
            for run_id, *_, iou, _ in batch.rows:
                ious.setdefault(run_id, []).append(iou)
            bar.set_postfix_str(
                "gIoU " + ", ".join(f"{run_id} {np.mean(ious[run_id]):.3f}" for run_id in list(ious)[:4])
            )
            bar.update(len(store.done()) - bar.n)  # of all processes


def _processes() -> PartialState:
    """The processes that were launched together."""
    # Unless it is told, accelerate does not see the processes of torchrun where there is no accelerator.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # The first process may be done hours before the last.
    return PartialState(cpu=on_cpu, timeout=datetime.timedelta(days=7))


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU, as many threads for every number of processes, namely one: another number rounds differently."""
    num_threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _load(args: EvaluationArguments, device: torch.device) -> SweepSegmenter:
    path = args.model or DEFAULT_CHECKPOINT
    model, loading = AutoModelForReferringSegmentation.from_pretrained(path, dtype="auto", output_loading_info=True)
    if missing := sorted(loading["missing_keys"]):
        # Upstream warns and goes on with random numbers.
        raise ValueError(f"The weights in {path} lack {len(missing)} parameters, the first is {missing[0]}.")
    processor = AutoProcessor.from_pretrained(path)
    return SweepSegmenter(model.to(device).eval(), processor, joint_dialogue=args.protocol == "glamm")


def _settings(args: EvaluationArguments, model: Any) -> dict[str, Any]:
    """Everything that records depend on."""
    options = {name: value for name, value in asdict(args).items() if name not in NOT_IN_SETTINGS}
    weights = {"weights": weights_digest(model), "dtype": str(model.dtype), "device": model.device.type}
    return {**options, "layout": model.config.pruning_config.to_dict(), **weights, "versions": versions()}
