"""Hidden states of a decoder that was run layer by layer, as upstream's models return them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.models.decoder.evidence import PromptInDecoder
from transformers_litelvlm.models.prompt.compaction import at_columns_of_full
from transformers_litelvlm.models.upstream import resolve_hidden_states_indices, selected_hidden_states


class HiddenStates:
    """Collects what `output_hidden_states` asks for: all states, or those of some indices and `None` for the others.

    Args:
        language_model: the decoder; its config says whether the last of them is the one after the final norm.
        output_hidden_states: as upstream.
    """

    def __init__(self, language_model: PreTrainedModel, output_hidden_states: bool | int | list[int] | None) -> None:
        count = len(language_model.layers) + 1
        selected = selected_hidden_states(output_hidden_states)
        if selected is None:
            self._wanted = set(range(count)) if output_hidden_states else set()
        else:
            self._wanted = resolve_hidden_states_indices(language_model, selected, count)
        self._is_last_normalised = getattr(language_model.config, "tie_last_hidden_states", None) is not False
        self._states: list[torch.Tensor | None] = []

    def add(self, states: torch.Tensor, prompt: PromptInDecoder | None = None) -> None:
        """What enters the next layer; of a shortened `prompt`, to be returned at its full length."""
        is_wanted = len(self._states) in self._wanted
        self._states.append((states if prompt is None else at_full_length(states, prompt)) if is_wanted else None)

    def result(
        self, states: torch.Tensor, normalised: torch.Tensor, prompt: PromptInDecoder | None = None
    ) -> tuple[torch.Tensor | None, ...] | None:
        """All of them, given what left the last layer and that after the final norm (at full length already)."""
        if not self._wanted:
            return None
        if self._is_last_normalised:
            self.add(normalised)
        else:
            self.add(states, prompt)
        return tuple(self._states)


def at_full_length(states: torch.Tensor, prompt: PromptInDecoder) -> torch.Tensor:
    """States (B, L', D) of the remaining tokens at their columns of the whole prompt, (B, L, D); zeros elsewhere."""
    return at_columns_of_full(states, prompt.columns, prompt.full_length)
