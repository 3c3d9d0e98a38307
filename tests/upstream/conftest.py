"""Settings of `make test-upstream`."""

from __future__ import annotations

from collections import Counter

import pytest


COMMON_TESTS = "tests/upstream/common_tests.py"
STOCK_FAILS = "the stock class fails"
# Marks in upstream's modules, which pytest would refuse. They choose nothing here.
UPSTREAM_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "order",
)


def case_of(report: pytest.TestReport) -> str:
    """Such as `llava_head-pruned`, of `...[llava_head-pruned-test_save_load]`."""
    return report.nodeid.partition("[")[2].partition("-test_")[0]


def pytest_configure(config: pytest.Config) -> None:
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: of upstream's tests")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many common tests the stock classes pass and ours pass, by class, and the exceptions."""
    stats = terminalreporter.stats
    reports = {
        kind: [report for report in stats.get(kind, []) if f"{COMMON_TESTS}::" in report.nodeid]
        for kind in ("passed", "failed", "xfailed", "skipped", "xpassed")
    }
    reports["passed"] += reports.pop("xpassed")
    if not any(reports.values()):
        return
    terminalreporter.section("common tests of transformers")
    counts = {kind: Counter(map(case_of, found)) for kind, found in reports.items()}
    fails = Counter(case_of(report) for report in reports["skipped"] if STOCK_FAILS in str(report.longrepr))
    for case in sorted({case_of(report) for found in reports.values() for report in found}):
        passed, failed, listed, _ = (count[case] for count in counts.values())
        terminalreporter.line(
            f"{case:20} the stock class passes {passed + failed + listed} and fails {fails[case]}; "
            f"ours passes {passed}, has {listed} exceptions, and fails {failed}"
        )
    for reason, number in sorted(Counter(report.wasxfail for report in reports["xfailed"]).items()):
        terminalreporter.line(f"exception, {number} times: {reason}")
    total = {kind: len(found) for kind, found in reports.items()}
    terminalreporter.line(
        f"in all: stock classes pass {total['passed'] + total['failed'] + total['xfailed']}, ours {total['passed']}, "
        f"{total['xfailed']} exceptions, {total['failed']} failures"
    )


@pytest.fixture(autouse=True)
def no_upstream_deprecation() -> None:
    """In place of the fixture for our own tests: upstream's tests use old names on purpose, to see that they work."""
