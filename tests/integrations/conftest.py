"""The bundled model with the preset that annotation tools get."""

import pytest

from tests.support.bundled import load_bundled


@pytest.fixture(scope="session")
def bundled():
    """Model and processor."""
    return load_bundled()
