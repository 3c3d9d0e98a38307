"""What the benchmark times, on a device that is not the CPU."""

import pytest
import torch

from tests.support.matrix import matrix
from tests.support.second_device import DEVICE, other_device
from tests.support.tiny_presets import TINY
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.benchmark.building import random_model
from transformers_litelvlm.benchmark.inputs import random_workload
from transformers_litelvlm.benchmark.stages import NoMeter, stage_model


@pytest.mark.parametrize("kind", matrix(["lisa", "qwen", "unipixel"], "unipixel".__eq__))
def test_stages_and_generation(kind):
    model = random_model(TINY[kind], torch.float32, torch.device("cpu"))  # no generator of its own over there
    with other_device():
        inputs = random_workload(TINY[kind], model.config, 2, 2).to(DEVICE, torch.float32).inputs
        staged = stage_model(model.to(DEVICE))
        staged.prune(PruningConfig(budget=12))
        output = staged.run_stages(inputs, NoMeter())
        assert output.get("logits", output.get("last_hidden_state")).device == DEVICE
        generated = staged.generate(inputs, 1, staged.encode(inputs, NoMeter()))
        assert generated.sequences.shape[1] == inputs["input_ids"].shape[1] + 1
