"""Settings of the tests with random input, and what they measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.support import fuzzing


# The same inputs in every run, unless more are asked for. `deadline` is wall time: `fuzzing.quick` has its own limit.
settings.register_profile(
    "litelvlm",
    deadline=None,
    derandomize=fuzzing.FACTOR == 1,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],  # explaining traces every line, and is slow
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("litelvlm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # Pillow's, about what is damaged
            if fuzzing.FACTOR > 1:
                item.add_marker(pytest.mark.timeout(0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if fuzzing.CALLS:  # not in the process that hands tests out to others
        terminalreporter.section("random input")
        for name, (count, worst) in sorted(fuzzing.CALLS.items()):
            terminalreporter.write_line(f"{name}: {count} calls, the slowest {worst:.3f} s")
        terminalreporter.write_line(f"peak memory of the process: {fuzzing.peak_memory() / 2**20:.0f} MB")
