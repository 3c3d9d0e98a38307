"""Methods inside the language model, against stock layers with explicit masks."""

import pytest
import torch
from transformers import (
    AutoModel,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    StaticCache,
)

from tests.models.llava_lite.tiny import (
    NUM_TOKENS,
    SEG_TOKEN,
    asymmetric_,
    prompt,
    random_guidance,
    random_pixels,
    tiny_config,
)
from tests.pruning.test_registry import LAYER_METHODS
from tests.test_packaging import UPSTREAM_SNAPSHOT, run_python
from transformers_litelvlm import (
    LlavaLiteForConditionalGeneration,
    LlavaLiteForReferringSegmentation,
    PruningConfig,
)
from transformers_litelvlm.models.decoder_pruning import prefill
from transformers_litelvlm.pruning import build_pruner


NUM_LAYERS = 4
BUDGET = 12
ROWS = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12])
ONE_IMAGE = ([1, 5, "image", 7, 8, 9, 13], [1, "image", 10, 11])
BOTH = pytest.mark.parametrize("positions", ["original", "compact"])


def can_reach(name, options):
    try:
        return bool(build_pruner(name, **options).tokens_after(NUM_TOKENS, BUDGET, NUM_LAYERS))
    except ValueError:  # tables of the authors do not fit 16 tokens
        return False


METHODS = [(name, options) for name, options in LAYER_METHODS if can_reach(name, options)]
METHOD = pytest.mark.parametrize("name, options", METHODS)


def test_every_method_is_exercised():
    assert {name for name, _ in METHODS} == {name for name, _ in LAYER_METHODS}


def four_layers(**kwargs):
    config = tiny_config(**kwargs)
    config.text_config.num_hidden_layers = NUM_LAYERS
    return config


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(four_layers()))


def set_pruning(model, name, options, **kwargs):
    model.config.pruning_config = PruningConfig(**{"method": name, "budget": BUDGET, **kwargs}, method_options=options)


def inputs(rows=ROWS, padding_side="left"):
    ids, mask = prompt(*rows, padding_side=padding_side)
    num_images = sum(row.count("image") for row in rows)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(num_images)}


def layers_that_prune(name, options):
    return list(build_pruner(name, **options).tokens_after(NUM_TOKENS, BUDGET, NUM_LAYERS))


def rows_of(ids, model):
    """Row and first column of every image."""
    is_visual = ids == model.config.image_token_id
    return is_visual.nonzero().view(-1, NUM_TOKENS, 2)[:, 0].tolist()


