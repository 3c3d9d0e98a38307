"""The bundled model, a service around it, and a picture."""

import pytest
import torch
from PIL import Image

from tests.support.bundled import load_bundled
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter
from transformers_litelvlm.serving.service import Service


@pytest.fixture(scope="session")
def bundled():
    """Model and processor; the model's own setting is the preset "balanced"."""
    return load_bundled()


@pytest.fixture
def one_thread():
    """The order of sums depends on the number of threads; and small models are faster with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start_service(bundled, one_thread):
    """Make a service with some limits; it is closed after the test."""
    started = []

    def start(segmenter=None, allow_urls=False, **limits):
        limits = Limits(**limits)
        started.append(Service(segmenter or Segmenter(*bundled, limits), limits, allow_urls))
        return started[-1]

    yield start
    for service in started:
        service.close()


@pytest.fixture(scope="session")
def scenes():
    """Pictures of different sizes, with sentences about them."""
    found = []
    for index in range(10):
        scene = generate_scene("test", index)
        picture = Image.fromarray(scene.image)
        picture = picture if index % 2 else picture.resize((200 + 10 * index, 150))
        found.append((picture, [each.sentence for each in scene.expressions[:3]]))
    return found
