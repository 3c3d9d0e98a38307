"""One pass through a model in its public halves, one after the other, so that each can be measured alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.guidance.clip import ClipTowerEvidence
from transformers_litelvlm.models.llava_lite.dialogue_images import features_by_dialogue
from transformers_litelvlm.models.masks.sam2 import decode_hidden_tokens, resize_masks
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedInputs, project_selection, prune_inputs


# In the order in which they run. The names are those of the report.
STAGES = (
    "vision tower",
    "guidance text",
    "scoring + selection",
    "projector",
    "prompt compaction",
    "LLM prefill",
    "mask image encoder",
    "mask decoder",
)
# What choosing costs.
SELECTOR = ("guidance text", "scoring + selection", "prompt compaction")


class Meter(Protocol):
    """Measures what runs inside `with meter.stage(name):`."""

    def stage(self, name: str) -> AbstractContextManager[None]: ...


class NoMeter:
    """Measures nothing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


class StagedModel(ABC):
    """
    A model whose parts are called one by one.

    Args:
        model: A model of ours in evaluation mode; its pruning setting is changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.base: Any = model.model
        self.has_masks = hasattr(model, "segment")
        self.unpruned = model.config.pruning_config.replace(budget=None, retention_ratio=None)

    def prune(self, pruning: PruningConfig | None) -> None:
        """Sets what is pruned from now on; `None` is the unpruned model."""
        self.model.config.pruning_config = self.unpruned if pruning is None else pruning

    @torch.inference_mode()
    def end_to_end(self, inputs: dict[str, Any]) -> Any:
        """What a user calls: `segment`, or `generate` of one token for models without masks."""
        return self.model.segment(**inputs) if self.has_masks else self.generate(inputs, 1)

    def check_finite(self, output: Any) -> None:
        """Raises FloatingPointError if masks, or the logits of a token, are not finite."""
        values = [output.seg_embeddings, output.low_res_masks] if self.has_masks else output.logits
        if not all(value.isfinite().all() for value in values):
            raise FloatingPointError(f"The model computes values that are not finite in {self.model.dtype}.")

    @torch.inference_mode()
    def run_stages(self, inputs: dict[str, Any], meter: Meter, **kwargs: Any) -> Any:
        """The same in stages; returns what the language model returns. `kwargs` are those of [`prefill`]."""
        features = self.encode(inputs, meter)
        output, pruned = self.read(inputs, features, meter, **kwargs)
        if self.has_masks:
            with meter.stage("mask image encoder"):
                for_masks = self.model.encode_for_masks(inputs["mask_pixel_values"])
            with meter.stage("mask decoder"):
                self.decode_masks(output, pruned, for_masks, inputs)
        return output

    def read(self, inputs: dict[str, Any], features: Any, meter: Meter, **kwargs: Any) -> tuple[Any, PrunedInputs]:
        """What the language model makes of the prompt, and the prompt that its states belong to."""
        with meter.stage("prompt compaction"):
            pruned = self.compact(inputs, features)
        with meter.stage("LLM prefill"):
            return self.prefill(pruned, **kwargs), pruned

    @torch.inference_mode()
    def prefill(self, pruned: PrunedInputs, /, **kwargs: Any) -> Any:
        """The language model on an encoded prompt, as `segment` or `generate` runs it where `kwargs` do not differ."""
        if self.has_masks:
            return self.base(**pruned.model_inputs, **{"use_cache": False, **self.prefill_kwargs, **kwargs})
        return self.model(**pruned.model_inputs, **{"use_cache": True, "logits_to_keep": 1, **kwargs})

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], new_tokens: int, features: Any = None) -> Any:
        """Exactly so many tokens; `features` are those of [`encode`], where the picture is not to be encoded again."""
        inputs = {name: value for name, value in inputs.items() if name != "original_sizes"}
        if features is not None:
            inputs = {name: value for name, value in inputs.items() if name not in self.pixel_names}
            inputs["mm_encoder_outputs"] = {self.modality(inputs): features}
        return self.model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )

    def runs_tower(self) -> bool:
        """Whether the method of the current setting runs the vision tower's layers inside its selection."""
        return False

    pixel_names = ("pixel_values", "pixel_values_videos", "guidance_pixel_values")
    prefill_kwargs: dict[str, Any] = {}

    @abstractmethod
    def modality(self, inputs: dict[str, Any]) -> str:
        """`"image"` or `"video"`."""

    @abstractmethod
    def num_visual_tokens(self, inputs: dict[str, Any]) -> int:
        """Of one picture, before pruning."""

    @abstractmethod
    def encode(self, inputs: dict[str, Any], meter: Meter) -> Any:
        """Features of the pictures, pruned if the method prunes before the language model."""

    @abstractmethod
    def compact(self, inputs: dict[str, Any], features: Any) -> PrunedInputs:
        """The prompt that fits the features."""

    @abstractmethod
    def decode_masks(self, output: Any, pruned: PrunedInputs, for_masks: Any, inputs: dict[str, Any]) -> Any:
        """Masks at the original size."""


