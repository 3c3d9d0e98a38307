"""Scripts of examples/benchmarks are imported as they are when Python runs one: from their own folder."""

import importlib
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[3] / "examples" / "benchmarks"


@pytest.fixture(scope="session")
def script():
    """Import a script by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
