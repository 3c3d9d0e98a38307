"""A program for two processes that share the layers of a model: `torchrun -m tests.support.tensor_parallel FAMILY`."""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from tests.support.families import FAMILIES
from tests.support.family_cases import BUDGET, NUM_LAYERS, every_case
from transformers_litelvlm import PruningConfig


def loaded(model_class: type, model: torch.nn.Module) -> torch.nn.Module:
    """With half of the layers of `model` in each process."""
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    if dist.get_rank() == 0:
        model.save_pretrained(folder[0])
    dist.barrier()
    return model_class.from_pretrained(folder[0], distributed_config=DistributedConfig(tp_plan="auto")).eval()


def main(name: str) -> None:
    """Logits of both processes are those of the whole model, with every method; prints how many there are."""
    family = next(family for family in FAMILIES if family.name == name)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    whole = family.model(NUM_LAYERS).eval()
    try:
        loaded(family.stock_class, family.stock(whole))
    except RuntimeError as error:
        sys.exit(print("upstream cannot:", error, flush=True))
    shared = loaded(family.model_class, whole)
    assert any(isinstance(weight, DTensor) for weight in shared.parameters())
    inputs, cases = family.lite_inputs(), [("none", {}), *every_case(family)]
    for method, options in cases:
        pruning = PruningConfig(method=method, budget=BUDGET, method_options=options)
        with torch.no_grad():
            expected, logits = (model(**inputs, pruning_config=pruning).logits for model in (whole, shared))
        assert (logits - expected).abs().max() < 1e-4, (method, options, (logits - expected).abs().max())
    print(len(cases), "cases", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
