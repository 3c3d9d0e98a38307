"""Evidence from inside a decoder layer: attention rows recomputed from queries and keys, for any attention kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.models.llama.modeling_llama import rotate_half

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.pruning.layers import LayerEvidence
from transformers_litelvlm.pruning.selection import gather_tokens


@dataclass(frozen=True)
class PromptInDecoder:
    """What is left of B prompts, L tokens each, on their way through the decoder.

    Attributes:
        states: (B, L, D).
        mask: (B, L) bool, False for padding; `None` where there is none.
        positions: (B, L), what the rotary embedding gets.
        columns: (B, L) place in the unpruned prompt; its length, `full_length`, for what was padded later.
        is_visual: (B, L) bool; n visual tokens for each of M images, in reading order.
        is_text: (B, L) bool, text behind the first image of its row.
    """

    states: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor
    columns: torch.Tensor
    full_length: int
    is_visual: torch.Tensor
    is_text: torch.Tensor

    def visual_places(self, num_images: int, num_visual: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of the visual tokens of each image, (M, n) each, without asking the device how many."""
        places = (~self.is_visual).flatten().byte().argsort(stable=True)[: num_images * num_visual]
        places = places.view(num_images, num_visual)
        length = self.is_visual.shape[1]
        return places // length, places % length

    def text_columns(self, num_text: int) -> torch.Tensor:
        """Columns of the text behind images, (B, T); anything where a row has less."""
        return (~self.is_text).byte().argsort(dim=1, stable=True)[:, :num_text]

    def last_columns(self) -> torch.Tensor:
        """Column of the last token of each row that is no padding, (B, 1)."""
        if self.mask is None:
            return torch.full_like(self.columns[:, :1], self.columns.shape[1] - 1)
        return self.columns.shape[1] - 1 - self.mask.flip(1).byte().argmax(dim=1, keepdim=True)


class PromptEmbeddings:
    """The visual tokens and the text behind them as they enter the decoder.

    Args:
        prompt: before the first layer.
        num_images: M.
        num_visual: N.
    """

    def __init__(self, prompt: PromptInDecoder, num_images: int, num_visual: int) -> None:
        # How long the longest text is decides shapes, so this asks the device.
        self.num_text = int(prompt.is_text.sum(dim=1).max())
        rows, columns = prompt.visual_places(num_images, num_visual)
        text = prompt.text_columns(self.num_text)
        is_text = prompt.is_text.gather(1, text)
        self.visual = prompt.states[rows, columns]
        self.text = gather_tokens(prompt.states, text)[rows[:, 0]]
        self.is_text = is_text[rows[:, 0]] & (text[rows[:, 0]] > columns[:, -1:])


class DecoderLayerEvidence(LayerEvidence):
    """Evidence at one layer of a decoder with the attention of Llama.

    Args:
        block: the decoder layer, which has run.
        prompt: what entered it, with n visual tokens for each image.
        output: (B, L, D), what came out.
        rotary: cosines and sines (B, L, d) of the prompt's positions.
        embeddings: of the unpruned prompt.
        num_visual: n.
    """

    def __init__(
        self,
        block: nn.Module,
        prompt: PromptInDecoder,
        output: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        embeddings: PromptEmbeddings,
        num_visual: int,
        *,
        layer: int,
        num_layers: int,
    ) -> None:
        self.layer, self.num_layers, self.num_tokens = layer, num_layers, embeddings.visual.shape[1]
        self.rows, self.columns = prompt.visual_places(len(embeddings.visual), num_visual)
        self.features = output[self.rows, self.columns]
        self.is_text = embeddings.is_text
        self._block, self._prompt, self._rotary, self._embeddings = block, prompt, rotary, embeddings

    def last_token_attention(self) -> torch.Tensor:
        return self._attention_from(self._prompt.last_columns())[:, :, 0]

    def text_attention(self) -> torch.Tensor:
        return self._attention_from(self._prompt.text_columns(self._embeddings.num_text))

    def input_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._embeddings.visual, self._embeddings.text

    def _attention_from(self, columns: torch.Tensor) -> torch.Tensor:
        """Probabilities (M, H, R, n) of the tokens at `columns` (B, R) for the visual tokens of each image."""
        probabilities = self._probabilities(columns)[self.rows[:, 0]]
        places = self.columns[:, None, None].expand(-1, *probabilities.shape[1:3], -1)
        return probabilities.gather(3, places)

    @torch.no_grad()
    def _probabilities(self, columns: torch.Tensor) -> torch.Tensor:
        """What the tokens at `columns` (B, R) attend to, (B, H, R, L) float32."""
        attention, norm = self._block.self_attn, self._block.input_layernorm
        states = norm(to_device_of(norm, self._prompt.states))
        cos, sin = (table.expand(len(states), -1, -1).to(states.device) for table in self._rotary)
        columns = columns.to(states.device)
        query = _rotated_heads(
            attention.q_proj(gather_tokens(states, columns)), gather_tokens(cos, columns), gather_tokens(sin, columns)
        )
        keys = _rotated_heads(attention.k_proj(states), cos, sin)
        # Query heads in groups that share a key: (B, H / groups, groups, R, d) with (B, H / groups, 1, L, d).
        query = query.unflatten(1, (keys.shape[1], -1)).float()
        logits = query @ keys.unsqueeze(2).float().transpose(-1, -2) * attention.scaling
        is_seen = torch.arange(states.shape[1], device=states.device) <= columns.unsqueeze(-1)
        if self._prompt.mask is not None:
            is_seen = is_seen & self._prompt.mask.unsqueeze(1).to(states.device)
        logits = logits.flatten(1, 2).masked_fill(~is_seen.unsqueeze(1), torch.finfo(torch.float32).min)
        return logits.softmax(dim=-1).to(self.rows.device)


def _rotated_heads(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, R, H * d) as (B, H, R, d), turned by the tables (B, R, d)."""
    heads = states.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)
    return heads * cos.unsqueeze(1) + rotate_half(heads) * sin.unsqueeze(1)
