"""The mask model's encoder beside the language model, and copies: the same masks, and who waits for whom."""

import contextlib

import torch

from tests.support.mask_cases import masks_case
from transformers_litelvlm.models.devices import pinned_to
from transformers_litelvlm.models.side_stream import SideStream, stream_of


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


def test_one_stream_for_all_calls(monkeypatch):
    """The allocator keeps memory for each of the 32 streams that torch gives in turn."""
    made = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or f"stream {len(made)}")
    stream_of.cache_clear()
    devices = [torch.device("cuda", index) for index in (0, 1, 0)]
    assert [SideStream(device)._streams[1] for device in devices] == ["stream 1", "stream 2", "stream 1"]
    stream_of.cache_clear()


class OnHost(torch.Tensor):
    """Writes down what it is asked."""

    def pin_memory(self):
        self.asked = ["pin_memory"]
        return self

    def to(self, device, non_blocking=False):
        self.asked = [*getattr(self, "asked", []), device.type, non_blocking]
        return self


def test_pinned_to():
    pixels, sizes = (torch.ones(2).as_subclass(OnHost) for _ in range(2))
    there = torch.ones(2, device="meta")
    inputs = {"pixel_values": pixels, "original_sizes": sizes, "there": there, "about": [0]}
    assert pinned_to(torch.device("cpu"), inputs) is inputs
    assert pinned_to(torch.device("cuda"), inputs, leave=("original_sizes",)).keys() == inputs.keys()
    assert pixels.asked == ["pin_memory", "cuda", True] and not hasattr(sizes, "asked")
    assert pinned_to(torch.device("xpu"), {"ids": sizes}) and sizes.asked == ["xpu", True]
