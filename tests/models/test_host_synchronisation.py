"""Between the vision tower and the first decoder layer, nothing waits for the device.

What would make CUDA wait is caught on the CPU too: a value of a tensor that Python asks for, and operations whose
result has a size that only the values decide.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.llava_lite.tiny import IMAGE_TOKEN, asymmetric_, prompt, random_guidance, random_pixels, tiny_config
from transformers_litelvlm import LlavaLiteForConditionalGeneration
from transformers_litelvlm.pruning import get_pruner, list_pruners


ASKING = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__", "cpu", "nonzero")
DATA_DEPENDENT = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "is_nonzero")

# Nothing is pruned before the decoder: inside it, the length of the question decides shapes.
METHODS = [name for name in list_pruners() if name != "none" and not get_pruner(name).is_inside_language_model]


class AskingFunctions(TorchFunctionMode):
    """Names of the functions by which Python gets at values."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ASKING:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class DataDependentOperations(TorchDispatchMode):
    """Names of the operations whose result has a size that values decide, or is a value."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in DATA_DEPENDENT or any(i is not None and i.dtype == torch.bool for i in indices):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def between_tower_and_decoder(model, begin, end):
    """Calls `begin` behind the last layer of the vision tower that runs, and `end` before the first decoder layer."""
    base = model.model
    handles = [
        base.vision_tower.encoder.layers[-2].register_forward_hook(lambda *args: begin()),
        base.language_model.layers[0].register_forward_pre_hook(lambda *args: end()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model, inputs, call):
    """What is asked of the device in between."""
    found, modes = [], []

    def begin():
        for mode in (AskingFunctions(found), DataDependentOperations(found)):
            modes.append(mode)
            mode.__enter__()

    def end():
        while modes:
            modes.pop().__exit__(None, None, None)

    with between_tower_and_decoder(model, begin, end), torch.no_grad():
        try:
            call(**inputs)
            assert not modes, "the decoder did not run"
        finally:
            end()
    return found


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))


def inputs_of(num_expressions=2, **kwargs):
    ids, mask = prompt([1, 5, "image", 6, 7, 8], [1, 9, "image", 10, 11], **kwargs)
    guidance_ids, guidance_mask = random_guidance(2, num_expressions)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_pixels(2),
        "guidance_input_ids": guidance_ids,
        "guidance_attention_mask": guidance_mask,
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", [("reference", "compact"), ("raster", "original")])
@pytest.mark.parametrize("num_expressions", [1, 3])
def test_litelvlm(model, policy, side, attention, num_expressions):
    model.set_attn_implementation({"text_config": attention, "vision_config": attention})
    order, positions = policy
    model.config.pruning_config = model.config.pruning_config.replace(
        method="litelvlm", budget=5, token_order=order, position_ids=positions
    )
    inputs = inputs_of(num_expressions, padding_side=side)
    assert run(model, inputs, model.model) == []
    assert run(model, inputs, model) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_before_the_decoder(model, method):
    model.set_attn_implementation("sdpa")
    model.config.pruning_config = model.config.pruning_config.replace(method=method, budget=5)
    assert run(model, inputs_of(), model) == []


def test_upstreams_own_route_is_caught(model):
    """The check can fail: upstream compares numbers of placeholders, and looks whether the mask is needed."""
    model.config.pruning_config = model.config.pruning_config.replace(method="litelvlm", budget=5)
    features = model.get_image_features(
        **{k: v for k, v in inputs_of().items() if k.startswith(("pixel", "guidance"))}
    )

    def upstream(pixel_values, guidance_input_ids, guidance_attention_mask, **inputs):
        model.model.vision_tower(pixel_values)
        ids, mask = prompt([1, 5, *[IMAGE_TOKEN] * 5, 6], [1, 9, *[IMAGE_TOKEN] * 5, 10])
        plain = type(features).__mro__[1](pooler_output=features.pooler_output)
        model.model(input_ids=ids, attention_mask=mask, mm_encoder_outputs={"image": plain})

    assert len(run(model, inputs_of(), upstream)) >= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", METHODS)
def test_cuda_itself_agrees(method):
    model = asymmetric_(LlavaLiteForConditionalGeneration(tiny_config())).cuda()
    model.config.pruning_config = model.config.pruning_config.replace(method=method, budget=5)
    inputs = {name: value.cuda() for name, value in inputs_of().items()}
    with torch.no_grad():
        model(**inputs)  # the first call loads kernels and libraries
        with between_tower_and_decoder(
            model, lambda: torch.cuda.set_sync_debug_mode("error"), lambda: torch.cuda.set_sync_debug_mode("default")
        ):
            try:
                model(**inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
