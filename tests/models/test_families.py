"""What holds for every family of models: off is upstream, and on is upstream run on the tokens that were kept."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer

from tests.support.families import MODELS, family_params
from tests.support.family_cases import need_methods_inside
from tests.support.random_weights import asymmetric_
from transformers_litelvlm import PruningConfig


BUDGET = 5


@pytest.fixture(scope="module", params=family_params(MODELS), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return family.model()


@pytest.fixture(scope="module")
def stock(family, model):
    return family.stock(model)


@pytest.fixture(autouse=True)
def pruning_off(model):
    model.config.pruning_config = PruningConfig()


def set_pruning(model, **kwargs):
    model.config.pruning_config = PruningConfig(**{"budget": BUDGET, **kwargs})


def retained(output):
    """Indices of every image, then of every video."""
    kept = (output.retained_indices, output.retained_video_indices)
    return [row.tolist() for rows in kept if rows is not None for row in rows]


def greedy(model, inputs, count=5, **how):
    length = inputs["input_ids"].shape[1]
    result = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None, **how)
    return result[:, length:].tolist()


# ---- off is upstream ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, "all", "one more", 10**9])
@pytest.mark.parametrize("side", ["left", "right"])
def test_off_is_upstream_bit_for_bit(family, model, stock, budget, side):
    model.config.pruning_budget = {"all": family.largest_budget, "one more": family.largest_budget + 1}.get(
        budget, budget
    )
    inputs = family.inputs(side)
    with torch.no_grad():
        expected = stock(**inputs, labels=inputs["input_ids"])
        actual = model(**family.lite_inputs(side), labels=inputs["input_ids"])
        hidden = model.model(**family.lite_inputs(side)).last_hidden_state
        assert torch.equal(hidden, stock.model(**inputs).last_hidden_state)
    assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.loss, expected.loss)
    assert actual.retained_indices is None


HOW = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "sample": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("setting", ["off", "all", "method none"])
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_off_generates_as_upstream(family, model, stock, setting, how):
    model.config.pruning_config = PruningConfig(
        method="none" if setting == "method none" else "litelvlm",
        budget={"off": None, "all": family.largest_budget, "method none": 3}[setting],
    )
    torch.manual_seed(0)
    expected = stock.generate(**family.inputs(), max_new_tokens=6, **how)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**family.lite_inputs(), max_new_tokens=6, **how), expected)


def test_a_ratio_of_one_is_off(family, model, stock):
    set_pruning(model, budget=None, retention_ratio=1.0)
    with torch.no_grad():
        assert torch.equal(model(**family.lite_inputs()).logits, stock(**family.inputs()).logits)


# ---- on is upstream, run on what was kept ---------------------------------------------------------------------------


class Kept(NamedTuple):
    """What is left of a row: ids, embeddings (1, n, D), original positions (axes, 1, n), columns of the full prompt,
    and what upstream's language model takes for DeepStack."""

    ids: list
    embeds: torch.Tensor
    positions: torch.Tensor
    columns: list
    deepstack: dict


def kept_prompts(family, model, stock, inputs):
    """For each row of the batch what is kept of it."""
    with torch.no_grad():
        media = {token: iter(enumerate(items)) for token, items in family.features(model, inputs).items()}
        layers = family.deepstack(model, inputs)
    positions, rows = family.full_positions(stock, inputs), []
    embed = model.get_input_embeddings()
    for row, (ids, mask) in enumerate(zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist())):
        # Column of a kept placeholder -> the visual token there, its column of the full prompt, and what is added.
        slots = {}
        for token, items in media.items():
            own = [column for column, each in enumerate(ids) if each == token]
            while own:
                place, (features, kept, count) = next(items)
                origins = [own[index] for index in kept.tolist()]
                added = zip(*(layer[place] for layer in layers.get(token, []))) if layers else [()] * len(kept)
                slots.update(zip(sorted(origins), zip(features, origins, added)))
                own = own[count:]
        text = [c for c, token in enumerate(ids) if mask[c] and token not in media]
        order = sorted([*text, *slots])
        embeds = [slots[c][0] if c in slots else embed(torch.tensor(ids[c])) for c in order]
        columns = [slots[c][1] if c in slots else c for c in order]
        deepstack = {}
        if layers and slots:
            deepstack["visual_pos_masks"] = torch.tensor([[c in slots for c in order]])
            deepstack["deepstack_visual_embeds"] = [
                torch.stack(of_layer) for of_layer in zip(*(slots[c][2] for c in sorted(slots)))
            ]
        new_ids = [ids[c] for c in order]
        rows.append(Kept(new_ids, torch.stack(embeds)[None], positions[:, row : row + 1, columns], columns, deepstack))
    return rows


