"""`kill -9` at any moment loses at most the batch that was being made, and changes nothing."""

import json

import pytest

from tests.support import warm_python
from tests.support.small_evaluations import assert_same, evaluate_in_processes, options


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path):
    [run] = warm_python.run(["-m", "tests.support.kill_evaluations", tmp_path, 10])
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
    folder = tmp_path / "results"
    printed = evaluate_in_processes(options(folder, batch_size=1), processes)
    assert_same(folder, reference)
    content = json.loads((folder / "results.json").read_text())
    assert content["environment"]["hardware"]["num_processes"] == processes
    assert "| 16 | random | 3 |" in printed
