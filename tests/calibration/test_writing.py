"""Presets and figures into a checkpoint: what is written, what stays, and nothing if anything is wrong."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.support.sample_results import sample_results, write_results
from tests.support.uncalibrated import uncalibrate
from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.calibration.writing import BEGIN, END, check_checkpoint, write_presets
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.hub.model_card import render_saved_card
from transformers_litelvlm.hub.updating import read_config


FAST = {"method": "divprune", "method_options": {}, "then": None, "budget": 16, "retention_ratio": None}


def calibration(**presets) -> dict:
    """What a calibration says, as far as it is written."""
    figures = {"name": "x", "metrics": {"giou": 0.4}, "intervals": {"giou": [0.3, 0.5]}, "retention": None}
    roles = dict.fromkeys(("chosen", "published", "baseline", "unpruned"), {**figures, "num_kept_mean": 16.0})
    found = {
        name: {
            "size": 16,
            "num_tokens": 16,
            "preset": preset,
            "choice": {"chosen": preset and "divprune", "reason": "because of <b>this</b>"},
        }
        for name, preset in presets.items()
    }
    return {
        "metric": "giou",
        "candidates": [{}] * 7,
        "data": {"name": "refshapes", "split": "validation"},
        "rounds": [16, 32],
        "presets": found,
        "test": {
            "split": "test",
            "num_samples": 9,
            "num_expressions": 40,
            "kind": "images",
            "presets": {name: roles for name, preset in presets.items() if preset},
        },
        "environment": {"command": "litelvlm calibrate --output-dir x"},
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """The embedded checkpoint without its weights, its card that of the template, and a `pruning_config.json`."""
    folder = tmp_path / "refshapes_tiny"
    folder.mkdir()
    shutil.copy(Path(DEFAULT_CHECKPOINT, "config.json"), folder)
    uncalibrate(folder)
    config = read_config(folder)
    (folder / "README.md").write_text(render_saved_card(config, name="refshapes_tiny") + "\nMine.\n")
    PruningConfig(presets={"fast": {"budget": 9}, "own": {"budget": 7}}).save_pretrained(folder)
    return folder


@pytest.fixture
def results(tmp_path) -> Path:
    return Path(write_results(tmp_path, sample_results()))


def test_presets_and_figures_are_written(folder, results):
    old = json.loads((folder / "config.json").read_text())
    [line] = write_presets(folder, calibration(fast=FAST, balanced=None), results)
    assert line.endswith("presets fast written, in README.md, config.json, pruning_config.json.")
    new = json.loads((folder / "config.json").read_text())
    expected = copy.deepcopy(old)
    expected["pruning_config"]["presets"]["fast"] = FAST
    expected["pruning_config"]["litelvlm_version"] = new["pruning_config"]["litelvlm_version"]
    assert new == expected
    alone = PruningConfig.from_pretrained(folder)
    assert alone.apply_preset("fast").method == "divprune" and alone.apply_preset("own").budget == 7
    card = ModelCard.load(folder / "README.md")
    assert '| `"fast"` | 16 of 144 visual tokens, method = divprune' in card.text
    assert card.text.count('`"fast"`') == 1 and '| `"balanced"` | 32 of 144 visual tokens |' in card.text
    region = card.text[card.text.index(BEGIN) : card.text.index(END)]
    assert "among 7 settings on validation of refshapes" in region
    assert "| `fast` | 16 | x | 0.400 [0.300, 0.500] | 0.400" in region
    assert "Not chosen: balanced. because of &lt;b&gt;this&lt;/b&gt;." in region
    assert "Mine." in card.text and len(card.data.eval_results) > 0
    # Written again, the same.
    before = (folder / "README.md").read_bytes()
    write_presets(folder, calibration(fast=FAST, balanced=None), results)
    assert (folder / "README.md").read_bytes() == before


@pytest.mark.parametrize("damage", ["card", "results", "pruning"])
def test_nothing_is_half_written(folder, results, damage):
    if damage == "card":
        (folder / "README.md").write_text(f"# Card\n{BEGIN}\n")
    elif damage == "results":
        results.write_text("{}")
    else:
        (folder / "pruning_config.json").write_text("{")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match={"card": "once each", "results": "schema", "pruning": "JSON"}[damage]):
        write_presets(folder, calibration(fast=FAST), results)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_is_written_if_nothing_was_chosen(folder, results):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    [line] = write_presets(folder, calibration(fast=None), results)
    assert line.endswith("is as it was: nothing was chosen.")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "path, message",
    [
        (None, "the bundled one is part of the package"),
        ("me/model", "needs a folder as `model`, got 'me/model'"),
        (".", "is no checkpoint: it has no config.json"),
    ],
)
def test_what_cannot_be_written_into_is_refused_at_once(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        check_checkpoint(path)