def upstream_logits(stock, embeds, positions, deepstack):
    """Of a prompt whose visual tokens are in place."""
    states = stock.model.language_model(inputs_embeds=embeds, position_ids=positions, **deepstack).last_hidden_state
    return stock.lm_head(states)


def positions_of(family, policy, original):
    count = original.shape[-1]
    compact = torch.arange(count).expand_as(original)
    return family.shape_positions(original if policy == "original" else compact)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", range(4))
def test_forward_is_upstream_on_the_kept_tokens(family, model, stock, policy, side):
    if policy >= len(family.policies):
        pytest.skip("the family has fewer policies")
    order, positions = family.policies[policy]
    set_pruning(model, token_order=order, position_ids=positions)
    inputs = family.lite_inputs(side)
    with torch.no_grad():
        output = model(**inputs)
    kept = retained(output)
    assert [len(indices) for indices in kept] == [BUDGET] * 3
    if order == "raster":
        assert kept == [sorted(indices) for indices in kept]
    else:
        assert any(indices != sorted(indices) for indices in kept)

    # The columns are those of the prompt that was passed, with zeros for tokens that were pruned.
    assert output.logits.shape[:2] == inputs["input_ids"].shape
    for row, (_, embeds, original, columns, added) in enumerate(kept_prompts(family, model, stock, inputs)):
        with torch.no_grad():
            expected = upstream_logits(stock, embeds, positions_of(family, positions, original), added)[0]
        torch.testing.assert_close(output.logits[row, columns], expected, atol=2e-5, rtol=1e-4)
        pruned = sorted(set(range(inputs["input_ids"].shape[1])) - set(columns))
        assert len(pruned) >= 4 and not output.logits[row, pruned].any()


def greedy_by_hand(family, stock, embeds, positions, deepstack, count):
    """Greedy decoding without a cache; new positions continue after the last one."""
    new = []
    with torch.no_grad():
        for _ in range(count):
            if deepstack:
                is_visual = deepstack["visual_pos_masks"]
                is_visual = torch.nn.functional.pad(is_visual, (0, embeds.shape[1] - is_visual.shape[1]))
                deepstack = {**deepstack, "visual_pos_masks": is_visual}
            logits = upstream_logits(stock, embeds, positions, deepstack)[0, -1]
            new.append(logits.argmax().item())
            embeds = torch.cat((embeds, stock.get_input_embeddings()(torch.tensor([[new[-1]]]))), dim=1)
            positions = torch.cat((positions, positions[..., -1:] + 1), dim=-1)
    return new


