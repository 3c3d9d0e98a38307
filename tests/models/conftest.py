"""Every family, and a tiny model of it, for modules that bring none of their own."""

import pytest

from tests.support.families import MODELS, family_params
from tests.support.family_cases import NUM_LAYERS


@pytest.fixture(scope="module", params=family_params(MODELS), ids=[family.name for family in MODELS])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family.model(NUM_LAYERS).eval()
