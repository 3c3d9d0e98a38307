"""The training script makes a checkpoint that the evaluation script can score: every stage, a few steps each."""

import json
import sys
from pathlib import Path

import pytest
import torch

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch):
    """Run an example's `main` with a command line, in this process: starting Python would take most of the time."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run_main(name: str, *arguments: object) -> None:
        module = __import__(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()

    return run_main


def test_every_stage_of_training_then_evaluation(run, tmp_path):
    common = ["--work_dir", tmp_path, "--num_scenes", 12, "--num_validation_scenes", 32, "--batch_size", 4, "--cpu"]
    for stage in ("sam", "clip", "ground", "masks", "guidance"):
        run("train_refshapes", stage, *common, "--steps", 2, "--evaluate_every", 2)
        entry = json.loads((tmp_path / stage / "log.jsonl").read_text().splitlines()[-1])
        assert entry["step"] == 2 and torch.tensor(entry["loss"]).isfinite()
    # A stage goes on where it stopped.
    run("train_refshapes", "sam", *common, "--steps", 3, "--evaluate_every", 1)
    steps = [json.loads(line)["step"] for line in (tmp_path / "sam" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 3]

    run("train_refshapes", "export", *common, "--output_dir", tmp_path / "checkpoint")
    model = AutoModelForReferringSegmentation.from_pretrained(tmp_path / "checkpoint")
    shipped = AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT)
    assert model.dtype == shipped.dtype == torch.float32
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in shipped.named_parameters()}

    arguments = ["--num_scenes", 2, "--budgets", 8, "--random_seeds", 1, "--output_dir", tmp_path / "results"]
    run("evaluate_refshapes", "--checkpoint", tmp_path / "checkpoint", *arguments)
    results = json.loads((tmp_path / "results" / "refshapes.json").read_text())["results"]
    rules = {(entry["rule"], entry["budget"]) for entry in results}
    assert {("all tokens", None), ("zeroed tokens", None), ("litelvlm", 8), ("random", 8)} <= rules
    assert all(0 <= entry["giou"] <= 1 and entry["scenes"] == 2 for entry in results)
    assert "| 8 | litelvlm |" in (tmp_path / "results" / "refshapes.md").read_text()
