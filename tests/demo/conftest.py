"""The bundled model behind the page, and a picture."""

import pytest
import torch
from PIL import Image

from tests.support.bundled import load_bundled
from transformers_litelvlm.data import generate_scene
from transformers_litelvlm.demo.comparing import Comparer
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


@pytest.fixture(scope="session")
def bundled():
    return load_bundled()


@pytest.fixture
def comparer(bundled):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums depends on their number
    yield Comparer(Segmenter(*bundled, Limits(max_sentences=4)), "the bundled checkpoint")
    torch.set_num_threads(threads)


@pytest.fixture
def scene(tmp_path):
    """The path of a picture that is not square, and two sentences."""
    made, path = generate_scene("test", 3), tmp_path / "scene.png"
    Image.fromarray(made.image).resize((200, 150)).save(path)
    return str(path), [expression.sentence for expression in made.expressions[:2]]
