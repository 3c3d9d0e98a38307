"""The benchmark of a model on a device that is not the CPU."""

import pytest
import torch

from tests.benchmark.tiny_presets import TINY
from tests.other_device import DEVICE, other_device
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.benchmark.building import random_model
from transformers_litelvlm.benchmark.inputs import random_workload
from transformers_litelvlm.benchmark.side_by_side import Effort, SideBySide
from transformers_litelvlm.benchmark.stages import stage_model


@pytest.mark.parametrize("kind", ["lisa", "qwen", "unipixel"])
def test_what_is_timed(kind):
    model = random_model(TINY[kind], torch.float32, torch.device("cpu"))  # no generator of its own over there
    with other_device():
        workload = random_workload(TINY[kind], model.config, 2, 2).to(DEVICE, torch.float32)
        side_by_side = SideBySide(stage_model(model.to(DEVICE)), workload, Effort(1, 0, 2, parts=["stages", "decode"]))
        measured = side_by_side.measure(PruningConfig(budget=12))
    assert measured["flops"]["bound"] > 1.0
    assert "LLM prefill" in measured["stages"]["pruned"]["stages"]
