"""What the language model makes of visual tokens, against finite differences, eager attention and shorter prompts."""

import pytest
import torch

from tests.support.analysed_images import SENTENCES
from transformers_litelvlm.analysis import language
from transformers_litelvlm.models.masks.segmentation import DialogueStates


def test_gradient_times_input_is_the_derivative_by_the_size_of_a_token(asked):
    found = language.gradient_times_input(
        asked.model, asked.part, asked.tokens, asked.unpruned, asked.for_masks, asked.masks
    )
    step = 0.04  # masks are float32 in any case

    def value(token: int, factor: float) -> torch.Tensor:
        tokens = asked.tokens.clone()
        tokens[token] *= factor
        features = language.whole_features(tokens.expand(len(asked.masks), -1, -1))
        with torch.no_grad():
            logits = language.mask_logits(asked.model, asked.part, features, asked.unpruned, asked.for_masks)
        return torch.stack([row[mask].mean() for row, mask in zip(logits, asked.masks, strict=True)])

    assert found.shape == (2, len(asked.tokens)) and (found > 0).all()
    tokens = range(0, len(asked.tokens), 7)
    derivatives = []
    for token in tokens:
        near = value(token, 1 + step) - value(token, 1 - step)
        far = value(token, 1 + 2 * step) - value(token, 1 - 2 * step)
        derivatives.append((8 * near - far).abs() / (12 * step))
    expected = torch.stack(derivatives, dim=1)
    difference = (found[:, list(tokens)] - expected).norm(dim=1) / expected.norm(dim=1)
    assert difference.max() < 1e-3


def test_attention_is_that_of_the_eager_kernel(asked):
    asked.model.set_attn_implementation("eager")
    ids = asked.part["input_ids"]
    columns = language.seg_columns(asked.model, ids)
    expressions = [asked.processor.expression(text) for text in SENTENCES]
    ends = [column for [column] in columns]
    words = language.words_columns(asked.processor.tokenizer, ids, expressions, ends)
    features = language.whole_features(asked.tokens.expand(len(ids), -1, -1))
    with torch.no_grad():
        prompt = asked.model.shorten(asked.part, features, asked.unpruned)
        attentions = asked.model.model(pruned=prompt, use_cache=False, output_attentions=True).attentions
        sets = [columns, words]
        of_sets = language.attention_to_tokens(asked.model, asked.part, asked.tokens, asked.unpruned, sets)
        for wanted, found in zip(sets, of_sets, strict=True):
            assert found.shape == (len(attentions), 2, len(asked.tokens))
            for layer, of_layer in enumerate(attentions):
                for row, own in enumerate(wanted):
                    is_visual = ids[row] == placeholder_of(asked)
                    expected = of_layer[row].mean(dim=0)[own].mean(dim=0)[is_visual]
                    torch.testing.assert_close(found[layer, row].double(), expected, rtol=1e-5, atol=1e-6)


def placeholder_of(asked) -> int:
    return getattr(asked.model.config, f"{asked.model.mask_modality}_token_id")


def test_leave_one_out_is_a_run_without_that_placeholder(asked):
    """The same dialogue through the decoder alone, without a column, at the positions of the others."""
    settings = language.settings_of(asked.model, asked.base, len(asked.tokens) - 1)
    part, base = asked.part, asked.model.model
    with torch.no_grad():
        found = torch.cat(
            list(language.leave_one_out(asked.model, part, asked.tokens, settings, asked.for_masks, row=0))
        )
        assert len(found) == len(asked.tokens)
        features = language.whole_features(asked.tokens.expand(2, -1, -1))
        prompt = asked.model.shorten(part, features, asked.unpruned)
        embeds = base(pruned=prompt, use_cache=False, output_hidden_states=True).hidden_states[0]
        positions = base.decoder_positions(prompt, embeds, None)
        if positions is None:
            positions = torch.arange(embeds.shape[1]).expand(2, -1)
        one = {**language.repeat_dialogue(part, 0, 1)}
        places = (part["input_ids"][0] == placeholder_of(asked)).nonzero().flatten()
        for token in (0, len(asked.tokens) // 2, len(asked.tokens) - 1):
            kept = torch.arange(embeds.shape[1]) != places[token]
            kept &= part["attention_mask"][0].bool()
            output = base.language_model(
                inputs_embeds=embeds[:1, kept],
                attention_mask=torch.ones(1, int(kept.sum()), dtype=torch.long),
                position_ids=positions[..., :1, kept],
                output_hidden_states=True,
            )
            states = output.hidden_states[-1] if asked.model.reads_before_norm else output.last_hidden_state
            read = DialogueStates(states, part["input_ids"][:1, kept], [1])
            expected = asked.model.decode(read, one, asked.for_masks).mask_logits[0]
            torch.testing.assert_close(found[token], expected[0], rtol=1e-6, atol=1e-7)
    assert (found - found.mean(dim=0)).abs().amax(dim=(1, 2)).min() > 0  # each token matters to a random model


def test_the_words_of_a_prompt(asked):
    ids = asked.part["input_ids"]
    tokenizer = asked.processor.tokenizer
    ends = [ids.shape[1]] * 2
    columns = language.words_columns(tokenizer, ids, ["dog", "dog in"], ends)
    for row, own, text in zip(ids, columns, ("dog", "dog in"), strict=True):
        assert own == list(range(own[0], own[-1] + 1))
        assert "".join(text.split()) in "".join(tokenizer.decode(row[own]).split())
        assert "".join(text.split()) not in "".join(tokenizer.decode(row[own[1:]]).split())
    with pytest.raises(ValueError, match="The prompt does not have the expression 'a zebra'"):
        language.words_columns(tokenizer, ids[:1], ["a zebra"], ends[:1])
    # Not those before the last ones, as of a system prompt.
    twice = torch.cat([ids[:1], ids[:1]], dim=1)
    [later] = language.words_columns(tokenizer, twice, ["dog"], [twice.shape[1]])
    assert later == [column + ids.shape[1] for column in columns[0]]
    assert language.words_columns(tokenizer, twice, ["dog"], [ids.shape[1]]) == columns[:1]


def test_the_column_that_predicts_the_mask(asked):
    [[first], [second]] = language.seg_columns(asked.model, asked.part["input_ids"])
    for row, column in enumerate((first, second)):
        assert asked.part["input_ids"][row, column + 1] == asked.model.config.seg_token_id
