"""What the benchmark times, on a device that is not the CPU."""

import pytest
import torch

from tests.support.matrix import matrix
from tests.support.second_device import DEVICE, other_device
from tests.support.tiny_presets import TINY
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.benchmark.stages import StagedModel


@pytest.mark.parametrize("kind", matrix(["lisa", "qwen", "unipixel"], "unipixel".__eq__))
def test_stages_and_generation(kind):
    model = TINY[kind].build(torch.float32, torch.device("cpu"))  # no generator of its own over there
    with other_device():
        inputs = TINY[kind].workload(model.config, 2, 2).to(DEVICE, torch.float32).inputs
        staged = StagedModel(model.to(DEVICE))
        staged.prune(PruningConfig(budget=12))
        output = staged.run_stages(inputs)
        assert output.get("logits", output.get("last_hidden_state")).device == DEVICE
        generated = staged.generate(inputs, 1, staged.encode(inputs))
        assert generated.sequences.shape[1] == inputs["input_ids"].shape[1] + 1
