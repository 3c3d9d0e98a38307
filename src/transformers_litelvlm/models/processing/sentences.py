"""Referring expressions: which sentence belongs to which picture, and their CLIP tokens for guidance."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)


def nest_expressions(expressions: Any, num_images: int) -> list[list[str]]:
    """One list of sentences per picture.

    Args:
        expressions: a sentence for every picture; for one picture a list of its sentences; for several pictures a list
            with one sentence, or one list of sentences, each.

    Raises:
        ValueError: for an empty sentence or list, anything that is no text, or a number that does not fit.
    """
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
            raise ValueError(f"`expressions[{image}]` must be one or more sentences, got {of_image!r}.")
        for index, sentence in enumerate(of_image):
            if not isinstance(sentence, str) or not sentence.strip():
                raise ValueError(f"`expressions[{image}][{index}]` must be a sentence, got {sentence!r}.")
    return [list(of_image) for of_image in nested]


def match_templates(templates: Any, name: str, expressions: list[list[str]], default: str) -> list[list[str]]:
    """One template for each of the nested `expressions`: `default`, the one given, or those given in the same shape.

    Raises:
        ValueError: if the templates, the argument `name`, do not have the shape of the expressions.
    """
    if templates is None or isinstance(templates, str):
        return [[templates or default] * len(of_image) for of_image in expressions]
    if templates and len(expressions) == 1 and all(isinstance(template, str) for template in templates):
        templates = [templates]
    nested = [[of_image] if isinstance(of_image, str) else list(of_image) for of_image in templates]
    if [len(of_image) for of_image in nested] != [len(of_image) for of_image in expressions]:
        raise ValueError(f"`{name}` must be one template, or one for each of the expressions, got {templates!r}.")
    return nested


def content_parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a chat message, whose content may also be plain text."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def last_user_turn(conversation: list[dict[str, Any]]) -> str:
    """Text of the last user message of a conversation in the format of chat templates."""
    for message in reversed(conversation):
        if message["role"] == "user":
            return " ".join(part["text"] for part in content_parts(message) if part.get("type") == "text").strip()
    return ""


def last_user_text(prompt: str, user_marker: str, assistant_marker: str, *special_tokens: str) -> str:
    """Text of the last user turn of a rendered prompt, without special tokens; all of it if no marker occurs."""
    turn = prompt.rsplit(user_marker, 1)[-1].split(assistant_marker, 1)[0]
    for token in special_tokens:
        turn = turn.replace(token, " ")
    return " ".join(turn.split())


def tokenize_guidance(tokenizer, sentences: list[list[str]]) -> dict[str, torch.Tensor]:
    """CLIP tokens of the sentences of each picture.

    Returns:
        `guidance_input_ids` and `guidance_attention_mask`, (M, T, L) long. A sentence that a picture does not have is
        a row of zeros in the mask. Longer sentences than the text tower takes are truncated, with one warning.
    """
    flat = [sentence for of_image in sentences for sentence in of_image]
    limit = tokenizer.model_max_length
    longest = max(map(len, tokenizer(flat, add_special_tokens=True, verbose=False)["input_ids"]))
    if longest > limit:
        logger.warning_once(f"A sentence has {longest} CLIP tokens; guidance reads the first {limit} of them.")
    tokens = tokenizer(flat, padding=True, truncation=True, max_length=min(limit, longest), return_tensors="pt")

    width = max(map(len, sentences))
    places = [image * width + i for image, of_image in enumerate(sentences) for i in range(len(of_image))]
    shape = (len(sentences) * width, tokens["input_ids"].shape[1])
    ids = torch.full(shape, tokenizer.eos_token_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    ids[places], mask[places] = tokens["input_ids"], tokens["attention_mask"]
    return {
        "guidance_input_ids": ids.view(len(sentences), width, -1),
        "guidance_attention_mask": mask.view(len(sentences), width, -1),
    }
