"""A method before the language model and one inside it: as the second alone, on the prompt that the first makes."""

import pytest
import torch

from tests.support.family_cases import NUM_LAYERS, need_methods_inside
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.models.outputs import MediaFeatures
from transformers_litelvlm.pruning import build_pruner


FIRST, SECOND = 8, 4
BEFORE = ["litelvlm", "random"]
INSIDE = [("fastv", {"layer": 1}), ("ivc_prune", {"layer": 2}), ("sparsevlm", {"layers": [0, 1], "keep": [4, 3]})]
CASES = pytest.mark.parametrize("name", BEFORE)
THEN = pytest.mark.parametrize("second, options", INSIDE, ids=[name for name, _ in INSIDE])
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}


def two_methods(family, name, second, options):
    """The settings of both, of the first alone, and of the second alone."""
    need_methods_inside(family)
    order, positions = family.policies[-1]
    try:
        build_pruner(second, **options).tokens_after(FIRST, SECOND, NUM_LAYERS)
    except ValueError as error:
        pytest.skip(str(error))
    first = {"method": name, "budget": FIRST, "token_order": order, "position_ids": positions}
    then = {"method": second, "budget": SECOND, "method_options": options}
    return PruningConfig(**first, then=then), PruningConfig(**first), PruningConfig(**then)


def outputs_of(family, model, inputs, pruning):
    """Modality -> what the first method leaves of the images or videos of a row."""
    found, start = {}, 0
    for modality in family.modalities:
        arguments = {n: inputs[n] for n in model.model.media_arguments[modality] if n in inputs}
        if not arguments:
            continue
        num_media = len(model.model.media_grids(modality, arguments))
        for name in ("guidance_input_ids", "guidance_attention_mask"):
            arguments[name] = inputs[name][start : start + num_media]
        start += num_media
        found[modality] = getattr(model.model, f"get_{modality}_features")(**arguments, pruning_config=pruning)
    return found


def features_of(family, model, inputs, pruning):
    """Placeholder id -> for every image or video of a row its kept features, their indices, and N."""
    return {
        getattr(model.config, f"{modality}_token_id"): list(
            zip(output.pooler_output, output.retained_indices, output.num_visual_tokens)
        )
        for modality, output in outputs_of(family, model, inputs, pruning).items()
    }


def shortened(family, model, inputs, first):
    """What the first method leaves of a prompt of one row: arguments of the model, and columns of the full prompt."""
    features = features_of(family, model, inputs, first)
    [ids] = inputs["input_ids"].tolist()
    kept = {column: column for column, token in enumerate(ids) if token not in features}  # slot -> where from
    for token, found in features.items():
        own = [column for column, each in enumerate(ids) if each == token]
        for _, indices, size in found:
            origins = [own[index] for index in indices.tolist()]
            kept.update(zip(sorted(origins), origins))
            own = own[size:]
    columns = [kept[slot] for slot in sorted(kept)]
    positions = family.full_positions(model, inputs)[..., columns]
    encoded = {
        modality: MediaFeatures(pooler_output=output.pooler_output, deepstack_features=output.deepstack_features)
        for modality, output in outputs_of(family, model, inputs, first).items()
    }
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


@THEN
def test_a_row_that_the_second_method_leaves_whole_keeps_its_positions(family, model, second, options):
    """As it would alone, whatever other rows of the batch lose; also in its cache."""
    need_methods_inside(family)
    if second == "sparsevlm" or all(positions != "compact" for _, positions in family.policies):
        pytest.skip("fixed numbers of tokens, or positions that are never renumbered")
    # Of 16, 48 and 32 tokens 2, 5 and 3 are left, of which only the 5 are too many.
    then = {"method": second, "budget": 3, "method_options": options, "position_ids": "compact"}
    pruning = PruningConfig(method="random", retention_ratio=0.1, position_ids="original", then=then)
    keywords = {"pruning_config": pruning, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    length = family.lite_inputs()["input_ids"].shape[1]
    together = model.generate(**family.lite_inputs(), **keywords)
    for row in (0, 1):
        alone = model.generate(**family.row(row), **keywords)
        assert alone.sequences[0, -5:].tolist() == together.sequences[row, length:].tolist()
        for one, of_batch in zip(alone.logits, together.logits, strict=True):
            torch.testing.assert_close(one[0], of_batch[row], atol=1e-4, rtol=1e-4)
    beams = model.generate(**family.lite_inputs(), **GREEDY, pruning_config=pruning, num_beams=2)
    for row in (0, 1):
        alone = model.generate(**family.row(row), **GREEDY, pruning_config=pruning, num_beams=2)
        assert alone[0, -5:].tolist() == beams[row, length:].tolist()


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
