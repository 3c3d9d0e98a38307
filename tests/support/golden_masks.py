"""Golden checkpoints of mask decoders: their tensors as the source of a plan, and how close results are."""

from __future__ import annotations

from transformers_litelvlm.conversion.weight_files import TensorInfo


class Tensors:
    """Named tensors as the source of a plan."""

    def __init__(self, tensors):
        self._tensors = tensors

    def tensors(self):
        return {name: TensorInfo(tuple(t.shape), t.dtype, "here") for name, t in self._tensors.items()}


def assert_close(what, actual, expected, tolerance):
    difference = (actual.double() - expected.double()).abs().max().item()
    print(f"{what}: largest difference {difference:.1e} (tolerance {tolerance:.0e})")
    assert actual.shape == expected.shape and difference < tolerance
