"""`generate` token by token against `forward` without a cache, for every family and method.

An argument that upstream renames, such as the cache's, and that our `forward` then does not see, shows here.
"""

import inspect
from itertools import product

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.support.families import MODELS
from tests.support.family_cases import BUDGET, LAYER_CASES, NUM_LAYERS, is_defined
from tests.support.matrix import matrix
from tests.support.methods import EVERY, ONE_OF_EACH_KIND
from transformers_litelvlm import PruningConfig, get_pruner, list_pruners
from transformers_litelvlm.configuration_pruning import Built
from transformers_litelvlm.models.decoder.cache import shortened_prompts
from transformers_litelvlm.pruning.layers import LayerPruner


NUM_STEPS = 24


TOKEN_CASES = [
    (family, name, options)
    for family in MODELS
    for name, options in dict(reversed(EVERY)).items()
    if is_defined(family, name)
]
# Tokens that also leave the caches of earlier layers have no counterpart in a loop without a cache; for these methods
# test_families_layer_methods.py compares every decoding step with stock layers and masks.
CASES = TOKEN_CASES + [case for case in LAYER_CASES if not get_pruner(case[1]).prunes_earlier_caches]


class Repeating:
    """Has a method inside the language model choose what it chose before.

    It reads the text behind the images, which has grown: what it chose for the prompt counts.
    """

    def __init__(self, monkeypatch, pruning):
        pruner, self.chosen, self.again = pruning.build_pruner(), [], None

        class Repeated(type(pruner)):
            def select(_, evidence, budget):
                if self.again is not None:
                    return next(self.again)
                self.chosen.append(super().select(evidence, budget))
                return self.chosen[-1]

        repeated = Repeated(**pruning.method_options)
        if isinstance(pruner, LayerPruner):
            monkeypatch.setattr(PruningConfig, "build", lambda config: Built(repeated, None, ({}, None)))

    def from_here_on(self):
        self.again = iter(self.chosen)


def placeholders(model):
    """Tokens that a model with random weights must not write: as part of a prompt, each would ask for an image."""
    ids = (getattr(model.config, name, None) for name in ("image_token_id", "video_token_id"))
    return [number for number in ids if number is not None]


@torch.no_grad()
def choices_without_a_cache(model, inputs, ids, repeating):
    """What a loop of `forward` without a cache writes, if it wrote the same before: all of its steps in one call. No
    token sees a later one."""
    further = ids.shape[1] - inputs["input_ids"].shape[1] - 1
    inputs = {**inputs, "input_ids": ids[:, :-1]}
    inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, further), value=1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, further))
    repeating.from_here_on()
    logits = model(**inputs, use_cache=False).logits[:, -further - 1 :]
    logits[..., placeholders(model)] = float("-inf")
    return logits.argmax(dim=-1)


_MODELS: dict = {}


@pytest.mark.parametrize(
    "family, name, options",
    matrix(CASES, lambda case: case[1] in ONE_OF_EACH_KIND and case[0].is_quick),
    ids=[f"{f.name}-{n}-{o}" for f, n, o in CASES],
)
def test_generate_is_a_loop_of_forward(family, name, options, monkeypatch):
    model = _MODELS.setdefault(family.name, None) or family.model(NUM_LAYERS)
    _MODELS[family.name] = model
    pruning = model.config.pruning_config = PruningConfig(method=name, budget=BUDGET, method_options=options)
    inputs = family.lite_inputs()
    repeating = Repeating(monkeypatch, pruning)
    generated = model.generate(
        **inputs,
        max_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=placeholders(model),
    )
    new = generated[:, -NUM_STEPS:]
    assert new.tolist() == choices_without_a_cache(model, inputs, generated, repeating).tolist()
    assert new.unique().numel() > 3  # not one token all the time, which any cache would give


def test_every_method_is_exercised():
    for family in MODELS:
        exercised = {name for other, name, _ in CASES if other is family}
        others = {name for name in list_pruners() if getattr(get_pruner(name), "prunes_earlier_caches", False)}
        if family.is_recurrent:
            others = {name for name in list_pruners() if issubclass(get_pruner(name), LayerPruner)}
        assert exercised | others == {name for name in list_pruners() if is_defined(family, name)}


