"""Evidence from inside a decoder layer: attention rows recomputed from queries and keys, for any attention kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from transformers_litelvlm.models.devices import to_device_of, weights_of
from transformers_litelvlm.models.prompt.compaction import PromptCounts
from transformers_litelvlm.models.upstream import rotate_half
from transformers_litelvlm.pruning.layers import LayerEvidence
from transformers_litelvlm.pruning.selection import gather_tokens, product


@dataclass(frozen=True)
class PromptInDecoder:
    """What is left of B prompts, L tokens each, on their way through the decoder.

    Attributes:
        states: (B, L, D).
        mask: (B, L) bool, False for padding; `None` if there is none.
        positions: (..., B, L), what the rotary embedding gets.
        columns: (B, L) place in the unpruned prompt; its length, `full_length`, for what was padded later.
        is_visual: (B, L) bool; in reading order the tokens of M images.
        num_visual: n_i, how many of them each image has.
        is_text: (B, L) bool, text after the first image of its row.
        known: what of it is known on the host; `None` if the device has to be asked.
        deepstack: (B, L, D) each, what is still to be added to the states, layer by layer; zeros where text is.
    """

    states: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    columns: torch.Tensor
    full_length: int
    is_visual: torch.Tensor
    num_visual: Sequence[int]
    is_text: torch.Tensor
    known: PromptCounts | None = None
    deepstack: tuple[torch.Tensor, ...] = ()

    def with_deepstack(self) -> PromptInDecoder:
        """The prompt with what is to be added to its states after the layer that it left."""
        if not self.deepstack:
            return self
        added, *later = self.deepstack
        return replace(self, states=self.states + added.to(self.states.device), deepstack=tuple(later))

    def visual_places(self, images: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of the visual tokens of some images that have n each, (number of images, n) each, without
        asking the device."""
        places = (~self.is_visual).flatten().byte().argsort(stable=True)[: sum(self.num_visual)]
        of_images = places.split(list(self.num_visual))
        places, length = torch.stack([of_images[image] for image in images]), self.is_visual.shape[1]
        return places // length, places % length

    def text_columns(self, num_text: int) -> torch.Tensor:
        """Columns of the text after images, (B, T); anything if a row has less."""
        return (~self.is_text).byte().argsort(dim=1, stable=True)[:, :num_text]

    def longest_text(self) -> int:
        """T of the row with most text after images. It decides shapes: if it is not known, the device is asked."""
        return int(self.is_text.sum(dim=1).max()) if self.known is None else max(self.known.text)

    def last_columns(self) -> torch.Tensor:
        """Column of the last token of each row that is no padding, (B, 1)."""
        if self.mask is None:
            return torch.full_like(self.columns[:, :1], self.columns.shape[1] - 1)
        return self.columns.shape[1] - 1 - self.mask.flip(1).byte().argmax(dim=1, keepdim=True)


class PromptEmbeddings:
    """The visual tokens of some images and the text after them as they enter the decoder.

    Args:
        prompt: before the first layer.
        images: which; all have N visual tokens.
        num_text: T.
    """

    def __init__(self, prompt: PromptInDecoder, images: Sequence[int], num_text: int) -> None:
        rows, columns = prompt.visual_places(images)
        text = prompt.text_columns(num_text)
        is_text = prompt.is_text.gather(1, text)
        self.visual = prompt.states[rows, columns]
        self.text = gather_tokens(prompt.states, text)[rows[:, 0]]
        self.is_text = is_text[rows[:, 0]] & (text[rows[:, 0]] > columns[:, -1:])


class LayerAttention:
    """Rows of the attention inside a decoder layer that has run, that of Llama or Qwen3; each computed once.

    Args:
        language_model: the decoder.
        layer: index of the one meant.
        prompt: what entered it.
        rotary: cosines and sines (B, L, d) of the prompt's positions.
        num_text: T.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        layer: int,
        prompt: PromptInDecoder,
        rotary: tuple[torch.Tensor, torch.Tensor],
        num_text: int,
    ) -> None:
        self.layer, self.num_layers = layer, len(language_model.layers)
        self._block, self._rotary_emb = language_model.layers[layer], language_model.rotary_emb
        self._prompt, self._rotary, self._num_text = prompt, rotary, num_text

    @cached_property
    def of_last_tokens(self) -> torch.Tensor:
        """What the last token of each row attends to, (B, H, 1, L) float32."""
        return self.probabilities(self._prompt.last_columns())

    @cached_property
    def of_text(self) -> torch.Tensor:
        """What the text after images attends to, (B, H, T, L) float32."""
        return self.probabilities(self.text_columns())

    @cached_property
    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """Value vectors of the prompt, (B, H', L, d) float32, where H' heads have values of their own."""
        attention, norm = self._block.self_attn, self._block.input_layernorm
        with weights_of(self._block):
            values = _of_all_heads(attention.v_proj, norm(to_device_of(norm, self._prompt.states)))
        size = self._rotary[0].shape[-1]
        return values.unflatten(-1, (-1, size)).transpose(1, 2).float().to(self._prompt.columns.device)

    @torch.no_grad()
    def value_attention(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Softmax of the products of the values at `columns` (M, R) with all of their rows (M,), (M, H', R, L)."""
        values = self.values[rows]
        places = columns[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1])
        logits = product(values.gather(2, places), values.transpose(-1, -2)) / values.shape[-1] ** 0.5
        if self._prompt.mask is not None:
            is_real = self._prompt.mask[rows, None, None].to(logits.device)
            logits = logits.masked_fill(~is_real, torch.finfo(torch.float32).min)
        return logits.softmax(dim=-1)

    def text_columns(self) -> torch.Tensor:
        """Columns of the text after images, (B, T)."""
        return self._prompt.text_columns(self._num_text)

    def rotary_tables(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (M, n, d) float32 of the tokens at `rows` and `columns`, (M, n) each.

        At positions from the first token of the prompt on, so that padding before it does not matter.
        """
        mask, columns_of_all = self._prompt.mask, self._prompt.columns
        positions = self._prompt.positions.expand(*self._prompt.positions.shape[:-2], *columns_of_all.shape)
        first = columns_of_all.new_zeros(len(columns_of_all), 1)
        first = first if mask is None else mask.byte().argmax(dim=1, keepdim=True)
        positions = positions - positions.gather(-1, first.expand(*positions.shape[:-1], 1))
        cos, sin = self._rotary_emb(torch.zeros(1, device=rows.device), position_ids=positions[..., rows, columns])
        return cos, sin

    @torch.no_grad()
    def probabilities(self, columns: torch.Tensor) -> torch.Tensor:
        """What the tokens at `columns` (B, R) attend to, (B, H, R, L) float32."""
        attention, norm = self._block.self_attn, self._block.input_layernorm
        # Qwen3 normalises each head of queries and keys before it is turned.
        norms = (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        with weights_of(self._block):
            states = norm(to_device_of(norm, self._prompt.states))
            cos, sin = (table.expand(len(states), -1, -1).to(states.device) for table in self._rotary)
            columns = columns.to(states.device)
            tables = gather_tokens(cos, columns), gather_tokens(sin, columns)
            query = _rotated_heads(_of_all_heads(attention.q_proj, gather_tokens(states, columns)), *tables, norms[0])
            keys = _rotated_heads(_of_all_heads(attention.k_proj, states), cos, sin, norms[1])
        # Query heads in groups that share a key: (B, H / groups, groups, R, d) with (B, H / groups, 1, L, d).
        query = query.unflatten(1, (keys.shape[1], -1)).float()
        logits = product(query, keys.unsqueeze(2).float().transpose(-1, -2)) * attention.scaling
        is_seen = torch.arange(states.shape[1], device=states.device) <= columns.unsqueeze(-1)
        if self._prompt.mask is not None:
            is_seen = is_seen & self._prompt.mask.unsqueeze(1).to(states.device)
        logits = logits.flatten(1, 2).masked_fill(~is_seen.unsqueeze(1), torch.finfo(torch.float32).min)
        return logits.softmax(dim=-1).to(self._prompt.columns.device)


class DecoderLayerEvidence(LayerEvidence):
    """Evidence at one layer of a decoder, about some images with n visual tokens left of N each.

    Args:
        attention: inside the layer.
        prompt: what came out of it.
        images: which.
        embeddings: of these images in the unpruned prompt.
    """

    def __init__(
        self, attention: LayerAttention, prompt: PromptInDecoder, images: Sequence[int], embeddings: PromptEmbeddings
    ) -> None:
        self.layer, self.num_layers = attention.layer, attention.num_layers
        self.num_tokens = embeddings.visual.shape[1]
        self._rows, self._columns = prompt.visual_places(images)
        self.features = prompt.states[self._rows, self._columns]
        self.is_text = embeddings.is_text
        self._attention, self._embeddings = attention, embeddings

    def last_token_attention(self) -> torch.Tensor:
        return self._to_visual_tokens(self._attention.of_last_tokens)[:, :, 0]

    def text_attention(self) -> torch.Tensor:
        return self._to_visual_tokens(self._attention.of_text)

    def value_attention(self, visual: torch.Tensor | None = None) -> torch.Tensor:
        rows = self._rows[:, 0]
        columns = self._attention.text_columns()[rows] if visual is None else self._columns.gather(1, visual)
        probabilities = self._attention.value_attention(rows, columns)
        return self._gather_visual_tokens(probabilities)

    def rotary_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._attention.rotary_tables(self._rows, self._columns)

    def input_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._embeddings.visual, self._embeddings.text

    def _to_visual_tokens(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(B, H, R, L) as (M, H, R, n): of the row of each image, for its visual tokens."""
        return self._gather_visual_tokens(probabilities[self._rows[:, 0]])

    def _gather_visual_tokens(self, probabilities: torch.Tensor) -> torch.Tensor:
        """(M, H, R, L) at the visual tokens of each image, (M, H, R, n)."""
        places = self._columns[:, None, None].expand(-1, *probabilities.shape[1:3], -1)
        return probabilities.gather(3, places)


def _of_all_heads(projection: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What a projection makes of (B, R, D) for all heads: with tensor parallelism, a process computes some of them,
    and all processes must choose the same tokens."""
    heads, weight = projection(states), getattr(projection, "weight", None)
    if heads.shape[-1] == getattr(projection, "out_features", heads.shape[-1]):
        return heads
    if not isinstance(weight, DTensor):
        raise ValueError("With tensor parallelism, methods inside the language model need unquantized weights.")
    return DTensor.from_local(heads, weight.device_mesh, [Shard(-1)], run_check=False).full_tensor()


def _rotated_heads(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    """(B, R, H * d) as (B, H, R, d), normalised by `norm` if there is one, and turned by the tables (B, R, d)."""
    heads = states.unflatten(-1, (-1, cos.shape[-1]))
    heads = (heads if norm is None else norm(heads)).transpose(1, 2)
    return heads * cos.unsqueeze(1) + rotate_half(heads) * sin.unsqueeze(1)
