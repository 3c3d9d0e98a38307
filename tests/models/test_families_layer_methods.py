"""Methods inside the language model, for every family: the stock model whose dropped tokens are masked out."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.support.families import INSIDE, family_params
from tests.support.family_cases import BUDGET, LAYER_CASES, NUM_LAYERS
from tests.support.matrix import matrix
from tests.support.methods import LAYER_METHODS
from transformers_litelvlm import PruningConfig
from transformers_litelvlm.configuration_pruning import Built
from transformers_litelvlm.pruning import build_pruner, get_pruner


# What a visual token of a modality is called in the outputs.
STAGES = {"image": "retained_stages", "video": "retained_video_stages"}
INDICES = {"image": "retained_indices", "video": "retained_video_indices"}


TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")
METHOD = pytest.mark.parametrize(
    "family, name, options",
    matrix(LAYER_CASES, lambda case: case[0].is_quick),
    ids=[f"{f.name}-{n}-{o}" for f, n, o in LAYER_CASES],
)
BOTH = pytest.mark.parametrize("positions", ["original", "compact"])
GREEDY = {"do_sample": False, "eos_token_id": None}


def test_every_method_is_exercised_in_every_family():
    for family in INSIDE:
        assert {name for other, name, _ in LAYER_CASES if other is family} == {name for name, _ in LAYER_METHODS}


_MODELS: dict = {}


@pytest.fixture
def model(family):
    if family.name not in _MODELS:
        model = family.model(NUM_LAYERS)
        _MODELS[family.name] = model, family.stock(model)
    model, _ = _MODELS[family.name]
    model.config.pruning_config = PruningConfig()
    return model


@pytest.fixture
def stock(family, model):
    return _MODELS[family.name][1]


def set_pruning(family, model, name, options, **kwargs):
    if kwargs.get("position_ids", "original") not in {policy for _, policy in family.policies}:
        pytest.skip("positions that the family does not have")
    model.config.pruning_config = PruningConfig(**{"method": name, "budget": BUDGET, **kwargs}, method_options=options)


def media_of(model, ids, sizes):
    """Row, columns, size, modality and place within it of every image and video, in reading order."""
    found = []
    for modality, numbers in sizes.items():
        token, media = getattr(model.config, f"{modality}_token_id"), iter(enumerate(numbers))
        for row, content in enumerate(ids.tolist()):
            columns = [column for column, each in enumerate(content) if each == token]
            while columns:
                index, size = next(media)
                found.append((row, torch.tensor(columns[:size]), size, modality, index))
                columns = columns[size:]
    return sorted(found, key=lambda each: (each[0], int(each[1][0])))


class Recorded:
    """The raster-ordered selections of a method while a model runs, which upstream's reference has to merge by."""

    def __init__(self, monkeypatch, model):
        pruner, self.calls = model.config.pruning_config.build_pruner(), []
        cls, calls = type(pruner), self.calls

        class Recording(cls):
            def select(self, evidence, budget):
                selection = super().select(evidence, budget)
                calls.append((evidence.layer, evidence.num_tokens, selection.in_raster_order()))
                return selection

        recording = Recording(**model.config.pruning_config.method_options)
        built = Built(recording, None, ({}, None))
        monkeypatch.setattr(PruningConfig, "build", lambda config: built)

    def merges(self, media):
        """Layer and image -> what its tokens were merged from, of those there were; `None` for no merging."""
        found = {}
        for layer, size, selection in self.calls:
            images = [image for image, (_, _, other, *_) in enumerate(media) if other == size]
            for place, image in enumerate(images):
                found[layer, image] = None if selection.weights is None else selection.weights[place]
        return found


