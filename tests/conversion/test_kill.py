"""`kill -9` at any moment never leaves a folder that loads but is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kill_at_twenty_moments(tmp_path):
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.kill_conversions", str(tmp_path), "20"],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    print(run.stdout)
    # The worker compares bit for bit whatever has a config.json.
    assert run.returncode == 0, run.stderr
    reference, *attempts, last = map(json.loads, run.stdout.splitlines())
    killed = [attempt for attempt in attempts if attempt["killed"]]
    assert len(killed) == 20
    assert reference["out"] == "loads"
    assert {attempt["out"] for attempt in attempts} == {"absent", "loads"}, "none was killed before, or none after"
    assert sum(attempt[".out.converting"] == "incomplete" for attempt in killed) >= 8
    assert last == {"left": ["out", "source"], "out": "loads", ".out.converting": "absent"}
