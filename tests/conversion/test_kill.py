"""`kill -9` at any moment never leaves a folder that loads but is wrong."""

import json

import pytest

from tests.support import warm_python


@pytest.mark.slow
def test_kill_at_twenty_moments(tmp_path):
    [run] = warm_python.run(["-m", "tests.support.kill_conversions", tmp_path, 20])
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
