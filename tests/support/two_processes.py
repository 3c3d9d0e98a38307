"""A program for two processes: `torchrun -m tests.support.two_processes {layers_shared,weights_sharded} FAMILY`."""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from tests.support.families import FAMILIES
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from transformers_litelvlm import PruningConfig


def loaded(model_class: type, model: torch.nn.Module) -> torch.nn.Module:
    """With half of each layer of `model` in each process: tensor parallelism."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder[0])
    dist.barrier()
    return model_class.from_pretrained(folder[0], distributed_config=DistributedConfig(tp_plan="auto")).eval()


def layers_shared(family, whole, cases):
    """Logits are those of the whole model."""
    try:
        loaded(family.stock_class, family.stock(whole))
    except RuntimeError as error:
        sys.exit(print("upstream cannot:", error, flush=True))
    shared, inputs = loaded(family.model_class, whole), family.lite_inputs()
    assert any(isinstance(weight, DTensor) for weight in shared.parameters())
    for pruning in cases:
        with torch.no_grad():
            expected, logits = (model(**inputs, pruning_config=pruning).logits for model in (whole, shared))
        assert (logits - expected).abs().max() < 1e-4, (pruning, (logits - expected).abs().max())


def weights_sharded(family, whole, cases):
    """Loss and gradients are those of one process, where each keeps half of the weights (FSDP 2)."""
    sharded, inputs = family.model(NUM_LAYERS), family.lite_inputs()
    sharded.load_state_dict(whole.state_dict())
    mesh, blocks = init_device_mesh("cpu", (2,)), set(sharded._no_split_modules)
    for block in [module for module in sharded.modules() if type(module).__name__ in blocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for pruning in cases:
        losses = []
        for model in (whole, sharded):
            model.zero_grad()
            losses.append(model(**inputs, labels=inputs["input_ids"], pruning_config=pruning).loss)
            losses[-1].backward()
        assert abs(losses[0] - losses[1]) < 1e-6, (pruning, losses)
        for (name, weight), half in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            assert (weight.grad is None) == (half.grad is None), (pruning, name)
            if weight.grad is not None:
                assert (weight.grad - half.grad.full_tensor()).abs().max() < 1e-5, (pruning, name)


def main(how: str, name: str) -> None:
    """Prints how many cases hold."""
    family = next(family for family in FAMILIES if family.name == name)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    cases = [
        PruningConfig(method=method, budget=BUDGET, method_options=options)
        for method, options in [("none", {}), *every_case(family)]
    ]
    try:
        globals()[how](family, family.model(NUM_LAYERS).eval(), cases)
        print(len(cases), "cases", flush=True)
    finally:
        # The threads of a group that is left open may abort its process at the end.
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
