"""What `generate` shows its callers: the prompt that was passed, although decoding runs on a shortened one.

Logits processors, stopping criteria, constraints and streamers get the ids of the full prompt, and lengths count it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from transformers_litelvlm.models.upstream import BaseStreamer


class FullPrompt(NamedTuple):
    """The prompt of one call of `generate`.

    Attributes:
        input_ids: (B, L) as passed; `None` of a prompt in embeddings.
        short_length: L' of the shortened prompt.
        num_removed: tokens that the shortened prompt lacks.
    """

    input_ids: torch.Tensor | None
    short_length: int
    num_removed: int

    def restore(self, sequences: torch.Tensor) -> torch.Tensor:
        """Sequences (B * n, L' + t) with the full prompt in front of their t new tokens, (B * n, L + t).

        Sequences after a prompt in embeddings have the new tokens alone, as upstream.
        """
        if self.input_ids is None:
            return sequences
        repeats = len(sequences) // len(self.input_ids)
        prompt = self.input_ids.repeat_interleave(repeats, dim=0).to(sequences.device)
        return torch.cat((prompt, sequences[:, self.short_length :]), dim=1)


@dataclass
class GenerateCall:
    """A call of `generate` that is running.

    Attributes:
        prompt: that it shows; `None` if it decodes the prompt that was passed.
        first_media: `image_outputs` and `video_outputs` of its first step, which has the prompt, once it is done.
    """

    prompt: FullPrompt | None
    first_media: dict[str, Any] | None = None


# A variable of the context: several threads may generate with one model.
RUNNING: ContextVar[GenerateCall | None] = ContextVar("generate_call", default=None)


def current_full_prompt() -> FullPrompt | None:
    """The prompt of the pruned call of `generate` that is running here; `None` if there is none."""
    return None if RUNNING.get() is None else RUNNING.get().prompt


@contextmanager
def showing(prompt: FullPrompt | None) -> Iterator[GenerateCall]:
    """Have what is built inside show `prompt`."""
    call = GenerateCall(prompt)
    token = RUNNING.set(call)
    try:
        yield call
    finally:
        RUNNING.reset(token)


class _OnFullPrompt(list):
    """For lists of functions of ids and scores, which get the ids with the full prompt."""

    def __init__(self, functions: list, prompt: FullPrompt) -> None:
        super().__init__(functions)
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().__call__(self.prompt.restore(input_ids), scores, **kwargs)  # type: ignore[misc]


class ProcessorsOnFullPrompt(_OnFullPrompt, LogitsProcessorList):
    """Logits processors that get the ids with the full prompt."""


class CriteriaOnFullPrompt(_OnFullPrompt, StoppingCriteriaList):
    """Stopping criteria that get the ids with the full prompt."""

    @property
    def max_length(self) -> int | None:
        """For upstream's own loops, which count the shortened sequences."""
        full = super().max_length
        return None if full is None else full - self.prompt.num_removed


class StreamerOnFullPrompt(BaseStreamer):
    """A streamer whose first ids are the full prompt."""

    def __init__(self, streamer: BaseStreamer, prompt: FullPrompt) -> None:
        self.streamer, self.prompt, self.is_first = streamer, prompt, True

    def put(self, value: torch.Tensor) -> None:
        """Ids of the prompt at first, then new tokens."""
        self.streamer.put(self.prompt.restore(value) if self.is_first else value)
        self.is_first = False

    def end(self) -> None:
        """The end of the stream."""
        self.streamer.end()
