"""An analysis from its options to its files, in one process or several, from the start or from where it was."""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.figures import FIGURE_NAMES
from transformers_litelvlm.analysis.measuring import Analyst, budget_of, sentences_of_others
from transformers_litelvlm.analysis.report import MEASUREMENTS_NAME, PAGE_NAME, RESULTS_NAME, write_report
from transformers_litelvlm.data.samples import ImageSample
from transformers_litelvlm.evaluation.measuring import named
from transformers_litelvlm.evaluation.records import RecordStore
from transformers_litelvlm.evaluation.runner import (
    make_batches,
    one_thread,
    open_split,
    processes,
    what_records_depend_on,
)
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.pruning import import_methods
from transformers_litelvlm.utils.files import check_output


def analyze(args: AnalysisArguments, command: str | None = None) -> dict[str, Any]:
    """Run an analysis, or what is missing of it, and write `analysis.json`, `report.md`, `measurements.parquet` and
    the figures.

    Images are processed one at a time and, on the CPU, by one thread per process, so that a result depends neither on
    the number of processes nor on interruptions.

    Args:
        args: the options.
        command: what was typed, for the report.

    Returns:
        The content of `analysis.json`, on the main process; an empty dict on the others.

    Raises:
        OtherConfigurationError: the folder holds results of another configuration.
        UnreadableImageError: an image cannot be read. What is done is saved.
        ValueError: an option is wrong, the data is, or the data are videos. What is wrong with an image names it.
    """
    import_methods(args.imports)
    check_output(args.output_dir, (MEASUREMENTS_NAME, RESULTS_NAME, PAGE_NAME, *FIGURE_NAMES))
    state = processes()
    with one_thread(state.device):
        split = open_split(args)
        model, processor = load_for_segmentation(args.model or DEFAULT_CHECKPOINT, device=state.device)
        model.requires_grad_(False)  # gradients are taken with respect to visual tokens alone
        segmenter = SweepSegmenter(model, processor)
        whole = segmenter.num_visual_tokens
        if whole is not None and (too_large := [size for size in args.budgets if budget_of(size, whole) >= whole]):
            raise ValueError(f"`budgets` {too_large} leave no choice: the model has {whole} visual tokens.")
        store = RecordStore(args.output_dir)
        with state.main_process_first():
            store.claim(what_records_depend_on(args, model, split))
        analyst = Analyst(segmenter, args, sentences_of_others(split))
        num_batches = make_batches(store, split, args, state, partial(_measure, analyst))
        state.wait_for_everyone()
        if not state.is_main_process:
            return {}
        return write_report(args, split, segmenter, store, num_batches, state.num_processes, command)


def _measure(analyst: Analyst, samples: list[Any]) -> tuple[dict[str, Any], str]:
    """What is saved of some samples."""
    content: dict[str, Any] = {"rows": [], "maps": []}
    for index, sample in samples:
        if not isinstance(sample, ImageSample):
            raise ValueError(f"`dataset` {analyst.args.dataset!r} has videos: an analysis is of images.")
        try:
            rows, maps = analyst.measure(index, sample)
        except ValueError as error:
            raise named(sample, error) from error
        content["rows"] += rows
        content["maps"] += maps
    return content, ""