class StagedLlava(StagedModel):
    """LLaVA family."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._merging: dict[tuple[Any, int], bool] = {}

    def modality(self, inputs: dict[str, Any]) -> str:
        return "image"

    def num_visual_tokens(self, inputs: dict[str, Any]) -> int:
        return self.base.num_visual_tokens(inputs["pixel_values"])

    @torch.inference_mode()
    def encode(self, inputs: dict[str, Any], meter: Meter) -> Any:
        base, pruning, pixels = self.base, self.model.config.pruning_config, inputs["pixel_values"]
        budget, pruner = pruning.resolve(self.num_visual_tokens(inputs)), pruning.build_pruner()
        if budget is None or pruner.is_inside_language_model:
            layer = self.model.config.vision_feature_layer
            with meter.stage("vision tower"):
                # As upstream calls it: of all hidden states, one is kept.
                states = base.vision_tower(pixels, output_hidden_states=[layer]).hidden_states[layer][:, 1:]
            with meter.stage("projector"):
                return BaseModelOutputWithPooling(pooler_output=list(base.multi_modal_projector(states)))
        ids, mask = inputs.get("guidance_input_ids"), inputs.get("guidance_attention_mask")
        text_embeds, runs_layers = None, self._runs_layers(pixels, ids, mask, budget)
        with meter.stage("vision tower"):
            states = base.encode_images(pixels)
            if not runs_layers:
                _ = states.features
        if pruner.needs_text and "dialogue_images" in inputs:
            states = states[inputs["dialogue_images"]]
        if pruner.needs_text:
            with meter.stage("guidance text"):
                text_embeds = base.guidance.encode_text(ids)
        with meter.stage("scoring + selection"):
            projector = base.multi_modal_projector
            evidence = ClipTowerEvidence(states, base.guidance, projector, ids, mask, text_embeds)
            selection = pruner.select(evidence, budget)
        with meter.stage("projector"):
            in_raster_order = self.model.config.resolved_token_order == "raster"
            return project_selection(selection, evidence, projector, in_raster_order=in_raster_order)

    def runs_tower(self) -> bool:
        pruning = self.model.config.pruning_config
        return self._merging.get((pruning.build_pruner(), pruning.budget), False)

    def _runs_layers(
        self, pixels: torch.Tensor, ids: torch.Tensor | None, mask: torch.Tensor | None, budget: int
    ) -> bool:
        """Whether the method runs the tower's layers itself: they are part of its selection then. Found by trying."""
        key = self.model.config.pruning_config.build_pruner(), budget
        if key not in self._merging:
            states = self.base.encode_images(pixels[:1])
            first = (None if rows is None else rows[:1] for rows in (ids, mask))
            self.base.select_visual_tokens(states, budget, *first)
            self._merging[key] = states.known_features is None
        return self._merging[key]

    def read(self, inputs: dict[str, Any], features: Any, meter: Meter, **kwargs: Any) -> tuple[Any, PrunedInputs]:
        if kwargs or len(features.pooler_output) == len(inputs["input_ids"]):
            return super().read(inputs, features, meter, **kwargs)
        with meter.stage("LLM prefill"):  # dialogues that share the beginning of their prompt, if they do
            pruned, states = self.model.read_dialogues(
                inputs["input_ids"],
                inputs["attention_mask"],
                mm_encoder_outputs={"image": features},
                dialogue_images=inputs["dialogue_images"],
            )
        return BaseModelOutput(last_hidden_state=states), pruned

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], new_tokens: int, features: Any = None) -> Any:
        if "dialogue_images" in inputs:
            inputs = dict(inputs)
            features = features_by_dialogue(features, inputs.pop("dialogue_images").tolist())
        return super().generate(inputs, new_tokens, features)

    @torch.inference_mode()
    def prefill(self, pruned: PrunedInputs, /, **kwargs: Any) -> Any:
        # `segment` tells the model what was pruned, so that it asks the device no more.
        return super().prefill(pruned, **({"pruned": pruned} if self.has_masks else {}), **kwargs)

    def compact(self, inputs: dict[str, Any], features: Any) -> PrunedInputs:
        if "dialogue_images" in inputs:
            features = features_by_dialogue(features, inputs["dialogue_images"].tolist())
        return prune_inputs(
            self.base,
            input_ids=inputs["input_ids"],
            pixel_values=None,
            attention_mask=inputs["attention_mask"],
            position_ids=None,
            mm_encoder_outputs={"image": features},
            image_kwargs={},
        )

    @torch.inference_mode()
    def decode_masks(self, output: Any, pruned: PrunedInputs, for_masks: Any, inputs: dict[str, Any]) -> Any:
        return self.model.decode_dialogues(
            output.last_hidden_state,
            pruned.model_inputs["input_ids"],
            mask_image_embeddings=for_masks,
            **{name: inputs.get(name) for name in ("original_sizes", "reshaped_input_sizes", "dialogue_images")},
        )


