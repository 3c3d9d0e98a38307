"""The pruned model against the stock one: off is upstream, and on is upstream run on the tokens that were kept."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration

from tests.models.llava_lite.tiny import (
    IMAGE_TOKEN,
    NUM_TOKENS,
    asymmetric_,
    prompt,
    random_guidance,
    random_pixels,
    tiny_config,
)
from transformers_litelvlm import LlavaLiteForConditionalGeneration, LlavaLiteModel, PruningConfig


BUDGET = 5
# Rows with two images, one image and none, of different lengths.
ROWS = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12], [1, 13, 14])
NUM_IMAGES = 3


@pytest.fixture(scope="module")
def model():
    return asymmetric_(LlavaLiteForConditionalGeneration(tiny_config()))


@pytest.fixture(scope="module")
def stock(model):
    names = ("vision_config", "text_config", "image_token_index", "image_seq_length")
    upstream = LlavaForConditionalGeneration(LlavaConfig(**{n: model.config.to_dict()[n] for n in names})).eval()
    weights = {name: value for name, value in model.state_dict().items() if ".guidance." not in name}
    upstream.load_state_dict(weights)
    return upstream


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


def stock_inputs(side="left"):
    ids, mask = prompt(*ROWS, padding_side=side)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(NUM_IMAGES)}


def lite_inputs(side="left", num_expressions=2):
    ids, mask = random_guidance(NUM_IMAGES, num_expressions)
    return {**stock_inputs(side), "guidance_input_ids": ids, "guidance_attention_mask": mask}


def set_pruning(model, **kwargs):
    model.config.pruning_config = PruningConfig(**{"budget": BUDGET, **kwargs})


def assert_same_logits(actual, expected, **tolerance):
    """At the last tokens of left-padded rows; what is computed at padding has no meaning."""
    assert actual.logits.shape == expected.logits.shape
    tolerance = tolerance or {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(actual.logits[:, -3:], expected.logits[:, -3:], **tolerance)


# ---- off is upstream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, NUM_TOKENS, NUM_TOKENS + 1, 10**9])
@pytest.mark.parametrize("side", ["left", "right"])
def test_off_is_upstream_bit_for_bit(model, stock, budget, side):
    model.config.pruning_budget = budget
    with torch.no_grad():
        expected = stock(**stock_inputs(side), labels=stock_inputs(side)["input_ids"])
        actual = model(**lite_inputs(side), labels=stock_inputs(side)["input_ids"])
        hidden = model.model(**lite_inputs(side)).last_hidden_state
        assert torch.equal(hidden, stock.model(**stock_inputs(side)).last_hidden_state)
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.loss, expected.loss)
    assert actual.retained_indices is None


@pytest.mark.parametrize("method", ["none", "litelvlm"])
@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["greedy", "beam", "static", "sample"],
)
def test_off_generates_as_upstream(model, stock, method, how):
    model.config.pruning_config = PruningConfig(method=method, budget=None if method == "litelvlm" else 3)
    torch.manual_seed(0)
    expected = stock.generate(**stock_inputs(), max_new_tokens=6, **how)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**lite_inputs(), max_new_tokens=6, **how), expected)


# ---- on is upstream, run on what was kept ---------------------------------------------------------------------------


def kept_prompts(model, inputs):
    """For every row of the batch: ids, embeddings and original positions of its tokens that stay, by plain Python."""
    with torch.no_grad():
        features = model.get_image_features(
            inputs["pixel_values"],
            guidance_input_ids=inputs["guidance_input_ids"],
            guidance_attention_mask=inputs["guidance_attention_mask"],
        )
        embed = model.get_input_embeddings()
        image, rows = 0, []
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()):
            start = mask.index(1)
            ids = [token for token, real in zip(ids, mask) if real]
            new_ids, embeds, positions, column = [], [], [], 0
            while column < len(ids):
                if ids[column] == IMAGE_TOKEN:
                    kept = features.retained_indices[image].tolist()
                    new_ids += [IMAGE_TOKEN] * len(kept)
                    embeds.append(features.pooler_output[image])
                    positions += [column + index for index in kept]
                    column, image = column + NUM_TOKENS, image + 1
                else:
                    new_ids.append(ids[column])
                    embeds.append(embed(torch.tensor([ids[column]])))
                    positions.append(column)
                    column += 1
            rows.append((new_ids, torch.cat(embeds)[None], torch.tensor([positions]), start))
    return rows


POLICIES = [("raster", "compact"), ("raster", "original"), ("reference", "compact"), ("reference", "original")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("order, positions", POLICIES)
def test_forward_is_upstream_on_the_kept_tokens(model, stock, order, positions, side):
    set_pruning(model, token_order=order, position_ids=positions)
    inputs = lite_inputs(side)
    with torch.no_grad():
        output = model(**inputs)
    assert output.retained_indices.shape == (NUM_IMAGES, BUDGET)
    is_ascending = (output.retained_indices.diff(dim=-1) > 0).all().item()
    assert is_ascending == (order == "raster")

    rows = kept_prompts(model, inputs)
    length = max(len(ids) for ids, *_ in rows)
    assert output.logits.shape[1] == length
    for row, (_, embeds, original, _) in enumerate(rows):
        count = embeds.shape[1]
        columns = slice(length - count, length) if side == "left" else slice(0, count)
        position_ids = original if positions == "original" else torch.arange(count)[None]
        with torch.no_grad():
            expected = stock(inputs_embeds=embeds, position_ids=position_ids).logits[0]
        torch.testing.assert_close(output.logits[row, columns], expected, atol=2e-5, rtol=1e-4)


def greedy_by_hand(stock, embeds, positions, count):
    """Greedy decoding without a cache; new positions continue after the last one."""
    new, last = [], int(positions.max())
    with torch.no_grad():
        for step in range(count):
            logits = stock(inputs_embeds=embeds, position_ids=positions).logits[0, -1]
            new.append(logits.argmax().item())
            embeds = torch.cat((embeds, stock.get_input_embeddings()(torch.tensor([[new[-1]]]))), dim=1)
            positions = torch.cat((positions, torch.tensor([[last + step + 1]])), dim=1)
    return new


GREEDY = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "one beam of several": {"num_beams": 1, "num_return_sequences": 1},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("how", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_generate_is_greedy_decoding_of_the_kept_tokens(model, stock, how, positions):
    set_pruning(model, position_ids=positions)
    inputs = lite_inputs()
    # No early stop: the tiny model may say the end token, and the hand-made decoding does not stop there.
    output = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, eos_token_id=None, **how)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(output[:, :length], inputs["input_ids"])  # the prompt as it was given
    for row, (_, embeds, original, _) in enumerate(kept_prompts(model, inputs)):
        position_ids = original if positions == "original" else torch.arange(embeds.shape[1])[None]
        # What comes after continues from the end of the unpruned prompt, even if image tokens were its last.
        assert output[row, length:].tolist() == greedy_by_hand(stock, embeds, position_ids, 5)


def test_beams_and_samples_have_upstreams_shape_and_prompt(model):
    set_pruning(model)
    inputs = lite_inputs()
    length = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=4, num_return_sequences=2, do_sample=False)
    samples = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3, top_k=5)
    assert beams.shape[0] == 6 and samples.shape[0] == 9
    assert torch.equal(beams[:, :length], inputs["input_ids"].repeat_interleave(2, 0))
    assert torch.equal(samples[:, :length], inputs["input_ids"].repeat_interleave(3, 0))


def test_beam_search_scores_what_it_returns(model):
    """The sum of log-probabilities that beam search reports is that of its tokens, scored in one forward pass."""
    set_pruning(model)
    inputs = {name: value[:1] for name, value in lite_inputs().items()}
    inputs = {**inputs, "input_ids": prompt([1, 5, "image", 6])[0], "attention_mask": prompt([1, 5, "image", 6])[1]}
    result = model.generate(
        **inputs, max_new_tokens=3, min_new_tokens=3, num_beams=3, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    with torch.no_grad():
        whole = {**inputs, "input_ids": result.sequences, "attention_mask": torch.ones_like(result.sequences)}
        log_probs = model(**whole).logits[0, -4:-1].log_softmax(-1)
    total = log_probs.gather(-1, result.sequences[0, -3:, None]).sum()
    torch.testing.assert_close(result.sequences_scores[0], total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["compact", "original"])
def test_prompt_lookup_and_assisted_decoding_are_greedy(model, positions, no_upstream_deprecation):
    set_pruning(model, position_ids=positions)
    ids, mask = prompt([1, 5, "image", 6, 7, 6, 7, 6])
    guidance, guidance_mask = random_guidance(1)
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": random_pixels(1),
              "guidance_input_ids": guidance, "guidance_attention_mask": guidance_mask}  # fmt: skip
    arguments = {"max_new_tokens": 8, "do_sample": False}
    greedy = model.generate(**inputs, **arguments)
    assert torch.equal(model.generate(**inputs, **arguments, prompt_lookup_num_tokens=2), greedy)
    assistant = asymmetric_(copy.deepcopy(model), seed=1)
    assert torch.equal(model.generate(**inputs, **arguments, assistant_model=assistant), greedy)
    # Upstream's own assisted decoding calls `generate` in a way that upstream deprecates.
    assert all("Passing `generation_config` together" in message for message in no_upstream_deprecation.messages)
    no_upstream_deprecation.messages.clear()


def test_length_limits_count_the_full_prompt(model):
    set_pruning(model)
    inputs = lite_inputs()
    length = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, max_length=length + 3, do_sample=False, eos_token_id=None).shape[1] == length + 3


@pytest.mark.parametrize("order, positions", POLICIES)
def test_a_batch_equals_its_rows_one_by_one(model, order, positions):
    set_pruning(model, token_order=order, position_ids=positions)
    inputs = lite_inputs()
    together = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)
    image = 0
    for row, items in enumerate(ROWS):
        images = slice(image, image + items.count("image"))
        image = images.stop
        ids, mask = prompt(items)
        alone = {"input_ids": ids, "attention_mask": mask}
        if items.count("image"):
            names = ("pixel_values", "guidance_input_ids", "guidance_attention_mask")
            alone.update({name: inputs[name][images] for name in names})
        new = model.generate(**alone, max_new_tokens=5, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
        assert together[row, -5:].tolist() == new.tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_kernels_and_types(model, attention, dtype):
    other = copy.deepcopy(model).to(dtype)
    other.set_attn_implementation(attention)
    set_pruning(other)
    inputs = lite_inputs()
    output = other(**inputs)
    assert output.logits.dtype == dtype and output.logits.isfinite().all()
    assert other.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 3
    if dtype == torch.float32:
        set_pruning(model)
        assert_same_logits(output, model(**inputs), atol=1e-4, rtol=1e-3)
        assert torch.equal(output.retained_indices, model(**inputs).retained_indices)


# ---- training, embeddings, encoded images, contracts ----------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_shortened_with_the_prompt_and_gradients_flow(model, stock, side):
    trained = copy.deepcopy(model)
    set_pruning(trained)
    inputs = lite_inputs(side)
    ids = inputs["input_ids"]
    # Not the first token either: with padding on the left, upstream predicts it from a padding state.
    labels = ids.masked_fill((ids == IMAGE_TOKEN) | (inputs["attention_mask"] == 0) | (ids == 1), -100)
    loss = trained(**inputs, labels=labels).loss
    loss.backward()

    losses, count = 0.0, 0
    for ids, embeds, _, _ in kept_prompts(trained, inputs):
        targets = torch.tensor([ids])[0, 1:]
        targets = targets.masked_fill(targets == IMAGE_TOKEN, -100)
        logits = stock(inputs_embeds=embeds).logits[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count += (targets != -100).sum()
    torch.testing.assert_close(loss, losses / count, atol=1e-5, rtol=1e-5)
    for part in (trained.model.language_model, trained.model.multi_modal_projector, trained.lm_head):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    unused = trained.model.vision_tower.encoder.layers[-1]  # the last CLIP layer is not part of the model's function
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in unused.parameters())


def test_the_last_layer_of_the_tower_never_runs(model):
    set_pruning(model, method_options={"context_share": 0.5})
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(model.model.vision_tower.encoder.layers)
    ]
    model(**lite_inputs())
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]  # of three


def test_only_the_kept_tokens_are_projected(model):
    set_pruning(model)
    shapes = []
    hook = lambda module, args, output: shapes.append(tuple(args[0].shape))  # noqa: E731
    handle = model.model.multi_modal_projector.register_forward_hook(hook)
    model(**lite_inputs())
    handle.remove()
    assert shapes == [(NUM_IMAGES, BUDGET, 32)]


def test_embeddings_instead_of_ids(model):
    set_pruning(model)
    inputs = lite_inputs()
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert_same_logits(model(inputs_embeds=embeds, **inputs), model(**lite_inputs()))


def test_images_encoded_once_serve_several_calls(model):
    set_pruning(model)
    inputs = lite_inputs()
    guidance = {name: inputs.pop(name) for name in ("guidance_input_ids", "guidance_attention_mask")}
    features = model.get_image_features(inputs.pop("pixel_values"), **guidance)
    encoded = {"image": features}
    assert torch.equal(model(**inputs, mm_encoder_outputs=encoded).logits, model(**lite_inputs()).logits)
    arguments = {"max_new_tokens": 4, "do_sample": False}
    again = model.generate(**inputs, mm_encoder_outputs=encoded, **arguments)
    assert torch.equal(again, model.generate(**lite_inputs(), **arguments))


def test_a_prompt_with_exactly_the_kept_placeholders_is_accepted(model):
    set_pruning(model)
    inputs = lite_inputs()
    full = model(**inputs)
    length = full.logits.shape[1]
    short_ids = torch.zeros(3, length, dtype=torch.long)
    short_mask = torch.zeros_like(short_ids)
    for row, (ids, *_) in enumerate(kept_prompts(model, inputs)):
        short_ids[row, length - len(ids) :], short_mask[row, length - len(ids) :] = torch.tensor(ids), 1
    output = model(**{**inputs, "input_ids": short_ids, "attention_mask": short_mask})
    torch.testing.assert_close(output.logits[short_mask.bool()], full.logits[short_mask.bool()])


def test_wrong_number_of_placeholders(model):
    set_pruning(model)
    inputs = lite_inputs()
    inputs["input_ids"] = inputs["input_ids"][:, :-1].contiguous()
    inputs["attention_mask"] = inputs["attention_mask"][:, :-1]
    model(**inputs)  # one word less is no problem
    inputs["input_ids"][0, 3] = 7
    with pytest.raises(
        ValueError, match=r"has \[31, 16, 0\] image placeholders per row.*48 visual.*\(15 after pruning"
    ):
        model(**inputs)
    with pytest.raises(ValueError, match="image placeholders per row"):
        model.generate(**inputs, max_new_tokens=2)


def test_guidance_that_is_missing(model):
    set_pruning(model)
    with pytest.raises(ValueError, match="`guidance_input_ids` is None.*`expressions="):
        model(**stock_inputs())
    set_pruning(model, method="random")
    assert model(**stock_inputs()).retained_indices.shape == (NUM_IMAGES, BUDGET)


def test_a_second_turn_on_the_cache_of_a_pruned_prompt_says_what_to_do(model):
    set_pruning(model)
    inputs = lite_inputs()
    cache = DynamicCache(config=model.config.get_text_config())
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, past_key_values=cache)
    with pytest.raises(ValueError, match="new turn needs a new cache"):
        model.generate(input_ids=first, max_new_tokens=3, past_key_values=cache)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vision_feature_layer": -1}, "`vision_feature_layer` before the last of 3 layers, got -1"),
        ({"vision_feature_layer": [-2, -3]}, "one `vision_feature_layer`"),
        ({"vision_feature_select_strategy": "full"}, "`vision_feature_select_strategy='default'`, got 'full'"),
    ],
)
def test_features_that_pruning_is_not_defined_for(model, change, message):
    set_pruning(model)
    with pytest.raises(ValueError, match=message):
        model(**lite_inputs(), **change)


def test_budgets_change_at_run_time(model):
    inputs = lite_inputs()
    for budget in (1, 2, 15):
        model.config.pruning_budget = budget
        assert model(**inputs).retained_indices.shape == (NUM_IMAGES, budget)
    model.config.pruning_config = {"retention_ratio": 0.25}
    assert model(**inputs).retained_indices.shape == (NUM_IMAGES, 4)
    with pytest.raises(ValueError, match="`budget` must be a positive integer.*got 0"):
        model.config.pruning_budget = 0
    assert model.config.pruning_retention_ratio == 0.25


def test_ratios_follow_the_grid_of_the_image(model):
    """A ratio is resolved from the pictures at hand, not from a number in the config."""
    set_pruning(model, budget=None, retention_ratio=0.5)
    pixels = torch.randn(1, 3, 64, 32)
    guidance, mask = random_guidance(1)
    output = model.get_image_features(
        pixels, guidance_input_ids=guidance, guidance_attention_mask=mask, interpolate_pos_encoding=True
    )
    assert output.retained_indices.shape == (1, 16)


def test_the_base_model_prunes_too(model):
    set_pruning(model)
    base = model.model
    assert isinstance(base, LlavaLiteModel)
    output = base(**lite_inputs())
    assert output.retained_indices.shape == (NUM_IMAGES, BUDGET)
    logits = model.lm_head(output.last_hidden_state)
    torch.testing.assert_close(logits[:, -3:], model(**lite_inputs()).logits[:, -3:])
