"""One finished evaluation that others are compared with."""

from pathlib import Path

import pytest

from tests.evaluation.small_runs import options
from transformers_litelvlm.evaluation.runner import evaluate


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "results"
    evaluate(options(folder))
    return folder
