"""Referring expressions: which sentence belongs to which picture, and their CLIP tokens for guidance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers.utils import logging

from transformers_litelvlm.models.processing.tokens import encode, padded, padding_id
from transformers_litelvlm.utils.messages import quoted


logger = logging.get_logger(__name__)

EXPRESSION = "{expression}"  # stands for it in a question template

# A tokenizer without a limit has a very large number for it.
_NO_LIMIT = 10**6


class LastTurns(tuple):
    """The last user turn of each conversation: what guides pruning where no expressions are given."""


def nest_expressions(expressions: Any, num_images: int) -> list[list[str]]:
    """One list of sentences per picture.

    Args:
        expressions: a sentence for every picture; for one picture a list of its sentences; for several pictures a list
            with one sentence, or one list of sentences, each.

    Raises:
        ValueError: for an empty sentence or list, anything that is no text, or a number that does not fit.
    """
    if num_images == 0:
        raise ValueError("There is no picture: give at least one.")
    if isinstance(expressions, str):
        nested = [[expressions]] * num_images
    elif isinstance(expressions, list | tuple) and num_images == 1 and all(isinstance(e, str) for e in expressions):
        nested = [list(expressions)]
    elif isinstance(expressions, list | tuple):
        nested = [[e] if isinstance(e, str) else e for e in expressions]
    else:
        raise ValueError(f"`expressions` must be a sentence or a list, got {type(expressions).__name__}.")
    if len(nested) != num_images:
        raise ValueError(f"`expressions` has {len(nested)} entries for {num_images} pictures: give one entry each.")
    for image, of_image in enumerate(nested):
        if not isinstance(of_image, list | tuple) or not of_image:
            raise ValueError(f"`expressions[{image}]` must be one or more sentences, got {quoted(of_image)}.")
        for index, sentence in enumerate(of_image):
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"`expressions[{image}][{index}]` must be a sentence, got {quoted(sentence)}.")
            check_unicode("expressions", sentence)
    return [list(of_image) for of_image in nested]


def check_unicode(name: str, text: Any) -> None:
    """Refuse half of a surrogate pair, which stands for a byte that is not UTF-8, in the texts of argument `name`.

    Args:
        text: a text, texts however nested, or `None`.

    Raises:
        ValueError: names the argument and quotes what is around it; also for what is no text.
    """
    for each in () if text is None else text if isinstance(text, list | tuple) else [text]:
        if isinstance(each, list | tuple):
            check_unicode(name, each)
        elif not isinstance(each, str):
            raise ValueError(f"`{name}` must be a text or a list of texts, got {quoted(text)}.")
        elif half := re.search("[\ud800-\udfff]", each):
            around = each[max(half.start() - 30, 0) : half.end() + 30]
            raise ValueError(f"`{name}` must be valid Unicode, got {around!r}: it was no UTF-8 where it was read.")


def check_call(text: Any, kwargs: dict[str, Any]) -> None:
    """Raises ValueError for `text` that is none, and for settings of the model, which upstream would ignore."""
    check_unicode("text", text)
    if name := next((name for name in kwargs if name.startswith("pruning_")), None):
        raise ValueError(
            f"`{name}` is no argument of a processor, but a setting of the model: pass it to `from_pretrained`, or "
            f"to a pipeline as `model_kwargs={{{name!r}: {quoted(kwargs[name])}}}`."
        )


def check_special_tokens(
    sentences: Iterable[str], tokenizers: Iterable[Any], placeholders: Iterable[str] = ()
) -> None:
    """Refuse sentences that a tokenizer would read a special token in.

    Args:
        sentences: as they are tokenised: lower case and the like are applied.
        tokenizers: all that read them.
        placeholders: further tokens that must not occur.

    Raises:
        ValueError: names the token and quotes the sentence.
    """
    sentences = list(sentences)
    found = [(token, each) for each in sentences for token in placeholders if token.lower() in each.lower()]
    for tokenizer in tokenizers:
        added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        for sentence, ids in zip(sentences, encode(tokenizer, sentences, add_special_tokens=False), strict=True):
            # A token for unknown words, or one such as "!" that some CLIPs pad with, is no sign of a special token.
            of_sentence = {added[index] for index in ids if index in added}
            found += [(t, sentence) for t in sorted(of_sentence) if len(t) > 1 and t.lower() in sentence.lower()]
    for token, sentence in found:
        raise ValueError(f"`expressions` must not contain the special token {token}, got {quoted(sentence)}.")


def checked_templates(name: str, templates: Any, part: str) -> list[str]:
    """The templates of setting `name`, the default one first, as a list.

    Raises:
        ValueError: if there are none, or as [`check_template`] does.
    """
    if not isinstance(templates, list | tuple) or not templates:
        raise ValueError(f"`{name}` must be a list of one or more texts, got {quoted(templates)}.")
    for template in templates:
        check_template(name, template, part)
    return list(templates)


def check_template(name: str, template: Any, part: str) -> None:
    """Refuse a template without the part that stands for an expression or a mask: it would be ignored.

    Raises:
        ValueError: names the argument and the part; also for what is no text.
    """
    check_unicode(name, [template])
    if part not in template:
        raise ValueError(f"`{name}` must contain {part}, got {quoted(template)}.")


def match_templates(
    templates: Any,
    name: str,
    expressions: list[list[str]],
    defaults: Sequence[str],
    part: str,
    without: str | None = None,
) -> list[list[str]]:
    """One template for each of the nested `expressions`: that of `defaults` for its picture, the one given, or those
    given in the same shape.

    Raises:
        ValueError: if the templates, the argument `name`, do not have the shape of the expressions, or one lacks
            `part` or has what it must be `without`.
    """
    check_unicode(name, templates)
    if templates is None or isinstance(templates, str):
        own = defaults if templates is None else [templates] * len(expressions)
        templates = [[template] * len(of_image) for of_image, template in zip(expressions, own)]
    if templates and len(expressions) == 1 and all(isinstance(template, str) for template in templates):
        templates = [templates]
    nested = [[of_image] if isinstance(of_image, str) else list(of_image) for of_image in templates]
    are_texts = all(isinstance(template, str) for of_image in nested for template in of_image)
    if not are_texts or [len(of_image) for of_image in nested] != [len(of_image) for of_image in expressions]:
        raise ValueError(f"`{name}` must be one template, or one for each expression, got {quoted(templates)}.")
    for of_image in nested:
        for template in of_image:
            check_template(name, template, part)
            if without is not None and without in template:
                raise ValueError(f"`{name}` must not contain {without}, got {quoted(template)}: it asks for no mask.")
    return nested


def messages_of(
    turns: Iterable[tuple[str, str]], media: list[dict[str, str]], for_generation: bool
) -> list[dict[str, Any]]:
    """A conversation of (question, answer) pairs in the format of chat templates: with `media` before the first
    question, and without the last answer if that is left to the model."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        media = []
    return messages[:-1] if for_generation else messages


