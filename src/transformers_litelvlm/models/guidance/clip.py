"""CLIP guidance: what the sentences and the vision tower tell about each visual token."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTextConfig

from transformers_litelvlm.models.devices import check_ids, to_device_of, weights_of
from transformers_litelvlm.models.guidance.encoded import NO_SENTENCES, Guidance
from transformers_litelvlm.models.guidance.vision_tower import TowerStates
from transformers_litelvlm.pruning.base import Between, VisualEvidence
from transformers_litelvlm.pruning.selection import product
from transformers_litelvlm.utils.hub_names import check_loadable


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

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Projected [EOS] states (M, T, P) of the expressions `input_ids` (M, T, L), not normalised.

        Padding is on the right, as CLIP's tokenizer puts it: attention is causal, so no [EOS] sees any, and a mask
        would change nothing but the kernel.
        """
        check_ids("guidance_input_ids", input_ids, self.text_model.config.vocab_size)
        num_images, num_expressions, length = input_ids.shape
        input_ids = to_device_of(self.text_projection, input_ids).reshape(-1, length)
        states = self.text_model(input_ids=input_ids)
        return self.text_projection(states.pooler_output).view(num_images, num_expressions, -1)

    def encode_empty_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """What [`encode_text`] gives for the same expressions (M, T, L) without their words, (M, T, P)."""
        end = self.text_model.config.eos_token_id
        # Old checkpoints have a wrong 2 there, for which transformers takes the largest id of a text.
        ends = input_ids.amax(dim=-1, keepdim=True) if end == 2 else torch.full_like(input_ids[..., :1], end)
        return self.encode_text(torch.cat((input_ids[..., :1], ends), dim=-1))