@torch.no_grad()
def stock_with_masks(model, given, ids, mask, stages, pruning_layers, weights=None, compact=False):
    """Hidden states of stock layers at full length, and who is left; tokens that left are masked out from then on.

    Args:
        ids, mask: the prompt, with or without new tokens behind it.
        stages: raster indices left behind each of `pruning_layers`.
        weights: where tokens merge, what each token left is a mean of, in terms of the tokens before it.
    """
    decoder = model.model.language_model
    features = torch.cat(model.model.get_image_features(given["pixel_values"]).pooler_output)
    embeds = model.get_input_embeddings()(ids)
    states = embeds.masked_scatter((ids == model.config.image_token_id).unsqueeze(-1), features)
    length = ids.shape[1]
    alive, merges = mask.bool(), iter(weights or [None] * len(stages))
    positions = torch.arange(length).expand_as(ids)
    left = dict(zip(pruning_layers, stages, strict=True))
    before = [torch.arange(NUM_TOKENS)] * len(stages[0])
    for index, layer in enumerate(decoder.layers):
        seen = alive[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril() | torch.eye(length).bool()
        additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        states = layer(states, attention_mask=additive, position_embeddings=decoder.rotary_emb(states, positions))
        if index not in left:
            continue
        alive, states, merge = alive.clone(), states.clone(), next(merges)
        for image, (row, start) in enumerate(rows_of(ids, model)):
            kept = left[index][image]
            if merge is not None:
                states[row, start + kept] = merge[image] @ states[row, start + before[image]]
            alive[row, start : start + NUM_TOKENS] = False
            alive[row, start + kept] = True
            before[image] = kept
        if compact:
            positions = (alive.long().cumsum(1) - 1).clamp(min=0)
    return decoder.norm(states), alive


def merges_of(model, given):
    """What each stage merged, in terms of the tokens before it, recorded from the method itself."""
    found = []
    cls = type(model.config.pruning_config.build_pruner())

    class Recording(cls):
        def select(self, evidence, budget):
            selection = super().select(evidence, budget).in_raster_order()
            found.append(selection.weights)
            return selection

    pruner = Recording(**model.config.pruning_config.method_options)
    ids = given["input_ids"]
    is_visual = ids == model.config.image_token_id
    features = model.model.get_image_features(given["pixel_values"]).pooler_output
    embeds = model.get_input_embeddings()(ids).masked_scatter(is_visual.unsqueeze(-1), torch.cat(features))
    policy = model.config.pruning_config.resolved_position_ids
    prefill(
        model.model.language_model,
        pruner,
        BUDGET,
        inputs_embeds=embeds,
        is_visual=is_visual,
        num_images=len(features),
        num_visual=NUM_TOKENS,
        attention_mask=given["attention_mask"],
        is_compact=policy == "compact",
    )
    return found


@METHOD
@BOTH
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_hidden_states_are_those_of_stock_layers_with_masks(model, name, options, positions, padding_side, attention):
    set_pruning(model, name, options, position_ids=positions, token_order="raster")
    model.set_attn_implementation(attention)
    given = inputs(padding_side=padding_side)
    output = model.model(**given)
    model.set_attn_implementation("sdpa")
    expected, alive = stock_with_masks(
        model,
        given,
        given["input_ids"],
        given["attention_mask"],
        output.retained_stages,
        layers_that_prune(name, options),
        merges_of(model, given),
        positions == "compact",
    )
    assert alive.sum() < given["attention_mask"].sum()
    torch.testing.assert_close(output.last_hidden_state[alive], expected[alive], atol=1e-5, rtol=1e-5)
    assert output.last_hidden_state[~alive].abs().max() == 0
    assert torch.equal(output.retained_indices, output.retained_stages[-1])


@METHOD
@BOTH
@torch.no_grad()
def test_every_decoding_step_is_that_of_stock_layers_with_masks(model, name, options, positions):
    set_pruning(model, name, options, position_ids=positions, token_order="raster")
    given = inputs()
    stages = model.model(**given).retained_stages
    generated = model.generate(
        **given, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True, eos_token_id=None
    )
    ids = generated.sequences
    mask = torch.cat((given["attention_mask"], torch.ones(len(ids), 5, dtype=torch.long)), dim=1)
    states, _ = stock_with_masks(
        model,
        given,
        ids,
        mask,
        stages,
        layers_that_prune(name, options),
        merges_of(model, given),
        positions == "compact",
    )
    expected = model.lm_head(states[:, -6:-1])
    torch.testing.assert_close(torch.stack(generated.logits, dim=1), expected, atol=2e-5, rtol=1e-5)
    assert ids[:, -5:].tolist() == expected.argmax(-1).tolist()


@METHOD
@torch.no_grad()
def test_later_layers_cache_fewer_bytes(model, name, options):
    set_pruning(model, name, options)
    given = inputs(ONE_IMAGE[:1])
    cache = DynamicCache()
    model(**given, past_key_values=cache, use_cache=True)
    counts = build_pruner(name, **options).tokens_per_layer(
        NUM_TOKENS, BUDGET, num_layers=NUM_LAYERS, num_tower_layers=2
    )
    text = given["input_ids"].shape[1] - NUM_TOKENS
    for layer, count in zip(cache.layers, counts, strict=True):
        held = layer.keys.untyped_storage().nbytes() + layer.values.untyped_storage().nbytes()
        assert held == 2 * (count + text) * 2 * 12 * 4  # keys and values, 2 heads of size 12 in float32
    assert counts[-1] < counts[0] == NUM_TOKENS and isinstance(cache, DynamicCache)


@METHOD
@BOTH
@torch.no_grad()
def test_a_batch_is_its_rows_and_left_padding_does_not_matter(model, name, options, positions):
    set_pruning(model, name, options, position_ids=positions)
    together = model(**inputs())
    new = model.generate(**inputs(), max_new_tokens=4, do_sample=False, eos_token_id=None)[:, -4:]
    images = 0
    for row, content in enumerate(ROWS):
        given = inputs([content])
        count = content.count("image")
        given["pixel_values"] = random_pixels(3)[images : images + count]
        alone = model(**given)
        length = given["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[row, -length:], alone.logits[0], atol=1e-5, rtol=1e-5)
        assert together.retained_indices[images : images + count].tolist() == alone.retained_indices.tolist()
        generated = model.generate(**given, max_new_tokens=4, do_sample=False, eos_token_id=None)
        assert generated[0, -4:].tolist() == new[row].tolist()
        images += count


@METHOD
@torch.no_grad()
def test_beams_and_samples(model, name, options):
    """Several images in a row, expanded for beams; three beams of which the best is at least as likely as greedy."""
    set_pruning(model, name, options)
    given = inputs()
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    sequences = model.generate(**given, **settings, num_beams=3, num_return_sequences=3)
    for row, content in enumerate(ROWS):
        alone = inputs([content])
        first = sum(earlier.count("image") for earlier in ROWS[:row])
        alone["pixel_values"] = random_pixels(3)[first : first + content.count("image")]
        own = model.generate(**alone, **settings, num_beams=3, num_return_sequences=3)
        assert own[:, -4:].tolist() == sequences[3 * row : 3 * row + 3, -4:].tolist()
    torch.manual_seed(0)
    sampled = model.generate(**given, max_new_tokens=4, do_sample=True, num_return_sequences=2, eos_token_id=None)
    torch.manual_seed(0)
    again = model.generate(**given, max_new_tokens=4, do_sample=True, num_return_sequences=2, eos_token_id=None)
    assert sampled.shape == (4, given["input_ids"].shape[1] + 4) and torch.equal(sampled, again)


@METHOD
@torch.no_grad()
def test_without_a_cache_and_hidden_states(model, name, options):
    set_pruning(model, name, options)
    given = inputs()
    cached, uncached = model(**given), model(**given, use_cache=False, output_hidden_states=True)
    assert uncached.past_key_values is None
    torch.testing.assert_close(cached.logits, uncached.logits)
    assert len(uncached.hidden_states) == NUM_LAYERS + 1
    assert all(states.shape == uncached.hidden_states[0].shape for states in uncached.hidden_states)
    torch.testing.assert_close(model.lm_head(uncached.hidden_states[-1]), uncached.logits)
    assert model(**given, return_dict=False)[0].shape == cached.logits.shape


@METHOD
def test_labels_and_columns_are_those_of_the_whole_prompt(model, name, options):
    set_pruning(model, name, options)
    given = inputs()
    labels = given["input_ids"].masked_fill(given["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(given["attention_mask"] == 0, -100)
    output = model(**given, labels=labels)
    assert output.logits.shape[:2] == labels.shape
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.model.language_model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0
    model.zero_grad()
    columns = torch.tensor([-2, -1])
    picked = model(**given, logits_to_keep=columns).logits
    torch.testing.assert_close(picked, output.logits[:, columns])


@METHOD
@torch.no_grad()
def test_a_budget_of_all_tokens_is_the_stock_model(model, name, options):
    given = inputs()
    model.config.pruning_config = PruningConfig()
    stock = model(**given).logits
    set_pruning(model, name, options, budget=NUM_TOKENS)
    assert torch.equal(model(**given).logits, stock)


@torch.no_grad()
def test_a_prompt_without_images_is_left_to_the_stock_model(model):
    set_pruning(model, "fastv", {"layer": 1})
    ids = torch.tensor([[1, 5, 6, 7]])
    pruned = model(input_ids=ids).logits
    model.config.pruning_config = PruningConfig()
    assert torch.equal(pruned, model(input_ids=ids).logits)


@torch.no_grad()
def test_caches_that_do_not_fit(model):
    set_pruning(model, "fastv", {"layer": 1})
    given = inputs()
    with pytest.raises(ValueError, match="needs a DynamicCache of full attention.*StaticCache"):
        model.generate(**given, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="needs a DynamicCache of full attention.*StaticCache"):
        model(**given, past_key_values=StaticCache(config=model.config.text_config, max_cache_len=64))
    cache = model(input_ids=torch.tensor([[1, 5]] * 2), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="already holds 2 tokens"):
        model(**given, past_key_values=cache)
    with pytest.raises(ValueError, match="`output_attentions` is not available"):
        model(**given, output_attentions=True)


@METHOD
@torch.no_grad()
def test_the_cache_goes_on_after_the_config_changed_and_after_a_crop(model, name, options):
    """What a cache holds is known by the cache: switching pruning off does not change how its text goes on."""
    set_pruning(model, name, options)
    given = inputs()
    new = torch.tensor([[20, 21], [22, 23]])

    def two_more(cache, ids):
        mask = torch.cat((given["attention_mask"], torch.ones(2, 2, dtype=torch.long)), dim=1)
        return model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits

    expected = two_more(model(**given).past_key_values, new)
    cache = model(**given).past_key_values
    two_more(cache, new + 3)
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.reorder_cache(torch.tensor([1, 0]))
    model.config.pruning_config = PruningConfig()
    torch.testing.assert_close(two_more(cache, new), expected)


@METHOD
def test_segment(name, options):
    model = asymmetric_(LlavaLiteForReferringSegmentation(four_layers(with_masks=True)))
    guidance = random_guidance(2, 1)
    ids, mask = prompt([1, 5, "image", 7, SEG_TOKEN, 8], [1, "image", 9, 10, SEG_TOKEN, 11, 12])
    given = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": random_pixels(2),
        "guidance_input_ids": guidance[0],
        "guidance_attention_mask": guidance[1],
        "mask_pixel_values": random_pixels(2, seed=1),
        "original_sizes": torch.tensor([[20, 30], [32, 32]]),
        "reshaped_input_sizes": torch.tensor([[21, 32], [32, 32]]),
    }
    set_pruning(model, name, options)
    output = model.segment(**given)
    assert [masks.shape for masks in output.masks] == [(1, 20, 30), (1, 32, 32)]
    assert torch.equal(output.retained_indices, model.model(**given_for_model(given)).retained_indices)
    # The states before [SEG] are found by their column in the whole prompt.
    states = model.model(**given_for_model(given)).last_hidden_state
    columns = (ids == SEG_TOKEN).int().argmax(dim=1) - 1
    expected = model.text_hidden_fcs(states[torch.arange(2), columns])
    torch.testing.assert_close(output.seg_embeddings[:, 0], expected)
    answered = model.generate_masks(**{**given, "attention_mask": mask}, max_new_tokens=3)
    assert answered.sequences.shape[0] == 2
    # Features encoded once, as sweeps use them.
    stages = model.model.encode_images(given["pixel_values"])
    features = model.model.select_visual_tokens(stages, BUDGET)
    swept = model.segment(**{**given, "pixel_values": None}, mm_encoder_outputs={"image": features})
    torch.testing.assert_close(swept.low_res_masks, output.low_res_masks, atol=1e-5, rtol=1e-5)


def given_for_model(given):
    return {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values")}


USE_EVERY_METHOD = """
from tests.models.llava_lite import test_layer_methods as here
model = here.asymmetric_(here.LlavaLiteForConditionalGeneration(here.four_layers()))
before = snapshot()
for name, options in here.METHODS:
    here.set_pruning(model, name, options)
    model.generate(**here.inputs(), max_new_tokens=2)
after = snapshot()
print(json.dumps({"size": len(before), "changed": [key for key in before if before[key] != after.get(key)]}))
"""


def test_no_upstream_class_or_function_is_altered_by_any_method():
    setup = UPSTREAM_SNAPSHOT.partition("import torch\nrandom_state")[0]
    result = run_python(setup + USE_EVERY_METHOD)
    assert result["size"] > 1000 and result["changed"] == []


@torch.no_grad()
def test_stock_outputs_do_not_change(model):
    names = ("vision_config", "text_config", "image_token_index", "image_seq_length")
    stock = LlavaForConditionalGeneration(LlavaConfig(**{n: model.config.to_dict()[n] for n in names})).eval()
    stock.load_state_dict({name: value for name, value in model.state_dict().items() if ".guidance." not in name})
    before = stock(**inputs()).logits
    for name, options in METHODS:
        set_pruning(model, name, options)
        model.generate(**inputs(), max_new_tokens=2)
    assert torch.equal(stock(**inputs()).logits, before)


@pytest.mark.parametrize("config_class", [MistralConfig, Qwen2Config])
@torch.no_grad()
def test_other_decoders(config_class):
    """With nothing dropped, the loop is the stock decoder; sliding windows are refused."""
    sizes = {"vocab_size": 9, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    config = config_class(
        **sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=None, use_sliding_window=False
    )
    decoder = asymmetric_(AutoModel.from_config(config))
    embeds = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(0))
    is_visual = torch.zeros(2, 12, dtype=torch.bool)
    is_visual[:, 3:9] = True
    given = {"inputs_embeds": embeds, "is_visual": is_visual, "num_images": 2, "num_visual": 6}
    output = prefill(decoder, build_pruner("fastv", layer=1), 6, **given)
    torch.testing.assert_close(output.last_hidden_state, decoder(inputs_embeds=embeds).last_hidden_state)
    assert (prefill(decoder, build_pruner("fastv", layer=1), 2, **given).last_hidden_state[:, 3:9] == 0).any(
        -1
    ).sum() == 8
    decoder.config.sliding_window = 4
    with pytest.raises(ValueError, match="sliding_window=4"):
        prefill(decoder, build_pruner("fastv", layer=1), 2, **given)
