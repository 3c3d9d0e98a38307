"""What our vLLM models share: our own code for pictures, vLLM's for language, and positions with gaps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from vllm.model_executor.models.utils import AutoWeightsLoader

from transformers_litelvlm.serving.vllm.media import (
    embed_images,
    finish_loading,
    lend_embeddings,
    media_model,
    renamed,
    stacked,
)
from transformers_litelvlm.serving.vllm.positions import (
    NUM_COLUMNS,
    Flat,
    Span,
    final_positions,
    first_positions,
    with_offsets,
    without_offsets,
)
from transformers_litelvlm.serving.vllm.requested import of_key, unpack
from transformers_litelvlm.serving.vllm.servable import check_settings, image_grid


class PrunedModelMixin:
    """For a vLLM model, in front of vLLM's own class for the family.

    Attributes:
        model_class: ours, in transformers; it encodes and selects.
        towers: parts of vLLM's class that ours replaces.
        kind: of its positions.
        left_aside: beginnings of names of weights that are not needed.
    """

    model_class: Any
    towers: ClassVar[tuple[str, ...]]
    kind: ClassVar[type[Flat]]
    left_aside: tuple[str, ...] = ("mask_model.", "text_hidden_fcs.", "seg_head.")

    # All of it is done for vLLM's own towers, or not tested with ours.
    supports_mm_device_do_normalize = False  # pixels arrive normalised, as our processors make them
    supports_encoder_tp_data = False
    supports_encoder_cudagraph = False
    supports_tower_connector_lora = False

    config: Any
    language_model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        for name in self.towers:
            delattr(self, name)
        settings = check_settings(self.config)
        self.has_columns = settings.is_on and settings.keeps_positions
        self.media = media_model(self.model_class, self.config)
        lend_embeddings(self.media, self.language_model.model.embed_tokens)
        self._offsets: torch.Tensor | None = None

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As upstream, from our checkpoints and from stock ones."""
        wanted = ((renamed(name), weight) for name, weight in weights if not name.startswith(self.left_aside))
        loaded = AutoWeightsLoader(self).load_weights(wanted)
        of_media = {name.removeprefix("media.") for name in loaded if name.startswith("media.")}
        return loaded | {f"media.{name}" for name in finish_loading(self.media, of_media)}

    def embed_multimodal(self, **kwargs: object) -> list[torch.Tensor]:
        """The kept tokens of each picture, with what else the language model needs in further columns. All pictures
        of a call have the same settings: vLLM makes a call for each."""
        if kwargs.get("pixel_values") is None:
            return []
        base = self.media.model
        names = (*base.media_arguments["image"], *base.guidance_arguments)
        arguments: dict[str, Any] = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        for name in ("guidance_input_ids", "guidance_attention_mask"):
            if name in arguments:
                arguments[name] = stacked(arguments[name])
        pruning = of_key(unpack(kwargs["pruning"]))  # type: ignore[arg-type]
        embeds, indices = embed_images(self.media, {**arguments, "pruning_config": pruning})
        if not self.has_columns:
            return embeds
        grids = base.media_grids("image", arguments)
        if indices is None:  # no picture is larger than the budget
            indices = [torch.arange(len(rows), device=rows.device) for rows in embeds]
        return [
            with_offsets(rows, self.kind.offsets(kept.to(rows.device), grid))
            for rows, kept, grid in zip(embeds, indices, grids, strict=True)
        ]

    # ---- positions: vLLM's way for pruned videos --------------------------------------------------------------------

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list) -> tuple[torch.Tensor, int]:
        """Positions before it is known which visual tokens are kept, see [`positions`]."""
        if not self.has_columns:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        spans = []
        for feature in mm_features:
            known = feature.data.get("image_grid_thw") if feature.data is not None else None
            grid = image_grid(self.config, None if known is None else known.data)
            spans.append(Span(feature.mm_position.offset, feature.mm_position.length, grid))
        return first_positions(len(input_tokens), spans, self.kind)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Any, mrope_positions: torch.Tensor, num_computed_tokens: int
    ) -> tuple[Any, torch.Tensor, int]:
        """Take the positions of visual tokens from their embeddings. vLLM calls it on a GPU."""
        ids = torch.as_tensor(input_ids, device=mrope_positions.device)
        embeds, offsets = list(multimodal_embeddings), mrope_positions.new_zeros(3, 0)
        if embeds:
            embeds, offsets = without_offsets(embeds)
        # LLaVA: pictures may stand side by side.
        size = None if self.config.num_visual_tokens is None else self.kind.size(image_grid(self.config))
        is_visual = ids == self.config.image_token_id
        positions, delta = final_positions(mrope_positions, is_visual, offsets, num_computed_tokens, size)
        return embeds, positions, delta

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> torch.Tensor:
        """As upstream. Where nobody took the positions out of the embeddings before (vLLM does not on a CPU), they
        are added in `forward`."""
        if self.has_columns and multimodal_embeddings and self._width_of_all(multimodal_embeddings[0]):
            multimodal_embeddings, offsets = without_offsets(multimodal_embeddings)
            self._offsets = offsets.new_zeros(3, len(input_ids))
            self._offsets[:, is_multimodal] = offsets
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

    def _width_of_all(self, embeds: torch.Tensor) -> bool:
        width = self.config.get_text_config().hidden_size * (1 + self.media.model.num_deepstack)
        return embeds.shape[-1] == width + NUM_COLUMNS

    def forward(
        self,
        input_ids: Any,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Any = None,
        **kwargs: object,
    ) -> Any:
        """As upstream, see [`embed_input_ids`]."""
        offsets, self._offsets = self._offsets, None
        if offsets is not None:
            positions = positions.clone()
            positions[:, : offsets.shape[1]] += offsets
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )
