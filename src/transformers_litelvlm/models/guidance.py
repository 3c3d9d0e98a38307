"""CLIP guidance: what the sentences and the vision tower tell about each visual token."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel, CLIPModel, CLIPTextConfig

from transformers_litelvlm.models.devices import to_device_of
from transformers_litelvlm.models.vision_tower import TowerStates
from transformers_litelvlm.pruning.base import Between, VisualEvidence


class ClipGuidance(nn.Module):
    """The parts of a CLIP model that LLaVA leaves out: the text tower and both projections into the shared space.

    Parameter names are those of [`~transformers.CLIPModel`].

    Args:
        text_config: configuration of the text tower.
        vision_hidden_size: width C of the vision tower that the projection reads.
        projection_dim: size P of the shared space.
    """

    def __init__(self, text_config: CLIPTextConfig, vision_hidden_size: int, projection_dim: int) -> None:
        super().__init__()
        self.text_model = AutoModel.from_config(text_config)
        self.text_projection = nn.Linear(text_config.hidden_size, projection_dim, bias=False)
        self.visual_projection = nn.Linear(vision_hidden_size, projection_dim, bias=False)

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Projected [EOS] states (M, T, P) of the expressions `input_ids` (M, T, L), not normalised."""
        num_images, num_expressions, length = input_ids.shape
        input_ids = to_device_of(self.text_projection, input_ids)
        if attention_mask is not None:
            attention_mask = attention_mask.reshape(-1, length).to(input_ids.device)
            # A missing expression has no token to attend to; its first token stands in, and its result is ignored.
            attention_mask = torch.cat((torch.ones_like(attention_mask[:, :1]), attention_mask[:, 1:]), dim=1)
        states = self.text_model(input_ids=input_ids.reshape(-1, length), attention_mask=attention_mask)
        return self.text_projection(states.pooler_output).view(num_images, num_expressions, -1)


class ClipTowerEvidence(VisualEvidence):
    """Evidence for a CLIP vision tower: its features, the layers around them, and the sentences.

    Args:
        states: the vision tower's states (M, 1+N, C) after any number of its layers.
        guidance: the CLIP text tower and projections.
        projector: (M, N, C) to (M, N, D), from the vision tower to the language model.
        input_ids, attention_mask: (M, T, L) CLIP tokens of the expressions; `None` for methods without text.
    """

    def __init__(
        self,
        states: TowerStates,
        guidance: ClipGuidance,
        projector: nn.Module,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> None:
        self.grid, self.num_layers = states.grid, states.num_layers
        self.max_expressions = 0 if input_ids is None else input_ids.shape[1]
        self._states = states
        self._guidance = guidance
        self._projector = projector
        self._input_ids, self._attention_mask = input_ids, attention_mask

    @property
    def features(self) -> torch.Tensor:  # type: ignore[override]
        return self._states.features[:, 1:]

    @property
    def class_features(self) -> torch.Tensor:  # type: ignore[override]
        return self._states.features[:, 0]

    def image_embeds(self) -> torch.Tensor:
        post_layernorm, projection = self._states.tower.post_layernorm, self._guidance.visual_projection
        normalised = post_layernorm(to_device_of(post_layernorm, self.features))
        return projection(to_device_of(projection, normalised)).to(self.features.device)

    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        embeds = self._guidance.encode_text(self._input_ids, self._attention_mask).to(self.features.device)
        if self._attention_mask is None:
            return embeds, embeds.new_ones(embeds.shape[:2], dtype=torch.bool)
        return embeds, self._attention_mask.any(dim=-1).to(embeds.device)

    def projected_features(self) -> torch.Tensor:
        return self._projector(self.features)

    def class_attention(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layer = self._states.tower.encoder.layers[self.num_layers]
        states = layer.layer_norm1(to_device_of(layer.layer_norm1, self._states.features))
        attention, device = layer.self_attn, self.features.device
        query = attention.q_proj(states[:, 0]).to(device)
        return query, attention.k_proj(states[:, 1:]).to(device), attention.v_proj(states[:, 1:]).to(device)

    def class_query_and_keys(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._states.class_query_and_keys(self.num_layers + layer)

    def run_layers(self, between: Between) -> torch.Tensor:
        return self._states.run_layers(between)


def load_guidance(source: str, tower: nn.Module) -> ClipGuidance:
    """Guidance for a vision tower, from the CLIP checkpoint that the tower comes from.

    Args:
        source: folder or Hub id of a [`~transformers.CLIPModel`].
        tower: the vision tower; its weights say whether the checkpoint is the right one.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or its vision tower is another one.
    """
    try:
        clip = CLIPModel.from_pretrained(source, dtype=tower.dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The checkpoint holds no CLIP text tower, and `guidance_model` {source!r} could not be loaded in its "
            "place. Pass `guidance_model=` with a folder or Hub id of the CLIP that the vision tower comes from. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    for name in ("embeddings.patch_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight"):
        ours: torch.Tensor = tower.get_parameter(name)
        theirs: torch.Tensor = clip.vision_model.get_parameter(name)
        if ours.device.type == "meta" and ours.shape == theirs.shape:  # offloaded: its values are not at hand
            continue
        ours, theirs = ours.float(), theirs.float().to(ours.device)
        # Copies of the same weights differ by rounding to half precision at most.
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > 0.01 * theirs.abs().max():
            raise ValueError(
                f"`guidance_model` {source!r} is not the CLIP that the vision tower comes from: {name} is "
                f"{tuple(theirs.shape)} there and {tuple(ours.shape)} here, or holds other values."
            )
    guidance = ClipGuidance(clip.config.text_config, clip.config.vision_config.hidden_size, clip.config.projection_dim)
    guidance.text_model = clip.text_model
    guidance.text_projection, guidance.visual_projection = clip.text_projection, clip.visual_projection
    parameter = next(tower.parameters())
    device = "cpu" if parameter.device.type == "meta" else parameter.device
    return guidance.to(device, parameter.dtype).eval()