POLICIES = [(family, positions) for family in MODELS for positions in ("original", "compact")]
POLICIES = [case for case in POLICIES if case[1] in {positions for _, positions in case[0].policies}]
BY_POLICY = pytest.mark.parametrize("family, positions", POLICIES, ids=[f"{f.name}-{p}" for f, p in POLICIES])


def pruned(family, positions):
    model = family.model()
    model.config.pruning_config = PruningConfig(method="uniform", budget=5, position_ids=positions)
    return model


@BY_POLICY
@torch.no_grad()
def test_forward_after_a_beginning_in_the_cache(family, positions):
    """With and without a mask, which covers the cache."""
    model = pruned(family, positions)
    row = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    ids = torch.nn.functional.pad(row["input_ids"], (3, 0), value=7)
    types = {name: torch.nn.functional.pad(row[name], (3, 0)) for name in ("mm_token_type_ids",) if name in row}
    whole = {**row, "input_ids": ids, **types}
    places = family.shape_positions(family.full_positions(family.stock(model), {**whole, "attention_mask": ids > -1}))
    new, output = torch.tensor([[7, 8]]), model(**whole, position_ids=places, use_cache=True)
    expected, after = output.logits[:, 3:], model(input_ids=new, cache=output.cache).logits
    kinds = (DynamicCache, {}), (StaticCache, {"max_cache_len": 64})
    for mask, (kind, size) in product(({}, {"attention_mask": torch.ones_like(ids)}), kinds):
        cache = kind(config=model.config.get_text_config(), **size)
        model(input_ids=ids[:, :3], position_ids=places[..., :3], cache=cache)
        found = model(**row, **mask, position_ids=places[..., 3:], cache=cache)
        torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(input_ids=new, cache=cache).logits, after, rtol=1e-5, atol=1e-5)
    if not family.base_class.counts_positions:
        with pytest.raises(ValueError, match="`cache` holds .* tokens, and places in a picture .* `position_ids`"):
            model(**row, cache=cache)
    for filler in (0, 1):  # what padding has for a position, in upstream's models and elsewhere
        padded = {name: torch.nn.functional.pad(row[name], (0, 2)) for name in ("input_ids", *types)}
        mask = torch.nn.functional.pad(torch.ones_like(ids), (0, 2))
        numbers = torch.nn.functional.pad(places[..., 3:], (0, 2), value=filler)
        cache = model(input_ids=ids[:, :3], position_ids=places[..., :3], use_cache=True).cache
        found = model(**{**row, **padded}, attention_mask=mask, position_ids=numbers, cache=cache)
        torch.testing.assert_close(found.logits[:, :-2], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"`attention_mask` of shape \(batch, length\), .* after ones for the cache"):
        model(**row, attention_mask=torch.ones_like(row["input_ids"]), position_ids=places[..., 3:], cache=cache)


@BY_POLICY
@torch.no_grad()
def test_forward_by_hand_continues_as_generate_does(family, positions):
    model = pruned(family, positions)
    row, steps = family.row(1), {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = model.generate(**row, **steps, max_new_tokens=4, min_new_tokens=4)
    new = written.sequences[:, -4:]
    by_hand = model(**row, use_cache=True).cache
    for step in range(3):
        output = model(input_ids=new[:, step : step + 1], cache=by_hand)
        torch.testing.assert_close(output.logits[:, -1], written.logits[step + 1], rtol=1e-5, atol=1e-5)
    # After `generate`, the cache has all but the last token, also one passed to a call that returns ids alone.
    passed = DynamicCache(config=model.config.get_text_config())
    model.generate(**row, cache=passed, do_sample=False, max_new_tokens=4, min_new_tokens=4)
    expected = model(input_ids=new[:, 3:], cache=by_hand).logits
    for cache in (written.cache, passed):
        further = model(input_ids=new[:, 3:], cache=cache).logits
        torch.testing.assert_close(further, expected, rtol=1e-5, atol=1e-5)


@BY_POLICY
@torch.no_grad()
def test_generate_goes_on_with_new_tokens_alone(family, positions):
    """Or says what it needs: a mask over the shortened prompt, not the one that was passed, and no embeddings."""
    model, row = pruned(family, positions), family.row(1)
    steps = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}

    def first(**row):
        output = model.generate(**row, **steps, max_new_tokens=3)
        return torch.nn.functional.pad(output.sequences[:, -1:], (0, 2), value=7), output.cache

    new, cache = first(**row)
    expected = [model(input_ids=new, cache=cache).logits[:, -1]]
    new, cache = first(**row)
    length = cache.get_seq_length() + 3
    for mask in ({}, {"attention_mask": new.new_ones(1, row["input_ids"].shape[1] + 5)}):
        with pytest.raises(ValueError, match="shortened.* `attention_mask`"):
            model.generate(input_ids=new, cache=cache, **mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="a prompt that pruning shortened"):
        whole = model.get_input_embeddings()(torch.cat((row["input_ids"], new), dim=1))
        model.generate(inputs_embeds=whole, cache=cache, max_new_tokens=2)
    output = model.generate(
        input_ids=new, attention_mask=new.new_ones(1, length), cache=cache, **steps, max_new_tokens=2
    )
    second = first(**row)[1]
    expected.append(model(input_ids=torch.cat((new, output.sequences[:, 3:4]), dim=1), cache=second).logits[:, -1])
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected), rtol=1e-5, atol=1e-5)
    # The position after padding that is gone is that of the row alone, or it is asked for.
    if model.model.counts_positions:
        padded = {n: torch.nn.functional.pad(row[n], (2, 0)) for n in ("input_ids", "attention_mask")}
        cache = first(**{**row, **padded})[1]
        if positions == "original":
            with pytest.raises(ValueError, match="a prompt whose padding pruning changed.* `position_ids`"):
                model(input_ids=new, cache=cache)
        else:
            torch.testing.assert_close(
                model(input_ids=new, cache=cache).logits[:, -1], expected[0], rtol=1e-5, atol=1e-5
            )


