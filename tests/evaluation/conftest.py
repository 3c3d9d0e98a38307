"""One finished evaluation that others are compared with."""

from pathlib import Path

import pytest
import torch

from tests.support.small_evaluations import options
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm.evaluation import runner


@pytest.fixture(autouse=True)
def one_thread():
    """As the runner has it; several threads make a model this small slower, a lot on a busy machine."""
    with runner.one_thread(torch.device("cpu")):
        yield


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "results"
    runner.evaluate(options(folder))
    return folder


@pytest.fixture(scope="session")
def unipixel(tmp_path_factory) -> Path:
    """A tiny random UniPixel."""
    return tiny_checkpoint(tmp_path_factory.mktemp("unipixel"))