class ClipTowerEvidence(VisualEvidence):
    """Evidence for a CLIP vision tower: its features, the layers around them, and the sentences.

    Args:
        states: the vision tower's states (M, 1+N, C) after any number of its layers.
        guidance: the CLIP text tower and projections.
        projector: (M, N, C) to (M, N, D), from the vision tower to the language model.
        sentences: in CLIP's tokens.
    """

    def __init__(
        self,
        states: TowerStates,
        guidance: ClipGuidance,
        projector: Callable[[torch.Tensor], torch.Tensor] | None,
        sentences: Guidance = NO_SENTENCES,
    ) -> None:
        self.grid, self.num_layers = states.grid, states.num_layers
        self.max_expressions = sentences.max_expressions
        self._states, self._guidance, self._projector, self._sentences = states, guidance, projector, sentences

    @property
    def features(self) -> torch.Tensor:  # type: ignore[override]
        return self._states.features[:, 1:]

    @property
    def class_features(self) -> torch.Tensor:  # type: ignore[override]
        return self._states.features[:, 0]

    def image_embeds(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """As in [`VisualEvidence`]; of `tokens` (M, N, C) instead of the features if they are given."""
        tokens = self.features if tokens is None else tokens
        post_layernorm, projection = self._states.tower.post_layernorm, self._guidance.visual_projection
        normalised = post_layernorm(to_device_of(post_layernorm, tokens))
        return projection(to_device_of(projection, normalised)).to(self._states.device)

    def surgery_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.image_embeds(self._states.after_value_attention()[:, 1:])
        return tokens, self._guidance.encode_empty_text(self._sentences.input_ids).to(self._states.device)

    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, mask = self._sentences.text_embeds, self._sentences.attention_mask
        if embeds is None:
            embeds = self._guidance.encode_text(self._sentences.input_ids)
        embeds = embeds.to(self._states.device)
        if mask is None:
            return embeds, embeds.new_ones(embeds.shape[:2], dtype=torch.bool)
        return embeds, mask.any(dim=-1).to(embeds.device)

    def projected_features(self) -> torch.Tensor:
        if self.known_projection is None:
            self.known_projection = self._projector(self.features)
        return self.known_projection

    def class_attention(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layer = self._states.tower.encoder.layers[self.num_layers]
        attention, device = layer.self_attn, self.features.device
        with weights_of(layer):
            states = layer.layer_norm1(to_device_of(layer.layer_norm1, self._states.features))
            query = attention.q_proj(states[:, 0]).to(device)
            return query, attention.k_proj(states[:, 1:]).to(device), attention.v_proj(states[:, 1:]).to(device)

    def class_query_and_keys(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._states.class_query_and_keys(self.num_layers + layer)

    def run_layers(self, between: Between) -> torch.Tensor:
        return self._states.run_layers(between)


class SideClip(ClipGuidance):
    """A whole CLIP beside a model whose own tower is another one: text tower, vision tower and both projections.

    Args:
        config: a [`~transformers.CLIPConfig`].
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__(config.text_config, config.vision_config.hidden_size, config.projection_dim)
        self.vision_model = AutoModel.from_config(config.vision_config)

    def encode_pictures(self, pixel_values: torch.Tensor) -> TowerStates:
        """The vision tower's states for pictures (B, 3, S, S); its layers run when a method asks."""
        tower = self.vision_model
        # As in LLaVA: what the last layer reads.
        layer_index = len(tower.encoder.layers) - 1
        return TowerStates.of(tower, pixel_values.to(self.visual_projection.weight.dtype), layer_index)


class SideClipEvidence(VisualEvidence):
    """Evidence from a [`SideClip`] about the tokens of another tower, on the grid of that tower.

    CLIP sees the whole picture, squeezed into its square without cropping, so its patches and the visual tokens cover
    the same picture and differ in their grid only. Everything that CLIP says of its patches is resampled (bilinear
    with antialiasing) to the (h, w) grid of the visual tokens. Resampling is linear, so dot products with resampled
    embeddings are the resampled similarity map; cosines are taken after resampling.

    Args:
        clip: the side CLIP.
        pictures: CLIP's states of B pictures; `None` for methods that ask nothing of it.
        features: (B, h * w, D) the visual tokens.
        grid: (h, w).
        sentences: in CLIP's tokens.
    """

    has_class_token = False

    def __init__(
        self,
        clip: SideClip,
        pictures: TowerStates | None,
        features: torch.Tensor,
        grid: tuple[int, int],
        sentences: Guidance = NO_SENTENCES,
    ) -> None:
        self.features = features
        self.max_expressions = sentences.max_expressions
        self._clip, self._pictures, self.grid, self._sentences = clip, pictures, grid, sentences

    @cached_property
    def _on_patches(self) -> ClipTowerEvidence:
        if self._pictures is None:
            raise ValueError(
                "With `guidance='clip'` the model needs `guidance_pixel_values`: load the processor with "
                "`guidance_model=` (a CLIP checkpoint) and pass its whole output to the model."
            )
        return ClipTowerEvidence(self._pictures, self._clip, None, self._sentences)

    def _resample(self, on_patches: torch.Tensor) -> torch.Tensor:
        """(B, P * P, C) on CLIP's square grid -> (B, h * w, C) float32."""
        side = math.isqrt(on_patches.shape[1])
        rows, columns = (bilinear_weights(side, size).to(on_patches.device) for size in self.grid)
        maps = product(rows, columns, on_patches.float().unflatten(1, (side, side)), equation="yp, xq, bpqc -> byxc")
        return maps.flatten(1, 2)

    def projected_features(self) -> torch.Tensor:
        return self.features

    def image_embeds(self) -> torch.Tensor:
        return self._resample(self._on_patches.image_embeds())

    def text_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._on_patches.text_embeds()

    def surgery_embeds(self) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, empty_embeds = self._on_patches.surgery_embeds()
        return self._resample(tokens), empty_embeds

    def class_attention(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, keys, values = self._on_patches.class_attention()
        return query, self._resample(keys), self._resample(values)

    def attention_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise ValueError(
            "The method reads the attention of the model's own vision tower, and `guidance='clip'` asks a CLIP "
            "instead: set `guidance='intrinsic'`."
        )

    def context_scores(self) -> torch.Tensor:
        return self._resample(self._on_patches.context_scores().unsqueeze(-1)).squeeze(-1)


def bilinear_weights(size: int, new_size: int) -> torch.Tensor:
    """Weights (new_size, size) of bilinear resampling with antialiasing along one axis, float32; rows sum to 1.

    `torch.nn.functional.interpolate` means the same, but with antialiasing it returns something else for contiguous
    maps that become one column wide (seen in torch 2.13).
    """
    scale = size / new_size
    centres = (torch.arange(new_size, device="cpu") + 0.5) * scale
    distance = (torch.arange(size, device="cpu") + 0.5 - centres.unsqueeze(1)).abs() / max(scale, 1.0)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def load_side_clip(
    source: str, dtype: torch.dtype, device: torch.device, **access: Any
) -> tuple[SideClip, CLIPConfig]:
    """A [`SideClip`] with the weights of the CLIP checkpoint `source`, and its configuration; further as
    [`load_guidance`].

    Raises:
        ValueError: if the checkpoint cannot be loaded.
    """
    clip = _load_clip(source, dtype, access)
    with torch.device("meta"):
        side = SideClip(clip.config)
    for name, module in clip.named_children():
        setattr(side, name, module)
    return side.to(device).eval(), clip.config


def _load_clip(source: str, dtype: torch.dtype, access: dict[str, Any]) -> CLIPModel:
    try:
        check_loadable(source, **access)
        return CLIPModel.from_pretrained(source, dtype=dtype, **access)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The checkpoint holds no CLIP text tower, and `guidance_model` {source!r} could not be loaded in its "
            "place. Pass `guidance_model=` with a folder or Hub id of the CLIP that the vision tower comes from, or "
            "of any CLIP where the vision tower is not one. "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def load_guidance(source: str, tower: nn.Module, **access: Any) -> ClipGuidance:
    """Guidance for a vision tower, from the CLIP checkpoint that the tower comes from.

    Args:
        source: folder or Hub id of a [`~transformers.CLIPModel`].
        tower: the vision tower; its weights say whether the checkpoint is the right one.
        access: of `from_pretrained`: `cache_dir`, `force_download`, `local_files_only`, `token`.

    Raises:
        ValueError: if the checkpoint cannot be loaded, or its vision tower is another one.
    """
    clip = _load_clip(source, next(tower.parameters()).dtype, access)
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
