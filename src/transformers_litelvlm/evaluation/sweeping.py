"""Masks of one image under many pruning settings: what no setting changes is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from transformers_litelvlm.data.samples import ReferringSentence
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.stopwatch import Stopwatch, peak_memory, start_peak_memory
from transformers_litelvlm.models.vision_tower import TowerStates


# Dialogues in one forward pass. Fixed, and never of two images: the shapes that enter a kernel decide the order of its
# sums, so a result would otherwise depend in its last bits on what an image is batched with.
MAX_DIALOGUES = 16


@dataclass
class SharedEncodings:
    """
    What all runs of a sweep share about one image.

    Args:
        chunks (`list[dict]`): Inputs of at most `MAX_DIALOGUES` dialogues each.
        states (`TowerStates`): Vision tower.
        for_masks (`torch.Tensor`): `(1, C, h, w)`, SAM's image encoder.
        text_embeds (`list`): Per chunk the sentences in CLIP's shared space, or `None` without guidance.
        times (`dict[str, float]`): Milliseconds of these stages.
    """

    chunks: list[dict[str, Any]]
    states: TowerStates
    for_masks: torch.Tensor
    text_embeds: list[torch.Tensor | None]
    times: dict[str, float]


@dataclass
class RunOutput:
    """
    What one run says about one image.

    Args:
        masks (`torch.Tensor`): `(T, H, W)` booleans, for the sentences in their order, on the device of the model.
        num_kept (`float`): Visual tokens per dialogue.
        times (`dict[str, float]`): Milliseconds by stage, shared ones included: what the run takes alone.
        peak_memory (`int`, *optional*): Bytes on the device.
    """

    masks: torch.Tensor
    num_kept: float
    times: dict[str, float]
    peak_memory: int | None


class SweepSegmenter:
    """
    Segments images under one run after the other.

    Args:
        model: A `...ForReferringSegmentation` in evaluation mode; its pruning setting is changed by every run.
        processor: Its processor.
        joint_dialogue (`bool`): All sentences of a call in one dialogue, unless the checkpoint was trained otherwise;
            else each in its own.

    Attributes:
        num_visual_tokens (`int`): Of an image, before pruning.

    Raises:
        ValueError: The model cannot do a sweep.
    """

    def __init__(self, model: Any, processor: Any, joint_dialogue: bool = False) -> None:
        needed = ("encode_images", "select_visual_tokens")
        if not all(hasattr(model.model, name) for name in needed) or not hasattr(model, "decode_dialogues"):
            raise ValueError(f"{type(model).__name__} cannot be evaluated: it has no {', '.join(needed)}.")
        self.model, self.processor = model, processor
        if not joint_dialogue:
            processor.one_expression_per_dialogue = True
        self.base_pruning = model.config.pruning_config
        side = model.config.vision_config.image_size
        sentence = ReferringSentence("probe", "object", load_mask=lambda: np.zeros((side, side), dtype=bool))
        self._probe = self.encode(Image.new("RGB", (side, side)), [sentence])
        self.num_visual_tokens = self._probe.states.features.shape[1] - 1

    @torch.inference_mode()
    def encode(
        self, image: Image.Image, sentences: list[ReferringSentence], templates: list[str] | None = None
    ) -> SharedEncodings:
        """
        What does not depend on the run.

        Args:
            image: The picture.
            sentences: What to find in it.
            templates: A question for each; the checkpoint's default one where `None`.
        """
        templates = templates or [self._template(sentence) for sentence in sentences]
        chunks = []
        for start in range(0, len(sentences), MAX_DIALOGUES):
            part = slice(start, start + MAX_DIALOGUES)
            inputs = self.processor.segmentation_inputs(
                images=[image],
                expressions=[[sentence.sentence for sentence in sentences[part]]],
                question_template=[templates[part]],
                # Data with this mark are whole sentences; published evaluators leave their capitals.
                lowercase=False if "is_sentence" in sentences[0].details else None,
            )
            chunks.append(dict(inputs.to(self.model.device, dtype=self.model.dtype)))
        watch, base = Stopwatch(), self.model.model
        with watch.stage("vision"):
            states = base.encode_images(chunks[0]["pixel_values"][:1])
            _ = states.features
        with watch.stage("mask_encoder"):
            for_masks = self.model.encode_for_masks(chunks[0]["mask_pixel_values"])
        text_embeds: list[torch.Tensor | None] = [None] * len(chunks)
        if "guidance_input_ids" in chunks[0]:
            with watch.stage("guidance"):
                text_embeds = [base.guidance.encode_text(chunk["guidance_input_ids"]) for chunk in chunks]
        return SharedEncodings(chunks, states, for_masks, text_embeds, watch.milliseconds)

    @torch.inference_mode()
    def segment(self, run: Run, shared: SharedEncodings) -> RunOutput:
        """
        Masks of all sentences under a run.

        Raises:
            ValueError: The method cannot reach the budget, or is not defined for the model.
        """
        pruning = run.pruning(self.base_pruning)
        watch, masks, num_kept = Stopwatch(), [], []
        start_peak_memory(self.model.device)
        self.model.config.pruning_config = pruning
        try:
            for chunk, text_embeds in zip(shared.chunks, shared.text_embeds, strict=True):
                with watch.stage("selection"):
                    features = self._features(shared.states, chunk, text_embeds)
                with watch.stage("prefill"):
                    pruned, states = self.model.read_dialogues(
                        chunk["input_ids"], chunk["attention_mask"], mm_encoder_outputs={"image": features}
                    )
                with watch.stage("mask_decoder"):
                    output = self.model.decode_dialogues(
                        states,
                        pruned.model_inputs["input_ids"],
                        mask_image_embeddings=shared.for_masks,
                        original_sizes=chunk["original_sizes"],
                        reshaped_input_sizes=chunk["reshaped_input_sizes"],
                        dialogue_images=chunk.get("dialogue_images"),
                    )
                masks += output.masks
                kept = pruned.features.retained_indices
                num_kept += [len(tokens) for tokens in (features.pooler_output if kept is None else kept)]
        finally:
            self.model.config.pruning_config = self.base_pruning
        uses_guidance = pruning.is_on and pruning.build_pruner().needs_text
        shared_times = {name: ms for name, ms in shared.times.items() if name != "guidance" or uses_guidance}
        return RunOutput(
            torch.cat(masks),
            sum(num_kept) / len(num_kept),
            {**shared_times, **watch.milliseconds},
            peak_memory(self.model.device),
        )

    def why_not(self, run: Run) -> str | None:
        """Why a run is impossible with this model, found out by trying it on an empty picture; `None` if it is not."""
        try:
            if run.is_pruned and run.pruning(self.base_pruning).resolve(self.num_visual_tokens) is None:
                return f"it would keep all {self.num_visual_tokens} visual tokens, which is the unpruned model"
            self.segment(run, self._probe)
        except (ValueError, NotImplementedError) as error:
            return str(error)
        return None

    def _features(self, states: TowerStates, chunk: dict[str, Any], text_embeds: torch.Tensor | None) -> Any:
        """What `get_image_features` gives for the dialogues of a chunk, from the states of their one picture."""
        base, num_dialogues = self.model.model, len(chunk["input_ids"])
        budget = self.model.config.pruning_config.resolve(self.num_visual_tokens)
        states = states[torch.zeros(num_dialogues, dtype=torch.long, device=states.features.device)]
        if budget is None:
            return BaseModelOutputWithPooling(pooler_output=list(base.multi_modal_projector(states.features[:, 1:])))
        return base.select_visual_tokens(
            states, budget, chunk.get("guidance_input_ids"), chunk.get("guidance_attention_mask"), text_embeds
        )

    def _template(self, sentence: ReferringSentence) -> str:
        """The checkpoint's question; for a whole sentence the one that is nothing but the sentence and a request."""
        templates = self.processor.question_templates
        if sentence.details.get("is_sentence"):
            return next((text for text in reversed(templates) if text.startswith("{expression}")), templates[0])
        return templates[0]
