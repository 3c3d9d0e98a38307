"""`kill -9` at any moment loses at most the batch that was being made, and changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_evaluations", str(tmp_path), "10"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(run.stdout)
    # The worker compares records and results with those of a run that was left alone.
    assert run.returncode == 0, run.stderr
    attempts = [line for line in map(json.loads, run.stdout.splitlines()) if "killed" in line]
    killed = [attempt for attempt in attempts if attempt["killed"]]
    assert len(killed) == 10
    assert all(attempt["after"] >= attempt["before"] for attempt in attempts)
    assert sum(0 < attempt["after"] < 12 for attempt in killed) >= 4, "too few were killed in the middle"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3])  # other tests share work between two
def test_several_processes_give_the_same_records(processes, reference, tmp_path):
    from tests.support.small_evaluations import METHODS, assert_same

    folder = tmp_path / "results"
    words = ["--output-dir", str(folder), "--max-images", "6", "--batch-size", "1", "--methods", *METHODS]
    run = subprocess.run(
        [sys.executable, "-m", "transformers_litelvlm.cli.main", "evaluate", *words]
        + ["--budgets", "16", "--seeds", "0", "1", "2", "--processes", str(processes)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert_same(folder, reference)
    content = json.loads((folder / "results.json").read_text())
    assert content["environment"]["hardware"]["num_processes"] == processes
    assert "| 16 | random | 3 |" in run.stdout
