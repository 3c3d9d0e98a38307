"""Tiny random models of both families that write masks, and an image about which both are asked."""

from types import SimpleNamespace

import pytest
import torch

from tests.support import tiny_llava, tiny_unipixel
from tests.support.analysed_images import two_objects
from transformers_litelvlm.analysis import language
from transformers_litelvlm.evaluation import runner
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.models.auto import load_for_segmentation


@pytest.fixture(autouse=True)
def one_thread():
    """As the runner has it."""
    with runner.one_thread(torch.device("cpu")):
        yield


@pytest.fixture(
    scope="session", params=[tiny_llava.save_tiny_checkpoint, tiny_unipixel.tiny_checkpoint], ids=["llava", "unipixel"]
)
def checkpoint(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def sample():
    return two_objects()


@pytest.fixture
def asked(checkpoint, sample):
    """The model in float64 with its inputs about the image."""
    model, processor = load_for_segmentation(checkpoint, dtype=torch.float64)
    model.requires_grad_(False)
    segmenter = SweepSegmenter(model, processor)
    base = segmenter.base_pruning.replace(position_ids="original", token_order="raster")
    shared = segmenter.encode(sample.load_image(), sample.sentences)
    [part] = shared.parts
    with torch.no_grad():
        tokens = shared.encoded.all_tokens()[0]
    return SimpleNamespace(
        model=model,
        processor=processor,
        part=part,
        tokens=tokens,
        for_masks=shared.for_masks,
        base=base,
        unpruned=language.settings_of(model, base, None),
        masks=torch.stack([torch.as_tensor(sentence.mask) for sentence in sample.sentences]),
    )