@torch.no_grad()
def stock_with_masks(family, stock, inputs, ids, output, merges, compact, shortens_earlier=False):
    """Stock decoder layers at full length, and who is left; tokens that left are masked out from then on.

    Args:
        ids: the prompt, with or without new tokens behind it.
        output: of our model on the prompt alone, which says what stayed.
        merges: of [`Recorded`].
        shortens_earlier: whether tokens leave earlier caches too, so that new tokens do not see them there either.
    """
    decoder, tokens = stock.model.language_model, family.all_tokens(stock, inputs)
    states = stock.get_input_embeddings()(ids)
    for modality, features in tokens.items():
        is_placeholder = (ids == getattr(stock.config, f"{modality}_token_id")).unsqueeze(-1)
        states = states.masked_scatter(is_placeholder, torch.cat(features))
    added = added_states(family, stock, inputs, ids, states)
    num_new, length = ids.shape[1] - inputs["input_ids"].shape[1], ids.shape[1]
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, num_new), value=1)
    positions = family.full_positions(stock, inputs)
    positions = torch.cat((positions, *(positions[..., -1:] + step for step in range(1, num_new + 1))), dim=-1)
    media = media_of(stock, ids, {modality: list(map(len, features)) for modality, features in tokens.items()})
    alive = mask.bool()
    in_the_end = alive.clone()
    for row, columns, _, modality, place in media:
        in_the_end[row, columns] = False
        in_the_end[row, columns[getattr(output, STAGES[modality])[-1][place]]] = True
    before, stage = [torch.arange(size) for _, _, size, *_ in media], 0
    for index, layer in enumerate(decoder.layers):
        seen = alive[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril() | torch.eye(length).bool()
        if shortens_earlier and index > 0:  # what was cached before the prompt was pruned, but for the first layer
            seen[:, :, length - num_new :] &= in_the_end[:, None, None] | torch.eye(length).bool()[length - num_new :]
        additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        rotary = decoder.rotary_emb(states, family.shape_positions(positions))
        states = layer(states, attention_mask=additive, position_embeddings=rotary)
        states = states + added[index] if index < len(added) else states
        if not any(layer == index for layer, _ in merges):
            continue
        alive, states = alive.clone(), states.clone()
        for image, (row, columns, _, modality, place) in enumerate(media):
            kept = getattr(output, STAGES[modality])[stage][place]
            merge = merges.get((index, image))
            if merge is not None:
                for each in (states, *added[index + 1 :]):  # what DeepStack adds later, by the same weights
                    each[row, columns[kept]] = merge @ each[row, columns[before[image]]]
            alive[row, columns] = False
            alive[row, columns[kept]] = True
            before[image] = kept
        stage += 1
        if compact:
            positions = (alive.long().cumsum(1) - 1).clamp(min=0).expand_as(positions)
    assert stage > 0
    return decoder.norm(states), alive


def added_states(family, stock, inputs, ids, states):
    """What DeepStack adds after each of the first layers, as large as the states."""
    layers = {token: iter(of_layers) for token, of_layers in family.deepstack(stock, inputs).items()}
    added = []
    while layers:
        each = torch.zeros_like(states)
        for token, of_layers in layers.items():
            if (features := next(of_layers, None)) is None:
                return added
            each = each.masked_scatter((ids == token).unsqueeze(-1), torch.cat(features))
        added.append(each)
    return added


def merges_of(family, stock, recorded, inputs):
    tokens = family.all_tokens(stock, inputs)
    sizes = {modality: list(map(len, features)) for modality, features in tokens.items()}
    return recorded.merges(media_of(stock, inputs["input_ids"], sizes))


@METHOD
@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_hidden_states_are_those_of_stock_layers_with_masks(
    monkeypatch, family, model, stock, name, options, positions, side, attention
):
    set_pruning(family, model, name, options, position_ids=positions, token_order="raster")
    recorded = Recorded(monkeypatch, model)
    inputs = family.unguided_inputs(side)
    model.set_attn_implementation(attention)
    output = model.model(**inputs)
    model.set_attn_implementation("sdpa")
    merges = merges_of(family, stock, recorded, inputs)
    expected, alive = stock_with_masks(
        family, stock, inputs, inputs["input_ids"], output, merges, positions == "compact"
    )
    assert alive.sum() < inputs["attention_mask"].sum()
    torch.testing.assert_close(output.last_hidden_state[alive], expected[alive], atol=1e-5, rtol=1e-5)
    assert output.last_hidden_state[~alive].abs().max() == 0
    for modality in family.modalities:
        last = getattr(output, STAGES[modality])[-1]
        assert all(torch.equal(*rows) for rows in zip(getattr(output, INDICES[modality]), last, strict=True))
        sizes = [len(tokens) for tokens in family.all_tokens(stock, inputs)[modality]]
        left = [build_pruner(name, **options).tokens_after(size, BUDGET, NUM_LAYERS) for size in sizes]
        expected_counts = [size if size <= BUDGET else list(n.values())[-1] for size, n in zip(sizes, left)]
        assert [len(rows) for rows in last] == expected_counts


@METHOD
@BOTH
@torch.no_grad()
def test_every_decoding_step_is_that_of_stock_layers_with_masks(
    monkeypatch, family, model, stock, name, options, positions
):
    set_pruning(family, model, name, options, position_ids=positions, token_order="raster")
    recorded = Recorded(monkeypatch, model)
    inputs = family.unguided_inputs()
    output = model.model(**inputs)
    merges = merges_of(family, stock, recorded, inputs)
    generated = model.generate(
        **inputs,
        max_new_tokens=5,
        output_hidden_states=True,
        output_logits=True,
        return_dict_in_generate=True,
        **GREEDY,
    )
    ids = generated.sequences
    shortens = get_pruner(name).prunes_earlier_caches
    states, _ = stock_with_masks(family, stock, inputs, ids, output, merges, positions == "compact", shortens)
    of_steps = torch.stack([layers[-1][:, -1] for layers in generated.hidden_states], dim=1)
    torch.testing.assert_close(of_steps, states[:, -6:-1], atol=1e-5, rtol=1e-5)
    expected = stock.lm_head(states[:, -6:-1])
    torch.testing.assert_close(torch.stack(generated.logits, dim=1), expected, atol=2e-5, rtol=1e-5)
    assert ids[:, -5:].tolist() == expected.argmax(-1).tolist()


@METHOD
@torch.no_grad()
def test_later_layers_cache_fewer_bytes(family, model, stock, name, options):
    set_pruning(family, model, name, options)
    inputs = family.row(1)
    inputs.pop("guidance_input_ids"), inputs.pop("guidance_attention_mask")
    [size] = [len(tokens) for tokens in family.all_tokens(stock, inputs)["image"]]
    budget = BUDGET if size > BUDGET else 7
    if budget != BUDGET:
        if name == "sparsevlm":
            pytest.skip("no table for so few")
        model.config.pruning_config.budget = budget
    cache = DynamicCache()
    model(**inputs, cache=cache, use_cache=True)
    counts = build_pruner(name, **options).tokens_per_layer(size, budget, num_layers=NUM_LAYERS, num_tower_layers=2)
    if get_pruner(name).prunes_earlier_caches:
        counts = [size, *[budget] * (NUM_LAYERS - 1)]
    text = inputs["input_ids"].shape[1] - size
    for layer, count in zip(cache.layers, counts, strict=True):
        held = layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()
        assert held == 2 * (count + text) * 2 * 12 * 4  # keys and values, 2 heads of size 12 in float32
    assert counts[-1] < counts[0] == size


@METHOD
@BOTH
@torch.no_grad()
def test_a_batch_is_its_rows_and_left_padding_does_not_matter(family, model, name, options, positions):
    set_pruning(family, model, name, options, position_ids=positions)
    together = model(**family.unguided_inputs())
    new = model.generate(**family.unguided_inputs(), max_new_tokens=4, **GREEDY)[:, -4:]
    seen = dict.fromkeys(family.modalities, 0)
    for index in range(len(family.rows)):
        inputs = family.row(index)
        alone = model(**inputs)
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[index, -length:], alone.logits[0], atol=1e-5, rtol=1e-5)
        for modality in family.modalities:
            rows = getattr(alone, INDICES[modality])
            rows = [] if rows is None else rows
            first = seen[modality]
            kept = getattr(together, INDICES[modality])[first : first + len(rows)]
            assert [r.tolist() for r in kept] == [r.tolist() for r in rows]
            seen[modality] += len(rows)
        assert model.generate(**inputs, max_new_tokens=4, **GREEDY)[0, -4:].tolist() == new[index].tolist()


