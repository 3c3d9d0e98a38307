"""One finished calibration that others are compared with."""

from pathlib import Path

import pytest

from tests.support.small_calibrations import copy_checkpoint, options
from transformers_litelvlm.calibration.runner import calibrate


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A copy of the embedded checkpoint, into which `reference` writes its presets."""
    return copy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory, checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "calibration"
    calibrate(options(folder, checkpoint, write=True))
    return folder
