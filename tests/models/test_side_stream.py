"""The mask model's encoder beside the language model: the same masks, and who waits for whom."""

import contextlib

import torch

from tests.support.mask_cases import masks_case
from transformers_litelvlm.models.side_stream import SideStream


def test_the_masks_are_the_same():
    model, inputs = masks_case("that share", {"budget": 6})
    encoded = []
    handle = model.mask_model.vision_encoder.register_forward_hook(lambda *_: encoded.append(1))
    plain, beside = (model.segment(**inputs, overlap_masks=overlap) for overlap in (False, True))
    features = model.encode_for_masks(inputs)
    given = model.segment(**inputs, mask_features=features, overlap_masks=True)
    handle.remove()
    assert len(encoded) == 3  # what is given is not encoded again
    for output in (beside, given):
        assert all(map(torch.equal, output.mask_logits, plain.mask_logits))


def test_what_waits_for_what():
    """The streams of a GPU, by what they are asked."""
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    beside = SideStream(torch.device("cpu"))
    beside._streams, beside._on = (Stream("main"), Stream("side")), contextlib.nullcontext
    beside.start(lambda: events.append("work") or 7)
    events.append("language model")
    assert beside.result() == 7
    assert events == ["side waits for main", "work", "language model", "main waits for side"]
