"""What `litelvlm card` does: measured results go into the card of a checkpoint, for people and for machines."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id, yaml_dump
from transformers import AutoConfig

from transformers_litelvlm.hub.markdown import plain
from transformers_litelvlm.hub.measured import BEGIN, measured_presets, render_measured, replace_region
from transformers_litelvlm.hub.metadata import eval_result_entries, eval_results, hub_dataset, replace_model_index
from transformers_litelvlm.hub.model_card import CARD_NAME, UNKNOWN_TRAINING, render_saved_card
from transformers_litelvlm.hub.results import CardError, MeasuredResults, check_model, read_results
from transformers_litelvlm.utils.files import write_atomically


# Of the template, which has the name of a folder there: people's titles have spaces.
_TITLE = re.compile(r"^# (\S+)(, with visual-token pruning)$", re.MULTILINE)


def update_card(
    folder: str | os.PathLike,
    results: Sequence[str | os.PathLike],
    output: str | os.PathLike | None = None,
    any_name: bool = False,
    task_id: str | None = None,
    repo_id: str | None = None,
) -> list[str]:
    """Write measured results into the card of a checkpoint: its region between the marks, and `model-index`.

    In a card of `save_pretrained`, the sentence that nothing is known of a training becomes what trainer_state.json in
    the folder says of it. The rest of the card remains as it is. Without a card, one is made from the template.
    Results that an earlier call wrote are replaced. Nothing is written if anything is wrong.

    Args:
        folder: of the checkpoint.
        results: one or several results.json, of one data set each.
        output: where the card goes, `folder`/README.md by default. If this file exists, it is the card to update.
        any_name: accept results that name another folder or repository; class and number of tokens must still agree.
        task_id: also write `.eval_results` files beside the card, for this task in the `eval.yaml` of the data set.
        repo_id: where the checkpoint will be on the Hub; the title that `save_pretrained` wrote becomes its name.

    Returns:
        What was done, line by line.

    Raises:
        CardError: see [`read_results`], [`check_model`], [`replace_region`] and [`eval_result_entries`]; or `repo_id`
            is not one, or `output` does not end with .md.
    """
    folder = Path(folder)
    name = folder.resolve().name if repo_id is None else _checked(repo_id).rpartition("/")[2]
    output = folder / CARD_NAME if output is None else Path(output)
    if output.suffix.lower() != ".md":
        raise CardError(f"`output` {output}: a card is a file that ends with .md, and another would be lost")
    config = read_config(folder)
    num_tokens = config.num_visual_tokens
    measured = [read_results(path) for path in {Path(path).resolve(): path for path in results}.values()]
    for one in measured:
        check_model(one, folder, config, num_tokens, any_name)
    text, done = existing_card(folder, output, config)
    if BEGIN not in text:
        done += " (the results are at its end: move them, with their marks, to where you want them)"
    titles = [found[1] for found in _TITLE.finditer(text)][:1]
    card = with_results(text, measured, config, name, former=(folder.resolve().name, *titles))
    card = card.replace(UNKNOWN_TRAINING, describe_training(folder))
    if repo_id is not None:
        card = _TITLE.sub(lambda found: f"# {plain(name)}{found[2]}", card, count=1)
    entries = [entry for one in measured for entry in eval_results(one)]
    files: dict[str, Any] = {}
    for one in measured if task_id is not None else ():
        of_one = eval_result_entries(one, task_id)
        if files.keys() & of_one.keys():
            raise CardError(f"{one.file} has settings of a file before it: a task is about one split, give one file")
        files.update(of_one)
    with write_atomically(output.parent) as staging:
        line_break = "\r\n" if "\r\n" in text else "\n"
        Path(staging, output.name).write_text(card, encoding="utf-8", newline=line_break)
    if files:
        with write_atomically(output.parent / ".eval_results", one_run=True) as staging:
            for name, entry in files.items():
                content = yaml_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
                Path(staging, name).write_text(content, encoding="utf-8")
    lines = [f"{output}: {done}", *(_summary(one, config.pruning_config, num_tokens) for one in measured)]
    lines += [f"model-index: {len(entries)} figures", _about_entries(measured, files, task_id)]
    is_in_folder = output.parent.resolve() == folder.resolve()
    upload = f"upload it with: hf upload {repo_id} {shlex.quote(os.fspath(folder))}"
    return [*lines, *([upload] if repo_id and is_in_folder else [])]


def describe_training(folder: Path) -> str:
    """What trainer_state.json of a `Trainer` says, in a sentence, and a gap for what it does not say. Raises CardError
    for such a file that a `Trainer` did not write."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return UNKNOWN_TRAINING
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
        digits = ",.0f" if losses and losses[-1] > 1000 else ".3g"
        then = f"; the last loss that it logged is {losses[-1]:{digits}}" if losses else ""
        if not (state["global_step"] >= 0 and 0 <= state["epoch"] < math.inf):
            raise ValueError(f"{state['global_step']} steps, {state['epoch']} epochs")
        text = f"It was trained for {state['global_step']:,d} steps, {state['epoch']:,.6g} epochs{then}."
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CardError(f"{path} cannot be read ({type(error).__name__}: {error}): remove or mend it") from error
    return f"{text}\n\n**To fill in:** the data and the settings of this training."