def last_user_turn(conversation: list[dict[str, Any]]) -> str:
    """Text of the last user message of a conversation in the format of chat templates."""
    for message in reversed(conversation):
        if message["role"] == "user":
            content = message.get("content") or []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            return " ".join(part["text"] for part in parts if part.get("type") == "text").strip()
    return ""


def last_user_text(prompt: str, user_marker: str, assistant_marker: str, *special_tokens: str) -> str:
    """Text of the last user turn of a rendered prompt, without special tokens; all of it if no marker occurs."""
    turn = prompt.rsplit(user_marker, 1)[-1].split(assistant_marker, 1)[0]
    for token in special_tokens:
        turn = turn.replace(token, " ")
    return " ".join(turn.split())


def tokenize_guidance(tokenizer: Any, sentences: list[list[str]]) -> dict[str, torch.Tensor]:
    """CLIP tokens of the sentences of each picture.

    Returns:
        `guidance_input_ids` and `guidance_attention_mask`, (M, T, L) long. A sentence that a picture does not have is
        a row of zeros in the mask. Longer sentences than the text tower takes are truncated, with one warning.
    """
    width = max(map(len, sentences))
    rows = _encode_guidance(tokenizer, [sentence for of_image in sentences for sentence in of_image])
    ids, mask = padded(rows, padding_id(tokenizer))
    places = [image * width + i for image, of_image in enumerate(sentences) for i in range(len(of_image))]
    shape = (len(sentences) * width, ids.shape[1])
    all_ids = torch.full(shape, tokenizer.eos_token_id, dtype=torch.long)
    all_masks = torch.zeros(shape, dtype=torch.long)
    all_ids[places], all_masks[places] = ids, mask
    return {
        "guidance_input_ids": all_ids.view(len(sentences), width, -1),
        "guidance_attention_mask": all_masks.view(len(sentences), width, -1),
    }


def tokenize_questions(tokenizer: Any, questions: list[str], has_one_width: bool) -> dict[str, torch.Tensor]:
    """CLIP tokens of one sentence per picture.

    They have two dimensions, and with `has_one_width` always the same width: then transformers' pipelines can put
    calls together to batches, which they do by stacking rows or padding the second dimension.

    Returns:
        `guidance_input_ids` and `guidance_attention_mask`, (M, L) long.
    """
    limit = tokenizer.model_max_length
    ids, mask = padded(
        _encode_guidance(tokenizer, questions),
        padding_id(tokenizer),
        width=limit if has_one_width and limit < _NO_LIMIT else None,
    )
    return {"guidance_input_ids": ids, "guidance_attention_mask": mask}


def _encode_guidance(tokenizer: Any, sentences: list[str]) -> list[list[int]]:
    """Token ids of sentences, truncated to what the text tower takes."""
    limit, rows = tokenizer.model_max_length, encode(tokenizer, sentences)
    longest = max(map(len, rows))
    if longest > limit:
        logger.warning_once(f"A sentence has {longest} CLIP tokens; guidance reads the first {limit} of them.")
    # An end token remains at the end: CLIP reads the sentence there.
    ends = [row[-1:] if row[-1:] == [tokenizer.eos_token_id] else [] for row in rows]
    return [row if len(row) <= limit else row[: limit - len(end)] + end for row, end in zip(rows, ends, strict=True)]


def without_article(expression: str) -> str:
    """A referring expression as UniPixel writes it into a question: "The red mug." -> "red mug".

    Full stops at the ends go, the first letter becomes small, and one leading article goes.
    """
    expression = expression.strip().strip(".").strip()
    expression = expression[:1].lower() + expression[1:]
    for article in ("the ", "an ", "a "):
        if expression.startswith(article):
            return expression[len(article) :].strip()
    return expression
