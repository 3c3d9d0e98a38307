"""Settings of `make test-upstream`."""

from __future__ import annotations

import pytest


# Marks in upstream's modules, which pytest would refuse. They choose nothing here.
UPSTREAM_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "order",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: of upstream's tests")


@pytest.fixture(autouse=True)
def no_upstream_deprecation() -> None:
    """In place of the fixture for our own tests: upstream's tests use old names on purpose, to see that they work."""
