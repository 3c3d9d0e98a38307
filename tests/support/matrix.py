"""Full matrices of cases: a part runs in `make test`, everything in `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def matrix(cases: Iterable[Any], is_quick: Callable[[Any], bool]) -> list:
    """Parameters for `pytest.mark.parametrize`; cases that are not quick are marked as slow."""
    return [case if is_quick(case) else _slow(case) for case in cases]


def _slow(case: Any):
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
