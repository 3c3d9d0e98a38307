"""The stages together are what runs end to end, for every kind of model; the baseline one by one is what it says."""

import pytest
import torch

from tests.support.random_weights import asymmetric_
from tests.support.tiny_presets import TINY
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.benchmark.flops import FlopMeter, count_flops
from transformers_litelvlm.benchmark.memory import activation_bytes
from transformers_litelvlm.benchmark.side_by_side import Effort, SideBySide
from transformers_litelvlm.benchmark.stages import SELECTOR, STAGES, StagedModel


CPU = torch.device("cpu")


@pytest.fixture(params=TINY)
def kind(request):
    return request.param


def staged_and_workload(kind: str, batch_size: int = 1, sentences: int = 1):
    model = TINY[kind].build(torch.float32, CPU)
    return StagedModel(model), TINY[kind].workload(model.config, batch_size, sentences)


@pytest.mark.parametrize("pruning", [None, PruningConfig(budget=12)], ids=["unpruned", "pruned"])
def test_stages_do_the_work_of_end_to_end(kind, pruning):
    staged, workload = staged_and_workload(kind, batch_size=2, sentences=2)
    staged.prune(pruning)
    meter, whole = FlopMeter(), []
    total = count_flops(lambda: whole.append(staged.end_to_end(workload.inputs)))
    output = staged.run_stages(workload.inputs, meter.stage)
    assert sum(meter.flops.values()) == total
    assert list(meter.flops) == [name for name in STAGES if name in meter.flops], "in the order of the report"
    assert (pruning is not None) == ("scoring + selection" in meter.flops)
    staged.check_finite(whole[0])
    if staged.has_masks:
        read = staged.model.read(workload.inputs, staged.encode(workload.inputs), staged.settings)
        for_masks = staged.model.encode_for_masks(workload.inputs)
        masks = torch.cat(staged.model.decode(read, workload.inputs, for_masks).mask_logits)
        torch.testing.assert_close(masks, torch.cat(whole[0].mask_logits))
    else:
        torch.testing.assert_close(output.logits[:, -1], whole[0].logits[0])


def test_what_is_not_finite_is_an_error(kind):
    staged, workload = staged_and_workload(kind)
    with torch.no_grad():
        staged.base.language_model.norm.weight.fill_(torch.nan)
        staged.base.language_model.layers[0].input_layernorm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        staged.check_finite(staged.end_to_end(workload.inputs))


@pytest.mark.parametrize("kind_with_masks", ["glamm", "lisa", "unipixel"])
def test_one_by_one_gives_the_masks_of_the_joint_call(kind_with_masks):
    """Unpruned: of a joint dialogue the first sentence, which no later one changes; of dialogues of their own all."""
    staged, workload = staged_and_workload(kind_with_masks, batch_size=2, sentences=3)
    asymmetric_(staged.model)  # weights so large that masks depend on sentences
    staged.prune(None)
    joint = staged.end_to_end(workload.inputs)
    alone = [staged.end_to_end(inputs) for inputs in workload.one_by_one]
    prompts = joint.seg_embeddings.reshape(2, 3, -1)
    for image in range(2):
        for sentence in range(1 if kind_with_masks == "glamm" else 3):
            mine, theirs = joint.mask_logits[image][sentence], alone[sentence].mask_logits[image][0]
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(
                prompts[image, sentence], alone[sentence].seg_embeddings.reshape(2, -1)[image], atol=1e-4, rtol=1e-4
            )
    assert not torch.allclose(prompts[0, 0], prompts[0, 1], atol=1e-2), "sentences differ"


def test_the_memory_of_a_shared_prompt_is_that_of_reading_it_once():
    """Of LISA's dialogues the beginning is read once and kept: another memory than that of three whole prompts."""
    staged, workload = staged_and_workload("lisa", sentences=3)
    measured = SideBySide(staged, workload, Effort(parts=["memory"]))._memory_of(None)["prefill_bytes"]
    inputs, features = workload.inputs, staged.encode(workload.inputs)
    with torch.inference_mode():
        read = activation_bytes(lambda: staged.model.read(inputs, features, staged.settings), CPU)
        whole = activation_bytes(lambda: staged.prefill(staged.compact(inputs, features)), CPU)
    assert measured == pytest.approx(read, rel=0.01) and read > 1.5 * whole


def test_exactly_so_many_tokens_are_generated(kind):
    staged, workload = staged_and_workload(kind)
    length = workload.inputs["input_ids"].shape[1]
    for pruning in (None, PruningConfig(budget=12)):
        staged.prune(pruning)
        features = staged.encode(workload.inputs)
        fresh = staged.generate(workload.inputs, 4).sequences
        assert fresh.shape == (1, length + 4)
        assert staged.generate(workload.inputs, 4, features).sequences.equal(fresh), "encoded before, the same tokens"


@pytest.mark.parametrize("pruning", [None, PruningConfig(budget=12)], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("kind_of_dialogues", ["lisa", "unipixel"])
def test_dialogues_about_one_picture_generate_what_each_does_alone(kind_of_dialogues, pruning):
    staged, workload = staged_and_workload(kind_of_dialogues, batch_size=2, sentences=3)
    asymmetric_(staged.model)
    staged.prune(pruning)
    features = staged.encode(workload.inputs)
    together = staged.generate(workload.inputs, 4, features).sequences.unflatten(0, (2, 3))
    for sentence, inputs in enumerate(workload.one_by_one):
        alone = staged.generate(inputs, 4, staged.encode(inputs)).sequences
        assert together[:, sentence].equal(alone)
    assert not together[0, 0, -4:].equal(together[0, 1, -4:]), "sentences differ"


def test_a_method_that_runs_the_tower_itself_is_not_charged_for_it_twice():
    staged, workload = staged_and_workload("glamm")
    flops = {}
    for method in ("uniform", "tome"):
        staged.prune(PruningConfig(method=method, budget=12))
        meter = FlopMeter()
        staged.run_stages(workload.inputs, meter.stage)
        assert staged.runs_tower() == (method == "tome")
        assert sum(meter.flops.values()) == count_flops(lambda: staged.end_to_end(workload.inputs))
        flops[method] = meter.flops
    assert flops["tome"]["vision tower"] < 0.2 * flops["uniform"]["vision tower"]
    assert flops["tome"]["scoring + selection"] > 0.2 * flops["uniform"]["vision tower"]


def test_the_selector_is_made_of_stages():
    assert set(SELECTOR) < set(STAGES)
