"""Masks of one picture or video under many pruning settings: what no setting changes is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from transformers_litelvlm.data.samples import ReferringSentence, VideoExpression
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.stopwatch import Stopwatch, peak_memory, start_peak_memory
from transformers_litelvlm.models.devices import to_model
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Guidance
from transformers_litelvlm.models.masks.box_segmentation import BoxSegmentation
from transformers_litelvlm.models.masks.boxes import BoxAnswer
from transformers_litelvlm.models.masks.segmentation import PER_DIALOGUE, ReferringSegmentationMixin


# Inputs of a few dialogues about one picture or video, as `processor.segmentation_inputs` gives them.
Part = dict[str, Any]

# Dialogues in one forward pass. Fixed, and never of two images: the shapes that enter a kernel decide the order of its
# sums, so a result would otherwise depend in its last bits on what an image is batched with.
MAX_DIALOGUES = 16
# Of videos fewer: the masks of all their frames are in memory at the original size.
MAX_VIDEO_DIALOGUES = 4
# Visual tokens on each side of the picture that settings are tried on, where its size decides.
PROBE_SIDE = 16


@dataclass
class SharedEncodings:
    """What all runs of a sweep share about one picture or video."""

    parts: list[Part]  # a few dialogues each
    encoded: EncodedMedia  # of the vision tower
    guidance: list[Guidance]  # the sentences of each part
    for_masks: Any  # of SAM's image encoder
    times: dict[str, float]  # milliseconds of these stages


@dataclass
class RunCost:
    """What one run took for one picture or video."""

    num_kept: list[int] = field(default_factory=list)  # visual tokens of each dialogue
    # milliseconds by stage, shared ones included: what the run takes alone
    times: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None  # bytes on the device


@dataclass
class RunOutput:
    """What one run says about one picture."""

    masks: torch.Tensor  # (T, H, W) booleans, for the sentences in their order, on the device of the model
    cost: RunCost
    answers: list[BoxAnswer] = field(default_factory=list)  # of a model that answers with boxes, one for each sentence


class SweepSegmenter:
    """Segments pictures or videos under one run after the other.

    Args:
        model: a `...ForReferringSegmentation` in evaluation mode; its pruning setting is changed by every run.
        processor: its processor.
        joint_dialogue: all sentences of a call in one dialogue, unless the checkpoint was trained otherwise;
            else each in its own.

    Attributes:
        takes_videos: whether the model writes masks of videos.
        writes_boxes: whether it answers with boxes.

    Raises:
        ValueError: the model cannot do a sweep.
    """

    def __init__(self, model: Any, processor: Any, joint_dialogue: bool = False) -> None:
        if not isinstance(model, ReferringSegmentationMixin):
            raise ValueError(f"{type(model).__name__} cannot be evaluated: only models that write masks can.")
        self.model, self.processor = model, processor
        if not joint_dialogue:
            processor.one_expression_per_dialogue = True
        self.base_pruning = model.config.pruning_config
        self.takes_videos = model.mask_decoder.takes_videos
        self.writes_boxes = isinstance(model, BoxSegmentation)
        self.num_visual_tokens = model.config.num_visual_tokens

    @cached_property
    def _probe(self) -> SharedEncodings:
        vision = self.model.config.vision_config
        patch = vision.patch_size if isinstance(vision.patch_size, int) else max(vision.patch_size)
        side = PROBE_SIDE * patch * getattr(vision, "spatial_merge_size", 1)
        return self.encode(Image.new("RGB", (side, side)), [VideoExpression("probe", "object")])

    @torch.no_grad()  # not inference mode: an analysis takes gradients later
    def encode(
        self,
        medium: Image.Image | list[Image.Image],
        sentences: Sequence[ReferringSentence | VideoExpression],
        templates: list[str] | None = None,
        part_sizes: list[int] | None = None,
    ) -> SharedEncodings:
        """What does not depend on the run.

        Args:
            medium: the picture, or the frames of a video.
            sentences: what to find in it.
            templates: a question for each; the checkpoint's default one if `None`.
            part_sizes: how many dialogues go together; as many as fit by default.
        """
        is_video = isinstance(medium, list)
        sizes = part_sizes or _even_parts(len(sentences), MAX_VIDEO_DIALOGUES if is_video else MAX_DIALOGUES)
        templates = templates or [self._template(sentence, is_video) for sentence in sentences]
        # Data with this mark are whole sentences; published evaluators leave their capitals.
        as_written = "is_sentence" in getattr(sentences[0], "details", ())

        def inputs(part: slice) -> Part:
            prepared = self.processor.segmentation_inputs(
                **{"videos" if is_video else "images": [medium]},
                expressions=[[sentence.sentence for sentence in sentences[part]]],
                question_template=[templates[part]],
                as_written=as_written,
            )
            return to_model(prepared, self.model)

        slices = [slice(sum(sizes[:place]), sum(sizes[: place + 1])) for place in range(len(sizes))]
        if self.processor.one_expression_per_dialogue:  # the picture is prepared once
            whole = inputs(slice(None))
            parts = [_dialogues_of(whole, part) for part in slices]
        else:
            parts = [inputs(part) for part in slices]
        watch = Stopwatch()
        with watch.stage("vision"):
            encoded = self.model.encode(parts[0])
            encoded.finish()
        with watch.stage("guidance"):
            guidance = [self.model.model.embed_sentences(Guidance.of(part)) for part in parts]
        with watch.stage("mask_encoder"):
            for_masks = self.model.encode_for_masks(parts[0])
        return SharedEncodings(parts, encoded, guidance, for_masks, watch.milliseconds)

    def segment(self, run: Run, shared: SharedEncodings) -> RunOutput:
        """Masks of all sentences about a picture under a run. Raises ValueError if the method cannot reach the budget,
        or is not defined for the model."""
        cost = RunCost()
        result = RunOutput(torch.empty(0), cost)
        masks = []
        for output in self.outputs(run, shared, cost):
            masks.append(output.masks[0])
            if self.writes_boxes:
                result.answers += output.answers[0]
        result.masks = torch.cat(masks)
        return result

    @torch.inference_mode()
    def outputs(self, run: Run, shared: SharedEncodings, cost: RunCost) -> Iterator[Any]:
        """What the model says to each part of the dialogues under a run, part after part. `cost` is filled in, and
        complete when the last part was taken.

        Yields:
            [`ReferringSegmentationOutput`], with one entry in its lists.

        Raises:
            ValueError: as [`segment`].
        """
        pruning = run.pruning(self.base_pruning)
        settings = self.model.model.settings(pruning)
        watch = Stopwatch()
        start_peak_memory(self.model.device)
        for part, guidance in zip(shared.parts, shared.guidance, strict=True):
            with watch.stage("selection"):
                features = self.model.select(shared.encoded, part, guidance, settings)
            with watch.stage("prefill"):
                read = self.model.read(part, features, settings)
            with watch.stage("mask_decoder"):
                output = self.model.decode(read, part, shared.for_masks)
            cost.num_kept += self.model.num_kept(part, features if read.kept is None else read.kept)
            yield output
        uses_guidance = settings.is_on and settings.pruner.needs_text
        shared_times = {name: ms for name, ms in shared.times.items() if name != "guidance" or uses_guidance}
        cost.times = {**shared_times, **watch.milliseconds}
        cost.peak_memory = peak_memory(self.model.device)

    def why_not(self, run: Run) -> str | None:
        """Why a run is impossible with this model, found out by trying it on an empty picture; `None` if it is not."""
        try:
            whole = self.num_visual_tokens
            if run.is_pruned and whole is not None and run.pruning(self.base_pruning).resolve(whole) is None:
                return f"it would keep all {whole} visual tokens, which is the unpruned model"
            self.segment(run, self._probe)
        except (ValueError, NotImplementedError) as error:
            return str(error)
        return None

    def _template(self, sentence: ReferringSentence | VideoExpression, is_video: bool) -> str:
        """The checkpoint's question; for a whole sentence the one that is nothing but the sentence and a request."""
        if getattr(sentence, "details", {}).get("is_sentence"):
            return self.processor.whole_sentence_template
        return self.processor.video_question_template if is_video else self.processor.question_templates[0]


def _dialogues_of(inputs: Part, part: slice) -> Part:
    """Some of the dialogues, padded as they would be alone; what belongs to the picture stays."""
    cut = dict(inputs)
    for names in PER_DIALOGUE:
        rows = {name: cut[name][part] for name in names if name in cut}
        if mask := [value for name, value in rows.items() if name.endswith("attention_mask")]:
            is_used = mask[0].flatten(0, -2).any(dim=0)  # whichever side is padded
            rows = {name: value[..., is_used] for name, value in rows.items()}
        cut.update(rows)
    return cut


def _even_parts(total: int, largest: int) -> list[int]:
    """`[16, 16, 3]` for 35 and 16."""
    return [min(largest, total - start) for start in range(0, total, largest)]
