"""Tokens of texts of different lengths, whatever other threads do with the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def encode(tokenizer: Any, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
    """Token ids of each text, neither padded nor truncated.

    The padding and truncation of a fast tokenizer are state of one object that all threads share, and transformers
    sets them in every call. So nothing is set here, and what others have set is undone in the result.
    """
    if not tokenizer.is_fast:
        return tokenizer(list(texts), add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    encodings = backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    while any(encoding.overflowing for encoding in encodings):  # someone truncates; what was cut is lost
        backend.no_truncation()
        encodings = backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    return [[token for token, real in zip(e.ids, e.attention_mask, strict=True) if real] for e in encodings]


def padded(
    rows: Sequence[list[int]], padding: int, width: int | None = None, side: str = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, L), long, of rows of different lengths.

    Args:
        padding: the id of padding.
        width: L; default: the length of the longest row.
        side: where padding goes, `"left"` or `"right"`.
    """
    shape = (len(rows), width or max(map(len, rows)))
    ids, mask = torch.full(shape, padding), torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(shape[1] - len(row), shape[1]) if side == "left" else slice(len(row))
        ids[index, columns], mask[index, columns] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def padding_id(tokenizer: Any) -> int:
    """What rows are padded with; the end token where the tokenizer has nothing for it."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def tokenize(tokenizer: Any, texts: Sequence[str], padding_side: str) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (B, L) of prompts, padded to the longest."""
    ids, mask = padded(encode(tokenizer, texts), padding_id(tokenizer), side=padding_side)
    return {"input_ids": ids, "attention_mask": mask}
