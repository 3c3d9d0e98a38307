"""The training script makes a checkpoint that the evaluation can score: every stage, a few steps each."""

import json
import sys
from pathlib import Path

import pytest
import torch

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation
from transformers_litelvlm.evaluation.__main__ import main as evaluate


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


@pytest.mark.slow
@pytest.mark.timeout(1200)  # all stages of training, on a slow machine
def test_every_stage_of_training_then_evaluation(run, tmp_path):
    common = ["--work_dir", tmp_path, "--num_scenes", 6, "--num_validation_scenes", 4, "--batch_size", 2, "--cpu"]
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

    arguments = ["--max-images", "2", "--budgets", "8", "--seeds", "0", "--output-dir", str(tmp_path / "results")]
    assert evaluate(["--model", str(tmp_path / "checkpoint"), *arguments]) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    settings = {(entry["name"], entry["budget"]) for entry in results["groups"]}
    assert settings == {("none", None), ("litelvlm", 8), ("random", 8)}
    assert all(0 <= entry["metrics"]["giou"] <= 1 for entry in results["groups"])
    assert results["dataset"]["num_images"] == 2
    assert "| 8 | litelvlm |" in (tmp_path / "results" / "results.md").read_text()
