"""Presets into a checkpoint, and what they give into its card: all files, or none."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers_litelvlm.calibration.arguments import BASELINE, PUBLISHED
from transformers_litelvlm.calibration.report import PAGE_NAME, TEMPLATES
from transformers_litelvlm.configuration_pruning import PRUNING_CONFIG_NAME
from transformers_litelvlm.evaluation.report import METRIC_NAMES
from transformers_litelvlm.hub.markdown import code, plain
from transformers_litelvlm.hub.measured import replace_region
from transformers_litelvlm.hub.model_card import CARD_NAME, describe_presets
from transformers_litelvlm.hub.results import check_model, read_results
from transformers_litelvlm.hub.updating import existing_card, read_config, with_results
from transformers_litelvlm.utils.files import check_output, finish_interrupted, read_json, write_atomically
from transformers_litelvlm.version import __version__


CONFIG_NAME = "config.json"
BEGIN = "<!-- litelvlm calibration: begin (written by the command, changes in here are lost) -->"
END = "<!-- litelvlm calibration: end -->"


def check_checkpoint(path: str | None) -> Path:
    """The folder of a checkpoint that presets can be written into. To be called before long work. Raises ValueError,
    which says why, if it is none, or cannot be written."""
    if path is None:
        raise ValueError(
            "`write` changes the checkpoint, and the bundled one is part of the package: copy it with "
            "`save_pretrained`, and give the folder as `model`."
        )
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"`write` needs a folder as `model`, got {path!r:.80}: download the checkpoint first.")
    finish_interrupted(folder)
    read_config(folder)
    check_output(folder, (CONFIG_NAME, CARD_NAME))
    return folder


def write_presets(folder: Path, calibration: dict[str, Any], results: Path) -> list[str]:
    """Write the presets that were chosen into `config.json`, and `pruning_config.json` if there is one, and into the
    card: its table of presets where it is the one of the template, a region of its own, and the measured results.

    A preset for which nothing was chosen stays what it is, and so does every other one.

    Args:
        folder: of the checkpoint.
        calibration: content of `calibration.json`.
        results: `results.json` of the test split.

    Returns:
        What was done, line by line.

    Raises:
        ValueError: a file of the checkpoint is damaged, or is not that of the model that was measured.
    """
    presets = {name: found["preset"] for name, found in calibration["presets"].items() if found["preset"] is not None}
    if not presets:
        return [f"{folder} is as it was: nothing was chosen."]
    config = read_config(folder)
    old = deepcopy(config)
    config.pruning_config = config.pruning_config.replace(presets={**config.pruning_config.presets, **presets})
    measured = read_results(results)
    check_model(measured, folder, config, config.num_visual_tokens, any_name=False)
    card, _ = existing_card(folder, folder / CARD_NAME, old)
    card = _with_rows(card, dict(describe_presets(old)), dict(describe_presets(config)))
    card = with_results(card, [measured], config, folder.resolve().name)
    about = {"published": PUBLISHED, "baseline": BASELINE, "begin": BEGIN, "end": END, "page": PAGE_NAME}
    region = TEMPLATES.get_template("card.md.jinja").render(calibration, names=METRIC_NAMES, **about)
    card = replace_region(card, region.rstrip("\n"), BEGIN, END)
    texts = {CARD_NAME: card, CONFIG_NAME: _with_presets(folder / CONFIG_NAME, presets, config)}
    if (folder / PRUNING_CONFIG_NAME).is_file():
        texts[PRUNING_CONFIG_NAME] = _with_presets(folder / PRUNING_CONFIG_NAME, presets, config)
    with write_atomically(folder) as staging:
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
    return [f"{folder}: presets {', '.join(presets)} written, in {', '.join(sorted(texts))}."]


def _with_presets(path: Path, presets: dict[str, Any], config: Any) -> str:
    """The text of a file, in which nothing but the presets has changed."""
    content = read_json(path)
    pruning = content if path.name == PRUNING_CONFIG_NAME else content.setdefault("pruning_config", {})
    pruning["presets"] = config.pruning_config.presets if "presets" not in pruning else pruning["presets"] | presets
    pruning["litelvlm_version"] = __version__
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _with_rows(card: str, old: dict[str, str], new: dict[str, str]) -> str:
    """The table of presets of the card's template, where it stands as it was written."""

    def row(name: str, meaning: str) -> str:
        escaped = code(f'"{name}"').replace("|", "\\|")
        return f"| {escaped} | {plain(meaning)} |"

    for name, meaning in old.items():
        if name in new:
            card = card.replace(row(name, meaning), row(name, new[name]))
    return card