@METHOD
@torch.no_grad()
def test_beams_and_samples(family, model, name, options):
    """Several images in a row, expanded for beams, whose caches are reordered."""
    set_pruning(family, model, name, options)
    inputs = family.unguided_inputs()
    beams = {**GREEDY, "max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 3}
    sequences = model.generate(**inputs, **beams)
    for row in range(len(family.rows)):
        own = model.generate(**family.row(row), **beams)
        assert own[:, -4:].tolist() == sequences[3 * row : 3 * row + 3, -4:].tolist()
    torch.manual_seed(0)
    sample = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 2, "eos_token_id": None}
    sampled = model.generate(**inputs, **sample)
    torch.manual_seed(0)
    assert sampled.shape == (2 * len(family.rows), inputs["input_ids"].shape[1] + 4)
    assert torch.equal(sampled, model.generate(**inputs, **sample))


@METHOD
@torch.no_grad()
def test_decoding_by_hand_is_generate(family, model, name, options):
    set_pruning(family, model, name, options)
    inputs = family.row(0)
    inputs.pop("attention_mask")
    expected = model.generate(**inputs, max_new_tokens=4, **GREEDY)[0, -4:].tolist()
    for with_mask in (False, True):
        output, new, length = model(**inputs, use_cache=True), [], inputs["input_ids"].shape[1]
        for step in range(4):
            new.append(int(output.logits[0, -1].argmax()))
            mask = {"attention_mask": torch.ones(1, length + step + 1)} if with_mask else {}
            output = model(input_ids=torch.tensor([new[-1:]]), cache=output.cache, **mask)
        assert new == expected


