"""Every class of ours passes the common tests of transformers that its stock class passes: `make test-upstream`."""

from __future__ import annotations

import unittest
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from tests.upstream.exceptions import MAY_PASS, reason_for
from tests.upstream.models import MODEL_CASES, model_tests
from tests.upstream.processors import PROCESSOR_CASES, processor_tests


LONGEST_LINE, MOST_LINES, MOST_FAILURES = 300, 5, 3


@dataclass(frozen=True)
class Outcome:
    """Of one test: `"passes"`, `"skips"` or `"fails"`, and what it says about that."""

    kind: str
    text: str = ""


def shortened(text: str) -> str:
    """The end of a traceback; messages of upstream's tests may hold whole tensors."""
    lines = [line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in text.strip().splitlines()]
    return "\n".join(lines[-MOST_LINES:])


@cache
def outcome_of(tests: type[unittest.TestCase], name: str) -> Outcome:
    torch.manual_seed(0)
    result = unittest.TestResult()
    unittest.TestSuite([tests(name)]).run(result)
    for kind, found in (("fails", result.failures + result.errors), ("skips", result.skipped)):
        if found:
            return Outcome(kind, "\n".join(shortened(text) for _, text in found[:MOST_FAILURES]))
    return Outcome("passes")


PARENTS = {case.parent: model_tests(case, is_ours=False) for case in MODEL_CASES}
PAIRS = {
    **{
        f"{case.name}-{'pruned' if is_pruned else 'off'}": (PARENTS[case.parent], model_tests(case, True, is_pruned))
        for case in MODEL_CASES
        for is_pruned in (False, True)
    },
    **{case.name: (processor_tests(case, False), processor_tests(case, True)) for case in PROCESSOR_CASES},
}


def parameters() -> list:
    found = []
    for case, (parent, ours) in PAIRS.items():
        for name in unittest.TestLoader().getTestCaseNames(parent):
            reason = reason_for(case, name)
            # Who shares a parent shares a worker, so that the parent runs once.
            marks = [pytest.mark.xdist_group(f"{parent.stock_class.__name__}-{name}")]
            if reason is not None:
                marks.append(pytest.mark.xfail(reason=reason, strict=reason not in MAY_PASS))
            found.append(pytest.param(parent, ours, name, id=f"{case}-{name}", marks=marks))
    return found


@pytest.mark.parametrize(("parent", "ours", "name"), parameters())
def test_passes_what_its_stock_class_passes(parent, ours, name):
    outcome = outcome_of(parent, name)
    if outcome.kind != "passes":
        pytest.skip(f"the stock class {outcome.kind}: {outcome.text.splitlines()[-1]}")
    outcome = outcome_of(ours, name)
    # To skip what the stock class passes is no better than to fail.
    if outcome.kind != "passes":
        pytest.fail(f"ours {outcome.kind}: {outcome.text}", pytrace=False)