GREEDY = {
    "greedy": {},
    "static cache": {"cache_implementation": "static"},
    "one beam of several": {"num_beams": 1, "num_return_sequences": 1},
    "chunked prefill": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("how", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("policy", [0, 1])
def test_generate_is_greedy_decoding_of_the_kept_tokens(family, model, stock, how, policy):
    order, positions = family.policies[policy]
    set_pruning(model, token_order=order, position_ids=positions)
    inputs = family.lite_inputs()
    new = greedy(model, inputs, **how)
    for row, (_, embeds, original, _, added) in enumerate(kept_prompts(family, model, stock, inputs)):
        expected = greedy_by_hand(family, stock, embeds, positions_of(family, positions, original), added, 5)
        assert new[row] == expected


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("policy", [0, 1])
def test_gaps_in_the_positions_are_no_packed_sequences(family, model, policy, use_cache):
    """Without mask and cache, upstream reads jumps of the positions as borders between packed sequences."""
    order, positions = family.policies[policy]
    set_pruning(model, token_order=order, position_ids=positions)
    inputs = family.row(1)
    with torch.no_grad():
        expected = model(**inputs).logits
    new = greedy(model, inputs)
    mask = inputs.pop("attention_mask")
    assert mask.all()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, use_cache=use_cache).logits, expected, atol=1e-5, rtol=1e-4)
    assert greedy(model, inputs, use_cache=use_cache) == new


def test_beams_and_samples_have_upstreams_shape_and_prompt(family, model):
    set_pruning(model)
    inputs = family.lite_inputs()
    length = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=4, num_return_sequences=2, do_sample=False)
    samples = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3, top_k=5)
    assert beams.shape[0] == 6 and samples.shape[0] == 9
    assert torch.equal(beams[:, :length], inputs["input_ids"].repeat_interleave(2, 0))
    assert torch.equal(samples[:, :length], inputs["input_ids"].repeat_interleave(3, 0))


