"""A method before the language model and one inside it: as the second alone, on the prompt that the first makes."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.support.family_cases import NUM_LAYERS
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.pruning import build_pruner


FIRST, SECOND = 8, 4
BEFORE = ["litelvlm", "random"]
INSIDE = [("fastv", {"layer": 1}), ("ivc_prune", {"layer": 2}), ("sparsevlm", {"layers": [0, 1], "keep": [4, 3]})]
CASES = pytest.mark.parametrize("name", BEFORE)
THEN = pytest.mark.parametrize("second, options", INSIDE, ids=[name for name, _ in INSIDE])
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}


def two_methods(family, name, second, options):
    """The settings of both, of the first alone, and of the second alone."""
    order, positions = family.policies[-1]
    try:
        build_pruner(second, **options).tokens_after(FIRST, SECOND, NUM_LAYERS)
    except ValueError as error:
        pytest.skip(str(error))
    first = {"method": name, "budget": FIRST, "token_order": order, "position_ids": positions}
    then = {"method": second, "budget": SECOND, "method_options": options}
    return PruningConfig(**first, then=then), PruningConfig(**first), PruningConfig(**then)


def features_of(family, model, inputs, pruning):
    """Placeholder id -> for every image or video of a row its kept features, their indices, and N."""
    found, start = {}, 0
    for modality in family.modalities:
        arguments = {n: inputs[n] for n in model.model.media_arguments[modality] if n in inputs}
        if not arguments:
            continue
        num_media = len(model.model.media_grids(modality, arguments))
        for name in ("guidance_input_ids", "guidance_attention_mask"):
            arguments[name] = inputs[name][start : start + num_media]
        start += num_media
        output = getattr(model.model, f"get_{modality}_features")(**arguments, pruning_config=pruning)
        found[getattr(model.config, f"{modality}_token_id")] = list(
            zip(output.pooler_output, output.retained_indices, output.num_visual_tokens)
        )
    return found


def shortened(family, model, inputs, first):
    """What the first method leaves of a prompt of one row: arguments of the model, and columns of the full prompt."""
    features = features_of(family, model, inputs, first)
    [ids], columns = inputs["input_ids"].tolist(), []
    queues = {token: iter(found) for token, found in features.items()}
    column = 0
    while column < len(ids):
        if ids[column] in queues:
            _, indices, size = next(queues[ids[column]])
            columns += [column + index for index in indices.tolist()]
            column += size
        else:
            columns.append(column)
            column += 1
    positions = family.full_positions(model, inputs)[..., columns]
    encoded = {}
    for modality in family.modalities:
        found = features.get(getattr(model.config, f"{modality}_token_id"))
        if found:
            encoded[modality] = BaseModelOutputWithPooling(pooler_output=[tokens for tokens, _, _ in found])
    arguments = {
        "input_ids": inputs["input_ids"][:, columns],
        "attention_mask": inputs["attention_mask"][:, columns],
        "position_ids": family.shape_positions(positions),
        "mm_encoder_outputs": encoded,
    }
    return arguments, columns


@CASES
@THEN
@torch.no_grad()
def test_logits_are_those_of_the_second_method_on_the_prompt_of_the_first(family, model, name, second, options):
    both, first, alone = two_methods(family, name, second, options)
    for row in (0, 1):
        inputs = family.row(row)
        arguments, columns = shortened(family, model, inputs, first)
        expected = model(**arguments, pruning_config=alone)
        actual = model(**inputs, pruning_config=both)
        torch.testing.assert_close(actual.logits[:, columns], expected.logits, atol=1e-5, rtol=1e-5)
        dropped = sorted(set(range(inputs["input_ids"].shape[1])) - set(columns))
        assert len(dropped) > 0 and actual.logits[:, dropped].abs().max() == 0
        # Columns are the caller's.
        last = model(**inputs, pruning_config=both, logits_to_keep=2).logits
        torch.testing.assert_close(last, actual.logits[:, -2:], atol=1e-5, rtol=1e-5)
        for modality in family.modalities:
            of_both, of_second = (getattr(each, f"{modality}_outputs", None) for each in (actual, expected))
            if of_both is None:
                continue
            token = getattr(model.config, f"{modality}_token_id")
            found = features_of(family, model, inputs, first)[token]
            rows = zip(found, of_both.retained_indices, of_second.retained_indices, strict=True)
            for (_, indices, size), left, own in rows:
                assert left.tolist() == indices[own].tolist() and len(left) == SECOND
                assert size in of_both.num_visual_tokens


@CASES
@THEN
def test_a_batch_and_decoding(family, model, name, second, options):
    both, first, alone = two_methods(family, name, second, options)
    inputs = family.lite_inputs()
    length = inputs["input_ids"].shape[1]
    together = model.generate(**inputs, **GREEDY, pruning_config=both)[:, length:]
    for row in (0, 1):
        one = family.row(row)
        arguments, columns = shortened(family, model, one, first)
        expected = model.generate(**arguments, **GREEDY, pruning_config=alone)[:, len(columns) :]
        single = model.generate(**one, **GREEDY, pruning_config=both)[:, one["input_ids"].shape[1] :]
        assert single.tolist() == expected.tolist() == together[row : row + 1].tolist()


def test_settings_that_do_not_fit_together():
    then = {"method": "fastv", "budget": 4}
    with pytest.raises(ValueError, match="`method` must work before the language model.*'fastv' and 'fastv'"):
        PruningConfig(method="fastv", budget=8, then=then)
    with pytest.raises(ValueError, match="got 'litelvlm' and 'random'"):
        PruningConfig(budget=8, then={"method": "random", "budget": 4})
    with pytest.raises(ValueError, match="`then` needs a `budget` or a `retention_ratio`"):
        PruningConfig(budget=8, then={"method": "fastv"})
    with pytest.raises(ValueError, match="`then` has no field \\['presets'\\]"):
        PruningConfig(budget=8, then={**then, "presets": {}})
    with pytest.raises(ValueError, match="`budget` must be a positive integer"):
        PruningConfig(budget=8, then={**then, "budget": 0})
    config = PruningConfig(budget=8, then=then)
    with pytest.raises(ValueError, match="got 'sparsevlm' and 'fastv'"):
        config.method = "sparsevlm"
    assert config.replace(method="random").then is None and config.replace(budget=9).then == then
    config.then["budget"] = 2  # in place
    assert config.build().then.budget == 2


def test_saved_and_read_back(tmp_path):
    config = PruningConfig(budget=8, then={"method": "fastv", "retention_ratio": 0.5, "method_options": {"layer": 1}})
    config.save_pretrained(tmp_path)
    again = PruningConfig.from_pretrained(tmp_path)
    assert again.then == config.then and again.build().then.build_pruner().layer == 1
