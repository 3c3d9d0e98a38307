"""One pass through a model in its public halves, one after the other, so that each can be measured alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Guidance
from transformers_litelvlm.models.guidance.selection import choose, project
from transformers_litelvlm.models.masks.segmentation import DialogueStates, ReferringSegmentationMixin
from transformers_litelvlm.models.prompt.pruned_prompt import PrunedPrompt, prune_prompt
from transformers_litelvlm.models.settings import PruningSettings


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

# Measures what runs inside `with stage(name):`; `nullcontext` measures nothing.
Stage = Callable[[str], AbstractContextManager[Any]]


class StagedModel:
    """A model whose halves are called one by one; see [`~models.family.PrunedModelMixin`].

    Args:
        model: a model of ours in evaluation mode.

    Attributes:
        pruning: what is pruned from now on; see [`prune`].
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.base: Any = model.model
        self.has_masks = isinstance(model, ReferringSegmentationMixin)
        self.unpruned = model.config.pruning_config.replace(budget=None, retention_ratio=None)
        self.pruning = self.unpruned
        self._runs_tower: dict[Any, bool] = {}

    def prune(self, pruning: PruningConfig | None) -> None:
        """Set what is pruned from now on; `None` is the unpruned model."""
        self.pruning = self.unpruned if pruning is None else pruning

    @property
    def settings(self) -> PruningSettings:
        """Of the pruning set."""
        return self.base.settings(self.pruning)

    def modality(self, inputs: dict[str, Any]) -> str:
        """`"image"` or `"video"`: the one that the inputs have pixels of."""
        return next(name for name in self.base.modalities if self.base.pixels_of[name] in inputs)

    def num_visual_tokens(self, inputs: dict[str, Any]) -> int:
        """Of one picture, before pruning."""
        return self.base.num_visual_tokens(self.modality(inputs), inputs)[0]

    @torch.inference_mode()
    def end_to_end(self, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """What a user calls: `segment`, with `kwargs`, or `generate` of one token for models without masks."""
        if self.has_masks:
            return self.model.segment(**inputs, **kwargs, pruning_config=self.pruning)
        return self.generate(inputs, 1)

    def check_finite(self, output: Any) -> None:
        """Raises FloatingPointError if masks, or the logits of a token, are not finite."""
        values = [output.seg_embeddings, output.pred_masks] if self.has_masks else output.logits
        if not all(value.isfinite().all() for value in values):
            raise FloatingPointError(f"The model computes values that are not finite in {self.model.dtype}.")

    @torch.inference_mode()
    def run_stages(self, inputs: dict[str, Any], stage: Stage = nullcontext, **kwargs: Any) -> Any:
        """The same in stages; returns what the language model returns. `kwargs` are those of [`prefill`]."""
        features = self.encode(inputs, stage)
        if not kwargs and self.shares_prompts(inputs, features):
            with stage("LLM prefill"):
                output = read = self.read(inputs, features)
        else:
            with stage("prompt compaction"):
                prompt = self.compact(inputs, features)
            with stage("LLM prefill"):
                output = self.prefill(prompt, **kwargs)
            read = DialogueStates(self._states(output), prompt.inputs["input_ids"])
        if self.has_masks:
            with stage("mask image encoder"):
                for_masks = self.model.encode_for_masks(inputs)
            with stage("mask decoder"):
                self.model.decode(read, inputs, for_masks)
        return output

    def shares_prompts(self, inputs: dict[str, Any], features: Any) -> bool:
        """Whether dialogues may share the beginning of their prompt: then shortening it is part of reading."""
        return self.has_masks and len(features.pooler_output) != len(inputs["input_ids"])

    @torch.inference_mode()
    def read(self, inputs: dict[str, Any], features: Any) -> DialogueStates:
        """Compaction and prefill in one, as `segment` does it."""
        return self.model.read(inputs, features, self.settings)

    def _states(self, output: Any) -> Any:
        if not self.has_masks:
            return None
        return output.hidden_states[-1] if self.model.reads_before_norm else output.last_hidden_state

    @torch.inference_mode()
    def encode(self, inputs: dict[str, Any], stage: Stage = nullcontext) -> Any:
        """Features of the pictures, pruned if the method prunes before the language model."""
        modality, settings = self.modality(inputs), self.settings
        is_cut = settings.cuts(self.base.num_visual_tokens(modality, inputs))
        if settings.before_language_model is None or not is_cut:
            with stage("vision tower"):  # with the projector, as upstream calls it
                return self.base.media_features(modality, inputs, settings)
        encoded, guidance = self.base.encode(modality, self._media(inputs)), Guidance.of(inputs)
        runs_tower = self.runs_tower(encoded, guidance)
        with stage("vision tower"):
            encoded = self.base.encode(modality, self._media(inputs))
            if not runs_tower:
                encoded.finish()
        if self.has_masks:
            encoded, guidance = self.model.by_sentences(encoded, inputs, guidance, settings)
        if settings.pruner.needs_text:
            with stage("guidance text"):
                guidance = self.base.embed_sentences(guidance)
        with stage("scoring + selection"):
            chosen = choose(encoded, guidance, settings)
        with stage("projector"):
            return project(encoded, chosen, settings)

    def _media(self, inputs: dict[str, Any]) -> dict[str, Any]:
        names = (*self.base.media_arguments[self.modality(inputs)], *self.base.guidance_arguments)
        return {name: inputs[name] for name in names if name in inputs}

    def runs_tower(self, encoded: EncodedMedia | None = None, guidance: Guidance | None = None) -> bool:
        """Whether the method runs the vision tower's layers inside its selection. Found by trying, once a setting."""
        key = self.pruning.build_pruner(), self.pruning.budget
        if key not in self._runs_tower and encoded is not None:
            first = encoded[[0]]
            self.base.select(first, guidance.rows([0]), self.settings)
            self._runs_tower[key] = first.tower_features is None
        return self._runs_tower.get(key, False)

    def compact(self, inputs: dict[str, Any], features: Any) -> PrunedPrompt:
        """The prompt that fits the features."""
        if self.has_masks:
            return self.model.shorten(inputs, features, self.settings)
        modality = self.modality(inputs)
        arguments = {name: inputs[name] for name in self.base.prompt_arguments if name in inputs}
        arguments.pop(self.base.pixels_of[modality])
        return prune_prompt(self.base, {**arguments, "mm_encoder_outputs": {modality: features}}, self.settings)

    @torch.inference_mode()
    def prefill(self, prompt: PrunedPrompt, /, **kwargs: Any) -> Any:
        """The language model on an encoded prompt, as `segment` or `generate` runs it unless `kwargs` differ."""
        if not self.has_masks:
            inputs = {**prompt.plain_inputs(), "pruning_config": self.pruning}
            return self.model(**inputs, **{"use_cache": True, "logits_to_keep": 1, **kwargs})
        how = {"output_hidden_states": [-1]} if self.model.reads_before_norm else {}
        return self.base(pruned=prompt, **{"use_cache": False, **how, **kwargs})

    @torch.inference_mode()
    def generate(self, inputs: dict[str, Any], new_tokens: int, features: Any = None) -> Any:
        """Exactly so many tokens; `features` are those of [`encode`], if the picture is not to be encoded again."""
        inputs = {name: value for name, value in inputs.items() if name != "original_sizes"}
        if features is not None:
            inputs |= {self.base.pixels_of[self.modality(inputs)]: None}
            inputs["mm_encoder_outputs"] = {self.modality(inputs): features}
        return self.model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            pruning_config=self.pruning,
        )
