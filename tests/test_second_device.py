"""The second device of the tests refuses and counts what CUDA would."""

import pytest
import torch

from tests.support.second_device import DEVICE, OtherTensor, other_device


REFUSED = {
    "two devices": lambda x: x + torch.ones(3),
    "integers": lambda x: x.long()[None] @ x.long()[:, None],
    "generator": lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "mask of the CPU": lambda x: x.masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
}
WAITS = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x.any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "index of the CPU": lambda x: x[torch.tensor([1, 0])],
    "index of the host": lambda x: x[[2, 0]],
    "constant": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 0, 2]).to(x.device, non_blocking=True)),
    "equal": lambda x: torch.equal(x, x),
}
FREE = {
    "number of the CPU": lambda x: torch.where(x > 0, x, torch.tensor(-torch.inf)),
    "not waiting": lambda x: torch.ones(3).to(x.device, non_blocking=True) + x,
    "made there": lambda x: torch.arange(3, device=x.device) * x + torch.zeros_like(x),
    "no values": lambda x: torch.tensor([], device=x.device),
    "in place": lambda x: x.view(3, 1)[:2].mul_(2),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long() + 2, output_size=6),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.expand(1, 2, 4, 3)] * 3),
}


@pytest.fixture
def waits():
    with other_device() as waits:
        yield waits


@pytest.fixture
def x(waits):
    x = torch.arange(3.0).to(DEVICE) - 1
    waits.clear()
    return x


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(x, what):
    with pytest.raises(RuntimeError):
        REFUSED[what](x)


@pytest.mark.parametrize("what", WAITS)
def test_counts(x, waits, what):
    WAITS[what](x)
    assert len(waits) == 1


@pytest.mark.parametrize("what", FREE)
def test_does_not_count(x, waits, what):
    result = FREE[what](x)
    assert waits == [] and isinstance(result, OtherTensor) and result.device == DEVICE and not result.is_cpu


def test_values(x):
    y = x.clone()
    y[1:] += 5
    assert y.cpu().tolist() == [-1.0, 5.0, 6.0] and x.cpu().tolist() == [-1.0, 0.0, 1.0]
