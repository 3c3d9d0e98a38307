"""What only a GPU shows: `make gpu-report` runs these there, `make test` runs on the CPU what means something there.

Nothing that waits: tests/models/test_host_synchronisation.py, which belongs to the report too.
"""

from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, TorchAoConfig
from transformers.utils import is_flash_attn_2_available

from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.benchmark.memory import activation_bytes
from transformers_litelvlm.data.refshapes import generate_scene
from transformers_litelvlm.models.quantization import quantize, weight_bytes


pytestmark = pytest.mark.gpu

HAS_CUDA = torch.cuda.is_available()
# In `make test`, what is quick; a GPU report runs everything.
HALVES = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
DEVICE = torch.device("cuda" if HAS_CUDA else "cpu")
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
BUDGET = 16  # of 144
SENTENCES = ["the red triangle", "the dotted triangle"]
# How far a score must be from the one that just stays, in standard deviations, for its token to count.
MARGIN = 0.05


def load(dtype=torch.float32, **kwargs):
    kwargs = {"device_map": {"": DEVICE}, "pruning_budget": BUDGET, **kwargs}
    return AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT, dtype=dtype, **kwargs).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def inputs(processor):
    return processor.segmentation_inputs(Image.open("examples/assets/demo.png"), SENTENCES).to(DEVICE)


@pytest.fixture(scope="module")
def on_cpu(inputs):
    # `inputs.to` would move what the tests are given.
    return load(device_map={"": "cpu"}).segment(**{name: value.cpu() for name, value in inputs.items()})


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """By default, CUDA rounds the inputs of convolutions to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def overlap(ours, theirs):
    """Intersection over union of all masks together."""
    ours, theirs = (torch.cat([masks.flatten().cpu() for masks in output.masks]) for output in (ours, theirs))
    return ((ours & theirs).sum() / (ours | theirs).sum()).item()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "method, scores",
    [("litelvlm", "similarity"), pytest.param("cls_attention", "context_scores", marks=pytest.mark.slow)],
)
def test_tokens_chosen_in_half_precision(processor, dtype, method, scores):
    """Of tokens with scores that are well apart from the last one kept, at least 99 of 100 are decided alike."""
    options = {"context_share": 0.0} if method == "litelvlm" else {}
    pruning = PruningConfig(method=method, method_options=options, budget=BUDGET)
    scenes = [generate_scene("test", number) for number in range(8)]
    pictures = [Image.fromarray(scene.image) for scene in scenes]
    given = processor.segmentation_inputs(pictures, [["the red circle"]] * len(pictures)).to(DEVICE)
    outputs = [load(each).segment(**given, pruning_config=pruning) for each in (torch.float32, dtype)]

    values = outputs[0][scores].cpu().float().view(len(pictures), -1)
    values = -values if method == "litelvlm" else values
    kept = [
        torch.zeros_like(values, dtype=torch.bool).scatter(1, each.retained_indices.cpu(), True) for each in outputs
    ]
    last = values.masked_fill(~kept[0], torch.inf).amin(dim=1, keepdim=True)
    is_apart = (values - last).abs() > MARGIN * values.std(dim=1, keepdim=True)
    assert is_apart.float().mean() > 0.8
    alike = (kept[0] == kept[1])[is_apart].float().mean().item()
    assert alike >= 0.99, f"{alike:.4f}"


def test_masks_are_those_of_the_cpu(inputs, on_cpu):
    output = load().segment(**inputs)
    assert output.masks[0].device.type == DEVICE.type
    assert torch.equal(output.retained_indices.cpu(), on_cpu.retained_indices)
    assert overlap(output, on_cpu) > 0.99


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_attention(inputs, on_cpu, attention):
    is_flash = attention == "flash_attention_2"
    if is_flash and not (HAS_CUDA and is_flash_attn_2_available()):
        pytest.skip("FlashAttention 2 is not installed, or there is no CUDA")
    kinds = {"text_config": attention, "vision_config": attention}
    model = load(torch.bfloat16 if is_flash else torch.float32)
    model.set_attn_implementation(kinds)
    assert overlap(model.segment(**inputs), on_cpu) > (0.9 if is_flash else 0.99)


@pytest.mark.parametrize("device_map", ["auto", "one"])
def test_device_map(inputs, on_cpu, device_map):
    pytest.importorskip("accelerate")
    model = load(device_map="auto" if device_map == "auto" and HAS_CUDA else {"": DEVICE})
    assert model.device.type == DEVICE.type and overlap(model.segment(**inputs), on_cpu) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantization(inputs, on_cpu, kind):
    """By name: bitsandbytes on CUDA, and for int8 on a CPU torchao."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    full = load(torch.float16 if HAS_CUDA else torch.float32)
    quantized = quantize(full, kind)
    assert weight_bytes(quantized) < 0.95 * weight_bytes(full)
    assert overlap(quantized.segment(**inputs), on_cpu) > 0.5


@pytest.mark.slow
def test_quantization_by_torchao(inputs, on_cpu):
    quantization = pytest.importorskip("torchao.quantization")
    model = load(torch.bfloat16, quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()))
    assert overlap(model.segment(**inputs), on_cpu) > 0.5


@contextmanager
def traced_anew():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", [pytest.param("default", marks=pytest.mark.slow), "reduce-overhead"])
def test_compiled_layers(inputs, on_cpu, mode):
    """Layer by layer, one graph for all: no break, no recompilation; `reduce-overhead` replays CUDA graphs."""
    how = {"mode": mode} if HAS_CUDA else {"backend": "eager"}
    model = load()
    with traced_anew():
        for layer in model.model.language_model.layers:
            layer.compile(fullgraph=True, dynamic=False, **how)
        for _ in range(3):
            # Else CUDA graphs take every layer for a new step, and overwrite what the last one gave.
            torch.compiler.cudagraph_mark_step_begin()
            output = model.segment(**inputs)
    assert overlap(output, on_cpu) > 0.99


@needs_cuda
def test_a_cuda_graph_of_the_prefill(inputs):
    """The language model with a budget has static shapes: captured once, it is replayed for other pictures."""
    language_model = load(torch.bfloat16).model.language_model
    embeds = torch.randn(1, 64, language_model.config.hidden_size, device=DEVICE, dtype=torch.bfloat16)
    call = torch.inference_mode()(lambda: language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in range(2):
        embeds.normal_(generator=torch.Generator(DEVICE).manual_seed(seed))
        graph.replay()
        torch.testing.assert_close(captured, call(), atol=1e-2, rtol=1e-2)


def test_pruned_takes_less_memory(inputs):
    model = load()

    def bytes_of(pruning):
        return activation_bytes(lambda: model.segment(**inputs, pruning_config=pruning), DEVICE)

    bytes_of(PruningConfig())  # the first call also makes what libraries keep
    assert 0 < bytes_of(model.config.pruning_config) <= bytes_of(PruningConfig())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_mask_model_in_half_precision(inputs, on_cpu, dtype):
    """A switch of its own: `model.mask_model.to(dtype)`; what chooses tokens and answers stays as it is."""
    model = load()
    model.mask_model.to(dtype)
    output = model.segment(**inputs)
    assert output.mask_logits[0].dtype == torch.float32 and output.pred_masks[0].dtype == dtype
    assert torch.equal(output.retained_indices.cpu(), on_cpu.retained_indices) and overlap(output, on_cpu) > 0.95