def test_beam_search_scores_what_it_returns(family, model):
    """The sum of log-probabilities that beam search reports is that of its tokens, scored in one forward pass."""
    set_pruning(model)
    inputs = family.row(1)
    result = model.generate(
        **inputs, max_new_tokens=3, min_new_tokens=3, num_beams=3, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    whole = {**inputs, "input_ids": result.sequences, "attention_mask": torch.ones_like(result.sequences)}
    if "mm_token_type_ids" in inputs:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 3))
    with torch.no_grad():
        log_probs = model(**whole).logits[0, -4:-1].log_softmax(-1)
    total = log_probs.gather(-1, result.sequences[0, -3:, None]).sum()
    torch.testing.assert_close(result.sequences_scores[0], total, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", [0, 1])
def test_prompt_lookup_and_assisted_decoding_are_greedy(family, model, policy, no_upstream_deprecation):
    order, positions = family.policies[policy]
    set_pruning(model, token_order=order, position_ids=positions)
    inputs, arguments = family.row(1), {"max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**inputs, **arguments)
    if family.is_recurrent:  # upstream cannot take guesses back out of a recurrent state, and says so
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
            model.generate(**inputs, **arguments, prompt_lookup_num_tokens=2)
        return
    assert torch.equal(model.generate(**inputs, **arguments, prompt_lookup_num_tokens=2), expected)
    assistant = asymmetric_(copy.deepcopy(model), seed=1)
    assert torch.equal(model.generate(**inputs, **arguments, assistant_model=assistant), expected)
    # Upstream's own assisted decoding calls `generate` in a way that upstream deprecates.
    assert all("Passing `generation_config` together" in message for message in no_upstream_deprecation.messages)
    no_upstream_deprecation.messages.clear()


def test_length_limits_count_the_full_prompt(family, model):
    set_pruning(model)
    inputs = family.lite_inputs()
    with pytest.raises(ValueError, match="`inputs` and `input_ids` are two prompts"):
        model.generate(inputs["input_ids"] + 1, **inputs, max_new_tokens=2)
    length = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, max_length=length + 3, do_sample=False, eos_token_id=None).shape[1] == length + 3


@pytest.mark.parametrize("policy", range(4))
def test_a_batch_equals_its_rows_one_by_one(family, model, policy):
    if policy >= len(family.policies):
        pytest.skip("the family has fewer policies")
    order, positions = family.policies[policy]
    set_pruning(model, token_order=order, position_ids=positions)
    together = greedy(model, family.lite_inputs())
    for row in range(3):
        assert greedy(model, family.row(row)) == [together[row]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_kernels_and_types(family, model, attention, dtype):
    other = copy.deepcopy(model).to(dtype)
    other.set_attn_implementation(attention)
    set_pruning(other)
    inputs = family.lite_inputs()
    output = other(**inputs)
    assert output.logits.dtype == dtype and output.logits.isfinite().all()
    assert other.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 3
    if dtype == torch.float32:
        set_pruning(model)
        expected = model(**inputs)
        torch.testing.assert_close(output.logits[:, -2:], expected.logits[:, -2:], atol=1e-4, rtol=1e-3)
        assert retained(output) == retained(expected)


# ---- training, embeddings, encoded images, contracts ----------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_shortened_with_the_prompt_and_gradients_flow(family, model, stock, side):
    trained = copy.deepcopy(model)
    set_pruning(trained)
    inputs = family.lite_inputs(side)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    placeholders = torch.tensor(list(family.features(trained, inputs)))
    # Not the first token either: with padding on the left, upstream predicts it from a padding state.
    ignored = torch.isin(ids, placeholders) | (mask == 0) | (mask.cumsum(-1) == 1)
    labels = ids.masked_fill(ignored, -100)
    loss = trained(**inputs, labels=labels).loss
    loss.backward()
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with torch.no_grad():  # as Trainer hands them on for sequence parallelism
        torch.testing.assert_close(trained(**inputs, labels=labels, shift_labels=targets).loss, loss)

    losses, count = 0.0, 0
    for ids, embeds, original, _, added in kept_prompts(family, trained, stock, inputs):
        targets = torch.tensor([ids])[0, 1:]
        targets = targets.masked_fill(torch.isin(targets, placeholders), -100)
        position_ids = positions_of(family, trained.config.resolved_position_ids, original)
        logits = upstream_logits(stock, embeds, position_ids, added)[0, :-1]
        losses += torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        count += (targets != -100).sum()
    torch.testing.assert_close(loss, losses / count, atol=1e-5, rtol=1e-5)
    for part in (trained.model.language_model, trained.lm_head):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_embeddings_instead_of_ids(family, model):
    # Upstream's M-RoPE positions need ids: positions are given, so that both calls have the same.
    set_pruning(model)
    inputs = family.lite_inputs()
    expected = model(**inputs).logits
    if "mm_token_type_ids" in inputs:
        inputs["position_ids"] = family.full_positions(model, inputs)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(
        model(inputs_embeds=embeds, **inputs).logits[:, -2:], expected[:, -2:], atol=1e-5, rtol=1e-5
    )


def test_media_encoded_once_serve_several_calls(family, model):
    set_pruning(model)
    expected, arguments = model(**family.lite_inputs()).logits, {"max_new_tokens": 4, "do_sample": False}
    generated = model.generate(**family.lite_inputs(), **arguments)
    inputs, encoded = family.lite_inputs(), {}
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name not in inputs:
            continue
        media = {n: v for n, v in inputs.items() if n in (name, f"{modality}_grid_thw", "num_tiles")}
        rows = slice(2, 3) if modality == "video" else slice(0, 2 if "video_grid_thw" in inputs else 3)
        sentences = {n: v[rows] for n, v in inputs.items() if n.startswith("guidance_")}
        encoded[modality] = getattr(model, f"get_{modality}_features")(**media, **sentences)
    inputs = {n: v for n, v in inputs.items() if not n.startswith(("guidance_", "pixel_values"))}
    assert torch.equal(model(**inputs, mm_encoder_outputs=encoded).logits, expected)
    assert torch.equal(model.generate(**inputs, mm_encoder_outputs=encoded, **arguments), generated)


def test_a_prompt_with_exactly_the_kept_placeholders_is_accepted(family, model, stock):
    set_pruning(model)
    inputs = family.lite_inputs()
    full = model(**inputs)
    rows = kept_prompts(family, model, stock, inputs)
    length = max(len(short) for short, *_ in rows)
    ids, mask = torch.zeros(3, length, dtype=torch.long), torch.zeros(3, length, dtype=torch.long)
    positions = torch.zeros(len(rows[0][2]), 3, length, dtype=torch.long)
    for row, (short, _, original, *_) in enumerate(rows):
        columns = slice(length - len(short), length)
        ids[row, columns], mask[row, columns], positions[:, row, columns] = torch.tensor(short), 1, original[:, 0]
    short_inputs = {**inputs, "input_ids": ids, "attention_mask": mask}
    if len(positions) == 3:  # M-RoPE: a place in the picture cannot be told from a prompt without the others
        with pytest.raises(ValueError, match="Pass `position_ids`"):
            model(**short_inputs)
        short_inputs["position_ids"] = positions
    logits = model(**short_inputs).logits
    for row, (short, _, _, columns, _) in enumerate(rows):
        torch.testing.assert_close(logits[row, length - len(short) :], full.logits[row, columns])


def test_wrong_number_of_placeholders(family, model):
    set_pruning(model)
    inputs = family.lite_inputs()
    features = family.features(model, inputs)
    placeholder = next(iter(features))
    full, kept = (sum(item) for item in zip(*((n, len(k)) for _, k, n in features[placeholder])))
    is_placeholder = inputs["input_ids"] == placeholder
    inputs["input_ids"][0, is_placeholder[0].long().argmax()] = 30
    message = (
        rf"has \[{is_placeholder[0].sum() - 1}, .* image placeholders per row.* {full} visual.*\({kept} after pruning"
    )
    with pytest.raises(ValueError, match=message):
        model(**inputs)
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, max_new_tokens=2)


def test_guidance_that_is_missing(family, model):
    set_pruning(model)
    with pytest.raises(ValueError, match="`guidance_input_ids` is None.*`expressions="):
        model(**family.unguided_inputs())
    set_pruning(model, method="random")
    assert [len(indices) for indices in retained(model(**family.unguided_inputs()))] == [BUDGET] * 3


def test_a_second_turn_on_the_cache_of_a_pruned_prompt_says_what_to_do(family, model):
    set_pruning(model)
    cache = DynamicCache(config=model.config.get_text_config())
    first = model.generate(**family.lite_inputs(), max_new_tokens=3, do_sample=False, cache=cache)
    length = cache.get_seq_length()
    message = f"`cache` holds {length} tokens, and the first {length} .* have an image .* new turn needs a new cache"
    for setting in (None, {"budget": None}):  # switched off now, the cache is that of the pruned prompt all the same
        with pytest.raises(ValueError, match=message):
            model.generate(input_ids=first, max_new_tokens=3, cache=cache, pruning_config=setting)


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("setting", [{}, {"method": "random", "position_ids": "original"}])
def test_a_cache_of_the_text_before_the_pictures(family, model, row, setting):
    """As of a system prompt: no visual token is in it, so it is the beginning of the pruned prompt, too."""
    set_pruning(model, **setting)
    inputs = family.row(row)
    [ids], text = inputs["input_ids"], {"token": torch.tensor([21, 22, 23])}
    length = len(text["token"])
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            front = text["token"] if name == "input_ids" else torch.full((length,), int(name == "attention_mask"))
            inputs[name] = torch.cat((front.to(value)[None], value), dim=1)
    assert inputs["input_ids"].shape == (1, len(ids) + length)
    expected = greedy(model, inputs)
    cache = DynamicCache(config=model.config.get_text_config())
    beginning = {
        n: v[:, :length] for n, v in inputs.items() if n in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    model(**beginning, cache=cache)
    assert cache.get_seq_length() == length and greedy(model, inputs, cache=cache) == expected


def test_a_cache_whose_text_would_move_is_refused(family, model):
    """Rows of the batch have different numbers of pictures: shortened, they are padded at the beginning."""
    set_pruning(model)
    inputs = family.lite_inputs("right")
    cache = DynamicCache(config=model.config.get_text_config())
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    model(**{name: inputs[name][:, :1] for name in names if name in inputs}, cache=cache)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(ValueError, match="`cache` holds 1 tokens, and pruning moves them"):
        model.generate(**inputs, max_new_tokens=2, cache=cache)


def test_budgets_change_at_run_time(family, model):
    inputs = family.lite_inputs()
    for budget in (1, 2, 11):
        model.config.pruning_budget = budget
        assert [len(indices) for indices in retained(model(**inputs))] == [budget] * 3
    model.config.pruning_config = {"retention_ratio": 0.25}
    sizes = [count for items in family.features(model, inputs).values() for _, _, count in items]
    assert [len(indices) for indices in retained(model(**inputs))] == [size // 4 for size in sizes]
    with pytest.raises(ValueError, match="`budget` must be a positive integer.*got 0"):
        model.config.pruning_budget = 0
    assert model.config.pruning_retention_ratio == 0.25


def test_the_base_model_prunes_too(family, model):
    set_pruning(model)
    base = model.model
    assert isinstance(base, family.base_class)
    output = base(**family.lite_inputs())
    assert [len(indices) for indices in retained(output)] == [BUDGET] * 3
    logits = model.lm_head(output.last_hidden_state)
    torch.testing.assert_close(logits[:, -2:], model(**family.lite_inputs()).logits[:, -2:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_to_keep_names_columns_of_the_prompt_that_was_passed(family, model, side):
    """Also with padding on both ends, as in reinforcement learning: prompts on the left, completions on the right."""
    set_pruning(model)
    inputs = family.lite_inputs(side)
    for name, value in {"input_ids": 3, "attention_mask": 0, "mm_token_type_ids": 0}.items():
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (2, 3), value=value)
    everything = model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    assert everything.shape[1] == length
    for keep in (2, 7, length, torch.tensor([0, length - 4, -1]), torch.arange(length) > 5):
        columns = torch.arange(length)[keep if isinstance(keep, torch.Tensor) else slice(length - keep, length)]
        logits = model(**inputs, logits_to_keep=keep).logits
        torch.testing.assert_close(logits, everything[:, columns], atol=1e-5, rtol=1e-5)
    assert everything[:, -7:].any()


@pytest.mark.parametrize("method, options", [("litelvlm", {}), ("fastv", {"layer": 1})])
def test_a_mask_that_cannot_be_shortened_is_refused(family, model, method, options):
    if method == "fastv":
        need_methods_inside(family)
    set_pruning(model, method=method, method_options=options)
    inputs = family.lite_inputs()
    length = inputs["input_ids"].shape[1]
    inputs["attention_mask"] = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
    message = rf"`attention_mask` of shape \(batch, length\), \(3, {length}\), got \(3, 1, {length}, {length}\)"
    with pytest.raises(ValueError, match=message):
        model(**inputs)


# ---- what callers see, and settings of one call ---------------------------------------------------------------------


class Recorded(BaseStreamer):
    """Everything that `generate` calls during decoding, with the ids it gives."""

    def __init__(self):
        self.calls = []

    def put(self, value):
        self.calls.append(("streamer", value.tolist()))

    def end(self):
        self.calls.append(("end", None))

    def processor(self, ids, scores):
        self.calls.append(("processor", ids.tolist()))
        return scores

    def criterion(self, ids, scores, **kwargs):
        self.calls.append(("criterion", ids.tolist()))
        return torch.full((len(ids),), ids.shape[1] >= self.stop_at)

    def allowed(self, row, ids):
        self.calls.append(("allowed", ids.tolist()))
        return [40, 41]

    def generate(self, model, inputs, length, **kwargs):
        self.stop_at = length + 4
        return model.generate(
            **inputs,
            do_sample=False,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([self.processor]),
            stopping_criteria=StoppingCriteriaList([self.criterion]),
            prefix_allowed_tokens_fn=self.allowed,
            **kwargs,
        )


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"num_return_sequences": 1, "repetition_penalty": 1.1}])
def test_hooks_of_generate_are_called_as_with_pruning_off(family, model, how):
    """Constrained to two tokens that are made equally likely, so that both runs choose the same."""
    inputs, found = family.lite_inputs(), []
    length = inputs["input_ids"].shape[1]
    for budget in (None, BUDGET):
        set_pruning(model, budget=budget)
        recorded = Recorded()
        bias = {(40,): 1e4, (41,): -1e4}
        sequences = recorded.generate(model, inputs, length, max_new_tokens=9, sequence_bias=bias, **how)
        found.append((sequences.tolist(), recorded.calls))
    (off, calls_off), (on, calls_on) = found
    assert on == off and len(on[0]) == length + 4
    if "num_beams" in how:  # which beam comes second depends on the last bits of scores
        calls_on, calls_off = (
            [(kind, len(ids), len(ids[0]) if kind != "allowed" else ids[:length]) for kind, ids in calls]
            for calls in (calls_on, calls_off)
        )
        assert calls_on == calls_off
        return
    assert calls_on == calls_off and {kind for kind, _ in calls_on} >= {"processor", "criterion", "allowed"}
    assert all(len(ids[0] if kind != "allowed" else ids) >= length for kind, ids in calls_on)


def test_a_streamer_gets_the_prompt_that_was_passed(family, model):
    inputs = family.row(1)
    for budget in (None, BUDGET // 2):
        set_pruning(model, budget=budget)
        recorded = Recorded()
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=None, streamer=recorded)
        kinds = [kind for kind, _ in recorded.calls]
        assert kinds == ["streamer"] * 4 + ["end"]
        assert recorded.calls[0][1] == inputs["input_ids"].tolist()
        assert [ids for _, [ids] in recorded.calls[1:4]] == out[0, -3:].tolist()


def test_a_length_limit_of_the_models_own_counts_the_full_prompt(family, model):
    inputs = family.row(1)
    length, config = inputs["input_ids"].shape[1], copy.deepcopy(model.generation_config)
    model.generation_config.max_length, model.generation_config.eos_token_id = length + 5, None
    try:
        for budget in (None, BUDGET // 2):
            set_pruning(model, budget=budget)
            assert model.generate(**inputs, do_sample=False).shape[1] == length + 5
    finally:
        model.generation_config = config


def test_settings_of_one_call_are_those_of_the_config_set_so(family, model):
    inputs, settings = family.lite_inputs(), [{"budget": 3}, {"budget": 9, "method": "random"}, {}]
    expected = []
    for setting in settings:
        model.config.pruning_config = PruningConfig(**setting)
        expected.append((model(**inputs).logits, greedy(model, inputs)))
    own = model.config.pruning_config = PruningConfig(budget=1)
    for setting, (logits, new) in zip(settings, expected, strict=True):
        one_call = PruningConfig(**setting)
        assert torch.equal(model(**inputs, pruning_config=one_call).logits, logits)
        assert greedy(model, inputs, pruning_config=one_call) == new
        assert model.config.pruning_config is own


@torch.no_grad()
def test_threads_with_settings_of_their_own_do_not_meet(family, model):
    inputs, budgets = family.lite_inputs(), [1, 5, 12, None]

    def answer(budget):
        pruning = PruningConfig(budget=budget)
        return model(**inputs, pruning_config=pruning).logits, greedy(model, inputs, pruning_config=pruning)

    expected = {budget: answer(budget) for budget in budgets}
    with ThreadPoolExecutor(8) as pool:  # the soak test of tests/soak has hundreds of calls each
        for budget, (logits, new) in zip(budgets * 4, pool.map(answer, budgets * 4), strict=True):
            assert torch.equal(logits, expected[budget][0]) and new == expected[budget][1]