def _checked(repo_id: str) -> str:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CardError(f"`repo_id` {repo_id!r} is no name of a repository on the Hub, such as me/my-model") from error
    return repo_id


def with_results(
    text: str, measured: Sequence[MeasuredResults], config: Any, name: str, former: Sequence[str] = ()
) -> str:
    """A card with measured results in their region and in `model-index`, with line breaks of one character.

    Args:
        measured: all results of the checkpoint with this `config` and `name`.
        former: names in `model-index` that become `name`; any other stays.

    Raises:
        CardError: see [`replace_region`].
    """
    region = render_measured(measured, config.pruning_config, config.num_visual_tokens)
    entries = [entry for one in measured for entry in eval_results(one)]
    return replace_model_index(replace_region(text.replace("\r\n", "\n"), region), name, entries, former)


def read_config(folder: Path) -> Any:
    """The config of a checkpoint of this package. Raises CardError."""
    if not Path(folder, "config.json").is_file():
        raise CardError(f"{folder} is no checkpoint: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(folder)
    except Exception as error:  # a stranger's file: it makes the config classes raise all kinds
        raise CardError(f"{folder}: config.json cannot be read: {error}") from error
    if getattr(config, "pruning_config", None) is None or not config.architectures:
        raise CardError(f"{folder} is no checkpoint of this package (`model_type` {config.model_type!r})")
    return config


def existing_card(folder: Path, output: Path, config: Any) -> tuple[str, str]:
    """Text of the card to start from, and what will have been done to it."""
    for path in (output, folder / CARD_NAME):
        if path.is_file():
            try:
                with path.open(encoding="utf-8-sig", newline="") as file:
                    return file.read(), "updated" if path == output else f"written, from {path}"
            except (OSError, UnicodeDecodeError) as error:
                raise CardError(f"{path} cannot be read: {error}") from error
    return render_saved_card(config, name=folder.resolve().name), "written from the template"


def _summary(results: MeasuredResults, pruning: Any, num_tokens: int | None) -> str:
    presets = measured_presets(results, pruning, num_tokens)
    absent = [name for name, group in presets.items() if group is None]
    return (
        f"{results.file}: {len(results.groups)} settings on {results.dataset['name']} {results.dataset['split']};"
        f" presets measured: {', '.join(name for name in presets if name not in absent) or 'none'}"
        f"{'; not measured: ' + ', '.join(absent) if absent else ''}"
    )


def _about_entries(measured: Sequence[MeasuredResults], files: dict[str, Any], task_id: str | None) -> str:
    if files:
        return f".eval_results: {len(files)} files for the task {task_id!r}"
    if any(hub_dataset(one) for one in measured):
        return ".eval_results: none; --task-id writes them if the data set is a benchmark of the Hub"
    return ".eval_results: none; they are for data sets on the Hub"