@torch.no_grad()
@pytest.mark.parametrize(
    "family", [family for family in MODELS if not family.is_recurrent], ids=lambda each: each.name
)
def test_a_cache_that_was_cropped_forgets_the_pruned_prompt(family):
    model = pruned(family, "original")
    beginning, new = torch.tensor([[7, 8, 9]]), torch.tensor([[7, 8]])
    expected = model(input_ids=new, cache=model(input_ids=beginning, use_cache=True).cache).logits
    places = 3 + family.shape_positions(family.full_positions(family.stock(model), family.row(1)))
    row = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    cache = model(**row, position_ids=places, cache=model(input_ids=beginning, use_cache=True).cache).cache
    cache.crop(3 - cache.get_seq_length())
    if hasattr(model.model, "rope_deltas"):  # upstream's, of the last prompt
        model.model.rope_deltas = None
    torch.testing.assert_close(model(input_ids=new, cache=cache).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "family, positions",
    [case for case in POLICIES if not case[0].is_recurrent],
    ids=lambda value: getattr(value, "name", value),
)
@torch.no_grad()
def test_another_question_about_the_same_image(family, positions):
    """The text after it is cropped, in part or whole: new tokens have the places of the old ones."""
    model, new = pruned(family, positions), torch.tensor([[7, 8]])
    row = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    ids = row["input_ids"][0]
    num_text = len(ids) - 1 - int((ids == model.config.image_token_id).nonzero().max())
    for count in (1, num_text):
        part = {n: row[n][:, :-count] for n in ("input_ids", "mm_token_type_ids") if n in row}
        expected = model(input_ids=new, cache=model(**{**row, **part}, use_cache=True).cache).logits
        cache = model(**row, use_cache=True).cache
        cache.crop(-count)
        torch.testing.assert_close(model(input_ids=new, cache=cache).logits, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
def test_rows_that_were_padded_again_are_not_continued_without_a_mask(family):
    model = pruned(family, "original")
    cache = model(**family.lite_inputs(), use_cache=True).cache
    new = torch.full((len(family.rows), 1), 7)
    with pytest.raises(ValueError, match="a prompt whose padding pruning changed"):
        model(input_ids=new, cache=cache)
    with pytest.raises(ValueError, match="a prompt whose padding pruning changed"):  # nor by further images
        rows = {n: v for n, v in family.lite_inputs().items() if n != "attention_mask"}
        model(**rows, position_ids=torch.arange(rows["input_ids"].shape[1])[None], cache=cache)
    if model.model.counts_positions:  # else upstream's `forward` takes no mask longer than its tokens
        assert model(input_ids=new, cache=cache, attention_mask=new.new_ones(len(new), cache.get_seq_length() + 1))


@torch.no_grad()
@pytest.mark.parametrize("budget", [None, 5])
@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
def test_prompts_in_embeddings(family, budget):
    model = pruned(family, None)
    model.config.pruning_budget = budget
    row = family.row(1)
    ids = row.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    settings = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(inputs_embeds=embeds, **row, max_new_tokens=3, **settings)
    expected = model(inputs_embeds=embeds, **row).logits[:, -1]
    torch.testing.assert_close(output.logits[0], expected, rtol=1e-5, atol=1e-5)
    # As upstream, they have the new tokens alone, and `max_length` counts the whole prompt.
    assert output.sequences.shape == (1, 3)
    for prompt, new in (
        ({"inputs_embeds": embeds}, 4),
        ({"inputs_embeds": embeds, "input_ids": ids}, ids.shape[1] + 4),
    ):
        found = model.generate(**prompt, **row, max_length=ids.shape[1] + 4, **settings).sequences
        assert found.shape == (1, new)
    if budget is None:
        stock = family.stock(model)
        arguments = {name: value for name, value in row.items() if name in inspect.signature(stock.forward).parameters}
        upstreams = stock.generate(inputs_embeds=embeds, **arguments, max_new_tokens=3, **settings)
        assert torch.equal(output.sequences, upstreams.sequences)


@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
def test_messages_about_lengths_count_the_whole_prompt(family):
    model, row = pruned(family, None), family.row(1)
    length = row["input_ids"].shape[1]
    for limit in (length - 1, 4):
        message = f"Input length of input_ids is {length}, but `max_length` is set to {limit}"
        with pytest.raises(ValueError, match=message):
            model.generate(**row, max_length=limit)


@pytest.mark.parametrize("family", MODELS, ids=lambda family: family.name)
def test_forward_refuses_pruning_keywords_of_from_pretrained(family):
    model, row = pruned(family, None), family.row(1)
    for each in (model, model.model):
        for keyword in ({"pruning_budget": 3}, {"pruning_preset": "fast"}):
            with pytest.raises(ValueError, match="is no argument of `forward`: pass `pruning_config`"):
                each(**row, **keyword)
    assert len(model(**row, pruning_config={"budget": 3}).image_outputs.retained_indices[0]) == 3


ROW = torch.tensor([[7, 8, 9]])


def ragged(family, positions):
    """A model, and two unpadded rows of one length of which the first gets shorter by pruning: its text is longer."""
    model = pruned(family, positions)
    row = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    text = torch.arange(row["input_ids"].shape[1]).unsqueeze(0) % 3 + 7
    ids = torch.cat((row["input_ids"], text))
    types = {n: torch.cat((row[n], torch.zeros_like(text))) for n in ("mm_token_type_ids",) if n in row}
    return model, row, {**row, "input_ids": ids, **types}


COUNTING = [case for case in POLICIES if case[0].base_class.counts_positions]


@pytest.mark.parametrize("family, positions", COUNTING, ids=[f"{f.name}-{p}" for f, p in COUNTING])
@torch.no_grad()
def test_ragged_rows_continued_by_hand_are_rows_alone(family, positions):
    """After `forward`, after a beginning in the cache, and after `generate`; or what is needed is asked for."""
    model, row, both = ragged(family, positions)
    beginning = ROW[:, :2]
    for before in (None, beginning):
        caches = [
            None if before is None else model(input_ids=before.expand(n, -1), use_cache=True).cache for n in (1, 2)
        ]
        alone, together = (
            model(**inputs, cache=cache, use_cache=True).cache for inputs, cache in zip((row, both), caches)
        )
        expected = model(input_ids=ROW, cache=alone).logits[0]
        length = 0 if before is None else before.shape[1]
        mask = torch.ones(2, together.get_seq_length() + 3, dtype=torch.long)
        mask[0, length : length + together.get_seq_length() - (alone.get_seq_length() - 3)] = 0
        arguments = {"input_ids": ROW.expand(2, -1), "attention_mask": mask, "cache": together}
        if positions == "compact" and before is not None:
            with pytest.raises(ValueError, match="new tokens need `position_ids`"):
                model(**arguments)
            arguments["position_ids"] = (mask.cumsum(-1) - 1)[:, -3:]
        torch.testing.assert_close(model(**arguments).logits[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", dict.fromkeys(family for family, _ in COUNTING), ids=lambda each: each.name)
@torch.no_grad()
def test_renumbered_tokens_begin_after_what_an_earlier_prompt_left_out(family):
    model = pruned(family, "original")
    row = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    length, compact = row["input_ids"].shape[1], {"position_ids": "compact"}
    places = torch.arange(length, 2 * length).unsqueeze(0)
    expected, found = (
        model(**row, **given, cache=model(**row, use_cache=True).cache, pruning_config=compact).logits
        for given in ({"position_ids": places}, {})
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [case for case in MODELS if case.is_recurrent], ids=lambda each: each.name)
@torch.no_grad()
def test_recurrent_layers_read_no_padding_after_a_beginning(family):
    model, _, both = ragged(family, "original")
    cache = model(input_ids=ROW.expand(2, -1), use_cache=True).cache
    places = torch.arange(both["input_ids"].shape[1]).expand(3, 2, -1) + 3
    with pytest.raises(ValueError, match="Recurrent layers would read the padding"):
        model(**both, position_ids=places, cache=cache)


@torch.no_grad()
@pytest.mark.parametrize(
    "family", [family for family in MODELS if not family.is_recurrent], ids=lambda each: each.name
)
def test_a_cache_that_was_reset_is_a_new_one(family):
    model, row, both = ragged(family, "original")
    text = both["input_ids"][1:, :4]
    expected = model.generate(input_ids=text, max_new_tokens=3, do_sample=False)
    cache = DynamicCache(config=model.config.text_config)
    for _ in range(2):
        model.generate(**both, cache=cache, max_new_tokens=2, do_sample=False, eos_token_id=None)
        cache.reset()
    assert torch.equal(model.generate(input_ids=text, cache=cache, max_new_tokens=3, do_sample=False), expected)
    assert shortened_prompts(cache) == []


@pytest.mark.parametrize("family, positions", POLICIES, ids=[f"{f.name}-{p}" for f, p in POLICIES])
def test_the_loss_of_ragged_rows_is_that_of_rows_alone(family, positions):
    model, row, both = ragged(family, positions)
    rows = [row, {"input_ids": both["input_ids"][1:]}]
    placeholders_of = torch.tensor(placeholders(model))

    def labels(ids):
        return ids.masked_fill(torch.isin(ids, placeholders_of), -100)

    count = (labels(both["input_ids"])[:, 1:] != -100).sum()
    together = model(**both, labels=labels(both["input_ids"]), num_items_in_batch=count).loss
    alone = [model(**each, labels=labels(each["input_ids"]), num_items_in_batch=count).loss for each in rows]
    torch.testing.assert_close(together, sum(alone), rtol=1e-4, atol=1e-4)


TWO_MODALITIES = [family for family in MODELS if len(family.modalities) > 1]


@pytest.mark.parametrize("masked", ["image", "video"])
@pytest.mark.parametrize("family", TWO_MODALITIES, ids=lambda each: each.name)
@torch.no_grad()
def test_a_masked_medium_at_an_end_of_a_row_is_no_padding(family, masked):
    """Other rows read their own images, whatever modality is planned first."""
    model, inputs = pruned(family, "original"), family.unguided_inputs("right")
    inputs["position_ids"] = family.shape_positions(family.full_positions(family.stock(model), inputs))
    expected, mask = model(**inputs).logits[1:], inputs["attention_mask"].clone()
    places = (inputs["input_ids"][0] == getattr(model.config, f"{masked}_token_id")).nonzero()
    mask[0, slice(int(places.max()) + 1) if masked == "image" else slice(int(places.min()), None)] = 0
    found = model(**{**inputs, "attention_mask": mask}).logits[1:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", TWO_MODALITIES, ids=lambda each: each.name)
@torch.no_grad()
def test_positions_of_text_alone_go_on_where_the_whole_prompt_ends(family):
    """What an earlier prompt left on the model does not matter; four rows are no four axes."""
    model, row = pruned(family, "original"), family.row(1)
    row = {name: torch.cat([value] * 4) for name, value in row.items() if name != "attention_mask"}
    places = torch.arange(row["input_ids"].shape[1]).expand(4, -1)
    new, after = torch.full((4, 2), 7), (places[:, -1:] + 1 + torch.arange(2)).expand(3, -1, -1)
    model(**family.lite_inputs())
    first, second = (model(**row, position_ids=places, use_cache=True).cache for _ in range(2))
    found = model(input_ids=new, cache=first).logits
    expected = model(input_ids=new, position_ids=after, cache=second).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