@METHOD
@torch.no_grad()
def test_without_a_cache_and_hidden_states(family, model, name, options):
    set_pruning(family, model, name, options)
    inputs = family.unguided_inputs()
    cached, uncached = model(**inputs), model(**inputs, use_cache=False, output_hidden_states=True)
    assert uncached.cache is None
    torch.testing.assert_close(cached.logits, uncached.logits)
    states = uncached.hidden_states
    assert len(states) == NUM_LAYERS + 1 and all(s.shape == states[0].shape for s in states)
    torch.testing.assert_close(model.lm_head(states[-1]), uncached.logits)
    some = model(**inputs, output_hidden_states=[1, -1]).hidden_states
    assert [s is None for s in some] == [True, False, True, True, False]
    assert torch.equal(some[1], states[1]) and torch.equal(some[-1], states[-1])
    assert model(**inputs, return_dict=False)[0].shape == cached.logits.shape


@METHOD
@torch.no_grad()
def test_prompts_that_end_in_an_image_are_refused(family, model, name, options):
    """Also as a row of a batch, with padding after it; not if nothing is pruned."""
    set_pruning(family, model, name, options)
    row = family.row(1)
    if name != "sparsevlm":  # its budget follows from its options
        model.config.pruning_budget = 5
    elif (row["input_ids"] == model.config.image_token_id).sum() <= BUDGET:
        pytest.skip("nothing would be pruned")
    is_visual = row["input_ids"][0] == model.config.image_token_id
    ended = {**row, **{n: row[n][:, : int(is_visual.nonzero().max()) + 1] for n in TEXT if n in row}}
    padded = {**ended, **{n: torch.nn.functional.pad(ended[n], (0, 2)) for n in TEXT if n in ended}}
    padded["attention_mask"] = torch.nn.functional.pad(torch.ones_like(ended["input_ids"]), (0, 2))
    for inputs in (ended, padded):
        with pytest.raises(ValueError, match="A prompt ends in an image or a video"):
            model(**inputs)
    with pytest.raises(ValueError, match="A prompt ends in an image or a video"):
        model.generate(**ended, max_new_tokens=1)
    assert model.generate(**ended, max_new_tokens=1, pruning_config={"budget": None}) is not None


@METHOD
def test_labels_and_columns_are_those_of_the_whole_prompt(family, model, name, options):
    set_pruning(family, model, name, options)
    model.config.pruning_token_order = "raster"  # below, columns say which token is the one before
    inputs = family.unguided_inputs()
    placeholders = torch.tensor([getattr(model.config, f"{modality}_token_id") for modality in family.modalities])
    ignored = torch.isin(inputs["input_ids"], placeholders) | (inputs["attention_mask"] == 0)
    labels = inputs["input_ids"].masked_fill(ignored, -100)
    output = model(**inputs, labels=labels)
    assert output.logits.shape[:2] == labels.shape
    # Each token is predicted by the one before it of those that remain.
    rows = [logits.any(-1).nonzero()[:, 0] for logits in output.logits]
    assert len(rows[0]) < inputs["attention_mask"][0].sum()
    pairs = [(logits[left[:-1]], row[left[1:]]) for logits, row, left in zip(output.logits, labels, rows, strict=True)]
    logits, targets = map(torch.cat, zip(*pairs, strict=True))
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, targets))
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    count = {"num_items_in_batch": 2 * (targets != -100).sum()}
    halved = model(**inputs, labels=labels, shift_labels=shifted, **count, logits_to_keep=2)
    torch.testing.assert_close(halved.loss, output.loss / 2)
    assert torch.equal(halved.logits, output.logits[:, -2:])
    output.loss.backward()
    assert model.model.language_model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    columns = torch.tensor([-2, -1])
    for further in ({}, {"labels": labels}):
        some = model(**inputs, **further, logits_to_keep=columns).logits
        torch.testing.assert_close(some, output.logits[:, columns])


