"""Measured results for machines: `model-index` in a card's YAML, and entries of the Hub's `.eval_results` folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import yaml_dump

from transformers_litelvlm.hub.results import CardError, MeasuredGroup, MeasuredResults, kept_tokens


# Type, one of the Hub's, and name.
_TASKS = {
    "images": ("image-segmentation", "referring segmentation"),
    "videos": ("mask-generation", "referring video segmentation"),
}
# In the arguments of a metric: that the entry is ours, and may be replaced by newer results.
_MARK = "measured_with"
# A block of top-level YAML: the line of the key, then what is indented, a list item or empty.
_MODEL_INDEX = re.compile(r"^model-index:.*\n(?:(?:[ \t-].*)?\n)*", re.MULTILINE)


def eval_results(results: MeasuredResults) -> list[EvalResult]:
    """The metrics of every group as entries of `model-index`; settings and intervals are in `metric_args`."""
    dataset = results.dataset
    task_type, task_name = _TASKS[results.kind]
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=hub_dataset(results) or dataset["name"],
            dataset_name=dataset["name"],
            dataset_split=dataset["split"],
            dataset_revision=dataset.get("revision"),
            metric_type=metric,
            metric_name=f"{name}, {_setting(results, group)}",
            metric_value=group.metrics[metric],
            metric_args=_arguments(results, group, metric),
        )
        for group in results.groups
        for metric, name in results.metrics.items()
    ]


def eval_result_entries(results: MeasuredResults, task_id: str) -> dict[str, EvalResultEntry]:
    """Entries for the `.eval_results` folder of a model repository: file name -> gIoU, or J&F, of a group.

    The Hub shows them where the data set is a registered benchmark; `task_id` is the id of a task in its `eval.yaml`.
    Every variant has a file of its own, with its settings in `notes`.

    Raises:
        CardError: if the data are not from a data set on the Hub.
    """
    dataset_id = hub_dataset(results)
    if dataset_id is None:
        source = results.dataset.get("source")
        raise CardError(f"{results.file}: `.eval_results` are for data sets on the Hub, not {source!r}")
    entries: dict[str, EvalResultEntry] = {}
    metric, metric_name = next(iter(results.metrics.items()))
    for group in results.groups:
        notes = f"{metric_name}, {_setting(results, group)}"
        name = re.sub(r"[^a-z0-9]+", "_", f"{dataset_id} {task_id} {notes}".lower()).strip("_")
        name += f"_{len(entries)}" * (f"{name}.yaml" in entries)  # options that differ in a sign
        entries[f"{name}.yaml"] = EvalResultEntry(
            dataset_id=dataset_id,
            task_id=task_id,
            value=group.metrics[metric],
            dataset_revision=results.dataset.get("revision"),
            date=results.environment.get("date"),
            notes=notes,
        )
    return entries


def hub_dataset(results: MeasuredResults) -> str | None:
    """Id of the data set on the Hub, if the data came from there."""
    source = results.dataset.get("source")
    return source if isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) else None


def describe(group: MeasuredGroup, with_layout: bool = True) -> str:
    """Method with what is not its default: `litelvlm, context_share=0.5, reference order, compact positions`."""
    parts = [group.method, *(f"{name}={value}" for name, value in group.method_options.items() if value is not None)]
    parts += [layout] if with_layout and (layout := describe_layout(group)) else []
    if group.num_seeds > 1:
        parts.append(f"mean of {group.num_seeds} seeds")
    return ", ".join(parts)


def describe_layout(group: MeasuredGroup) -> str:
    """`reference order, compact positions`; nothing for the unpruned model."""
    layout = {"order": group.token_order, "positions": group.position_ids}
    return ", ".join(f"{value} {name}" for name, value in layout.items() if value and group.method != "none")


def _setting(results: MeasuredResults, group: MeasuredGroup) -> str:
    return f"{describe(group)}, {kept_tokens(group, results.model.get('num_visual_tokens'))} visual tokens"


def replace_model_index(
    text: str, model_name: str, results: Sequence[EvalResult], former_names: Sequence[str] = ()
) -> str:
    """The card `text` with `results` in place of those that an earlier call wrote; everything else remains as it is.

    Args:
        text: of the whole card, with `\n` as line break.
        model_name: for a card whose `model-index` does not name the model yet, or has one of `former_names`.
        results: may be empty.

    Raises:
        CardError: if the metadata of the card are not valid, or `model-index` is not laid out as a block.
    """
    metadata = _read_metadata(text)
    try:
        [index] = metadata.pop("model-index", None) or [{"name": model_name, "results": []}]
        for result in index["results"]:
            result["metrics"] = [metric for metric in result["metrics"] if _MARK not in (metric.get("args") or {})]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CardError("`model-index` at the top of the card is not valid: remove it by hand") from error
    index["name"] = model_name if index["name"] in former_names else index["name"]
    [new] = eval_results_to_model_index(index["name"], list(results))
    index["results"] = [result for result in index["results"] if result["metrics"]] + new["results"]
    block = yaml_dump({"model-index": [index]}, sort_keys=False) if index["results"] else ""
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        return f"---\n{block}---\n{text}" if block else text
    own = _MODEL_INDEX.sub("", f"{match[2]}\n".lstrip("\n"))
    changed = f"{match[1]}{own}{block}".rstrip("\n") + text[match.start(3) :]
    written = _read_metadata(changed)
    written.pop("model-index", None)
    if written != metadata:
        raise CardError("`model-index` of the card is not laid out as a block of its own: remove it by hand")
    return changed


def _read_metadata(text: str) -> dict[str, Any]:
    """The metadata of a card, after the checks of huggingface_hub."""
    try:
        ModelCard(text)
        match = REGEX_YAML_BLOCK.search(text)
        return (yaml.safe_load(match[2]) if match else None) or {}
    except Exception as error:  # somebody's file: it makes the libraries raise all kinds
        reason = " ".join(str(error).split())
        raise CardError(f"the metadata at the top of the card are not valid: {reason}") from error


def _arguments(results: MeasuredResults, group: MeasuredGroup, metric: str) -> dict[str, Any]:
    arguments = {
        "method": group.method,
        "method_options": group.method_options or None,
        "budget": group.budget,
        "retention_ratio": group.retention_ratio,
        "token_order": group.token_order,
        "position_ids": group.position_ids,
        "num_seeds": group.num_seeds,
        "interval_95": list(group.intervals[metric]),
        "retention": group.retention.get(metric),
        "protocol": results.dataset.get("protocol"),
        "num_sentences": results.dataset["num_expressions"],
        _MARK: f"transformers_litelvlm {results.environment.get('transformers_litelvlm', '')}".strip(),
    }
    return {name: value for name, value in arguments.items() if value is not None}