class StagedQwen(StagedModel):
    """Qwen2.5-VL family; its tower ends with the projector."""

    # What `segment` reads is the state before the final norm.
    prefill_kwargs = {"output_hidden_states": [-1]}

    def modality(self, inputs: dict[str, Any]) -> str:
        return "video" if "video_grid_thw" in inputs else "image"

    def _media(self, inputs: dict[str, Any]) -> tuple[str, torch.Tensor, torch.Tensor]:
        modality = self.modality(inputs)
        pixels = inputs["pixel_values_videos" if modality == "video" else "pixel_values"]
        return modality, pixels, inputs[f"{modality}_grid_thw"]

    def num_visual_tokens(self, inputs: dict[str, Any]) -> int:
        grid = self._media(inputs)[2][0]
        return int(grid.prod()) // self.base.visual.spatial_merge_size**2

    @torch.inference_mode()
    def encode(self, inputs: dict[str, Any], meter: Meter) -> Any:
        modality, pixels, grid = self._media(inputs)
        if "dialogue_images" in inputs:
            return self._encode_for_dialogues(inputs, pixels, grid, meter)
        if self.model.config.pruning_config.resolve(self.num_visual_tokens(inputs)) is None:
            with meter.stage("vision tower"):
                return getattr(self.base, f"get_{modality}_features")(pixels, grid, return_dict=True)
        with meter.stage("vision tower"):
            encoded = getattr(self.base, f"encode_{modality}s")(pixels, grid)
        guidance = {name: value for name, value in inputs.items() if name.startswith("guidance_")}
        with meter.stage("scoring + selection"):
            return self.base.select_visual_tokens(encoded, grid, **guidance)

    def _encode_for_dialogues(
        self, inputs: dict[str, Any], pixels: torch.Tensor, grid: torch.Tensor, meter: Meter
    ) -> Any:
        """As `segment` of the class that writes masks: a picture that several dialogues are about once."""
        with meter.stage("vision tower"):
            media = self.model.encode_media(pixels, grid)
        guidance = (inputs["guidance_input_ids"], inputs["guidance_attention_mask"])
        is_cut = self.model.config.pruning_config.resolve(self.num_visual_tokens(inputs)) is not None
        with meter.stage("scoring + selection") if is_cut else nullcontext():
            return self.model.select_media(media, inputs["dialogue_images"], *guidance)

    def compact(self, inputs: dict[str, Any], features: Any) -> PrunedInputs:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "attention_mask")
        if "dialogue_images" in inputs:
            media = {
                name: inputs[name][inputs["dialogue_images"]] for name in ("video_grid_thw", "second_per_grid_ts")
            }
            inputs = {**inputs, **media}
        return self.base.prune_prompt(
            input_ids=inputs["input_ids"],
            position_ids=None,
            inputs_embeds=None,
            pixel_values=None,
            mm_encoder_outputs={self.modality(inputs): features},
            **{name: inputs.get(name) for name in names},
        )

    @torch.inference_mode()
    def decode_masks(self, output: Any, pruned: PrunedInputs, for_masks: Any, inputs: dict[str, Any]) -> Any:
        prompts, _ = self.model.prompts_for_masks(output.hidden_states[-1], pruned.model_inputs["input_ids"])
        about = inputs["dialogue_images"]
        decoded = decode_hidden_tokens(self.model.mask_model, [level[about] for level in for_masks], prompts)
        sizes = inputs["original_sizes"][about.cpu()].tolist()
        return [resize_masks(masks, tuple(size)) for masks, size in zip(decoded.low_res_masks, sizes)]


def stage_model(model: PreTrainedModel) -> StagedModel:
    """The stages of a model of any of our families."""
    return StagedQwen(model) if hasattr(model.model, "visual") else StagedLlava(model)