@METHOD
@torch.no_grad()
def test_a_budget_of_all_tokens_is_the_stock_model(family, model, stock, name, options):
    inputs = family.unguided_inputs()
    set_pruning(family, model, name, options, budget=family.largest_budget)
    assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
    expected = stock.generate(**family.inputs(), max_new_tokens=3, **GREEDY)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, **GREEDY), expected)


@METHOD
@torch.no_grad()
def test_the_cache_goes_on_after_the_config_changed_and_after_a_crop(family, model, name, options):
    """What a cache holds is known by the cache: switching pruning off does not change how its text goes on."""
    set_pruning(family, model, name, options)
    inputs = family.unguided_inputs()
    new = torch.tensor([[20, 21], [22, 23], [24, 25]])

    def two_more(cache, ids):
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
        return model(input_ids=ids, attention_mask=mask, cache=cache).logits

    expected = two_more(model(**inputs).cache, new)
    cache = model(**inputs).cache
    two_more(cache, new + 3)
    cache.crop(-2)
    for _ in range(2):
        cache.reorder_cache(torch.tensor([2, 1, 0]))
    model.config.pruning_config = PruningConfig()
    torch.testing.assert_close(two_more(cache, new), expected)


EACH = pytest.mark.parametrize("family", family_params(INSIDE), ids=lambda family: family.name)


@EACH
@BOTH
@torch.no_grad()
def test_text_of_the_prompt_may_be_cropped(family, model, positions):
    """One token at a time, new ones are what they are together, also while they are fewer than what was cropped."""
    set_pruning(family, model, "fastv", {"layer": 1}, position_ids=positions)
    inputs, new = family.unguided_inputs(), torch.tensor([[20, 21, 22]] * 3)
    found = []
    for sizes in ((3,), (1, 1, 1)):
        cache, logits, mask = model(**inputs).cache, [], inputs["attention_mask"][:, :-2]
        cache.crop(-2)
        for ids in new.split(sizes, dim=1):
            mask = torch.cat((mask, torch.ones_like(ids)), dim=1)
            numbers = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :]
            places = numbers if family.base_class.counts_positions else numbers.expand(3, -1, -1)
            logits.append(model(input_ids=ids, attention_mask=mask, position_ids=places, cache=cache).logits)
        found.append(torch.cat(logits, dim=1))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@EACH
@torch.no_grad()
def test_a_ratio_keeps_a_share_of_every_image(family, model, stock):
    set_pruning(family, model, "fastv", {"layer": 1}, budget=None, retention_ratio=0.25)
    inputs = family.unguided_inputs()
    output = model(**inputs)
    for modality, tokens in family.all_tokens(stock, inputs).items():
        assert [len(rows) for rows in getattr(output, INDICES[modality])] == [len(rows) // 4 for rows in tokens]


@EACH
@torch.no_grad()
def test_media_encoded_once_serve_several_calls(family, model):
    set_pruning(family, model, "fastv", {"layer": 1})
    inputs, encoded = family.unguided_inputs(), {}
    expected = model(**inputs).logits
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name in inputs:
            media = {n: v for n, v in inputs.items() if n in (name, f"{modality}_grid_thw", "num_tiles")}
            encoded[modality] = getattr(model, f"get_{modality}_features")(**media)
            inputs.pop(name)
    assert torch.equal(model(**inputs, mm_encoder_outputs=encoded).logits, expected)


@EACH
@torch.no_grad()
def test_a_prompt_without_images_is_left_to_the_stock_model(family, model, stock):
    set_pruning(family, model, "fastv", {"layer": 1})
    ids = torch.tensor([[14, 15, 16, 17]])
    assert torch.equal(model(input_ids=ids).logits, stock(input_ids=ids).logits)


@EACH
def test_guesses_behind_the_prompt_are_refused(family, model, stock):
    """The first call of assisted decoding holds them: the last token of the prompt would be a guess."""
    set_pruning(family, model, "fastv", {"layer": 1})
    for guesses in ({"assistant_model": stock}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match=f"`{next(iter(guesses))}` puts guessed tokens after the prompt"):
            model.generate(**family.row(1), max_new_tokens=3, do_sample=False, **guesses)
    before = {"method": "random", "method_options": {}, "budget": 14, "then": {"method": "fastv", "budget": 12}}
    for setting in ({}, before):
        with pytest.raises(ValueError, match="`prefill_chunk_size` divides the prompt, and the method 'fastv'"):
            model.generate(**family.row(1), max_new_tokens=3, prefill_chunk_size=4, pruning_config=setting)
    text = {"input_ids": torch.tensor([[14, 15, 16, 17]]), "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**text, prompt_lookup_num_tokens=2), model.generate(**text))


@EACH
@torch.no_grad()
def test_caches_that_do_not_fit(family, model):
    set_pruning(family, model, "fastv", {"layer": 1})
    inputs = family.unguided_inputs()
    with pytest.raises(ValueError, match="needs a DynamicCache of full attention.*StaticCache"):
        model.generate(**inputs, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="needs a DynamicCache of full attention.*StaticCache"):
        model(**inputs, cache=StaticCache(config=model.config.text_config, max_cache_len=64))
    cache = model(input_ids=torch.tensor([[14, 15]] * 3), use_cache=True).cache
    with pytest.raises(ValueError, match="already holds 2 tokens"):
        model(**inputs, cache=cache)
    with pytest.raises(ValueError, match="`output_attentions` is not available"):
        model(**inputs, output_attentions=True)
    placeholder = (inputs["input_ids"][0] == model.config.image_token_id).long().argmax()
    inputs["input_ids"][0, placeholder] = 14
    with pytest.raises(ValueError, match="do not match"):
        model(**inputs)


class Asked:
    """A `fastv` that writes down the attention it was told about, by number of tokens of the image."""

    def __init__(self, monkeypatch):
        self.last, self.text = {}, {}
        asked, cls = self, type(build_pruner("fastv"))

        class Asking(cls):
            def select(self, evidence, budget):
                asked.last[evidence.num_tokens] = evidence.last_token_attention()
                asked.text[evidence.num_tokens] = evidence.text_attention(), evidence.is_text
                return super().select(evidence, budget)

        monkeypatch.setattr(PruningConfig, "build", lambda config: Built(Asking(layer=2), None, ({}, None)))


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_attention_is_that_of_the_stock_layer(monkeypatch, family, model, stock, side):
    """Rows of upstream's eager attention, with its own positions, for images of every size in a padded batch."""
    set_pruning(family, model, "fastv", {"layer": 2}, budget=5)
    asked, inputs = Asked(monkeypatch), family.unguided_inputs(side)
    output = model(**inputs)
    eager = family.stock(model)
    eager.set_attn_implementation("eager")
    attention = eager(**inputs, output_attentions=True).attentions[1]  # (B, H, L, L)

    sizes = {modality: list(map(len, tokens)) for modality, tokens in family.all_tokens(stock, inputs).items()}
    seen: dict[int, int] = {}
    for row, of_image, size, modality, index in media_of(stock, inputs["input_ids"], sizes):
        place = seen.get(size, 0)
        seen[size] = place + 1
        real = inputs["attention_mask"][row].nonzero().flatten()
        expected = attention[row, :, real[-1], of_image]
        torch.testing.assert_close(asked.last[size][place], expected, atol=1e-6, rtol=1e-4)
        kept = expected.mean(0).argsort(descending=True, stable=True)[:5].sort().values
        assert getattr(output, INDICES[modality])[index].tolist() == kept.tolist()
        placeholders = [getattr(model.config, f"{name}_token_id") for name in family.modalities]
        text = [c for c in real.tolist() if c > of_image[-1] and int(inputs["input_ids"][row, c]) not in placeholders]
        rows, is_text = asked.text[size]
        actual = rows[place][:, is_text[place]]
        torch.testing.assert_close(actual, attention[row][:, text][..., of_image], atol=1e-6, rtol=1e-4)
