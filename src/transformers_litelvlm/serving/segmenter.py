"""From requests to masks: pictures are encoded once, and requests that wait together share a call of the model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any

import numpy as np
import torch

from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.models.devices import to_model
from transformers_litelvlm.models.guidance.encoded import EncodedMedia, Guidance
from transformers_litelvlm.models.masks.boxes import BoxAnswer
from transformers_litelvlm.models.masks.sam import SamMaskDecoder
from transformers_litelvlm.models.masks.segmentation import by_dialogue, on_host
from transformers_litelvlm.models.outputs import PrunedImageFeatures
from transformers_litelvlm.models.processing.tokens import padding_id
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.serving.cache import EncodingCache
from transformers_litelvlm.serving.errors import invalid_input
from transformers_litelvlm.serving.joining import join_features, join_inputs, join_mask_features
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.pictures import digest_of, read_picture
from transformers_litelvlm.serving.requests import SegmentRequest


# The shapes that enter a kernel decide the order of its sums, so logits of a joined call differ in their last bits
# from those of a request alone. In 1,348 joined answers of the bundled checkpoint, with 8 settings, they did so by at
# most 11.4 units of the last place of the largest logit, and by 5.4 where a logit is near the border between inside
# and outside. A request with a pixel nearer to it than this many units is answered alone.
MARGIN_UNITS = 24
# Masks in one call, in pixels: logits take four bytes each.
MAX_JOINED_PIXELS = 64_000_000


@dataclass(frozen=True, eq=False)  # each is itself
class Job:
    """A request that the model can answer."""

    inputs: dict[str, Any]  # of the processor, on the host
    pruning: PruningConfig  # the settings, read once
    key: str  # of the picture, by its pixels
    sentences: list[str]
    size: tuple[int, int]  # width and height of the picture
    # Rows and columns of its visual tokens, before pruning; of an image in tiles, one tile below the other.
    grid: tuple[int, int]
    prepared_ms: float = 0.0  # reading and preparing the picture
    shared_settings: str = ""  # what a call of the model needs of them; equal for jobs that may share one
    may_share: bool = True  # whether it may be answered together with others at all

    @property
    def mask_pixels(self) -> int:
        return self.size[0] * self.size[1] * len(self.sentences)


@dataclass
class Answer:
    """Masks for one request."""

    masks: np.ndarray  # (T, H, W) booleans
    scores: list[float]  # of each mask, the mean probability inside it
    kept: list[list[int]]  # raster indices of the visual tokens of each dialogue
    # milliseconds by stage; `model` is the call that requests share
    times: dict[str, float] = field(default_factory=dict)
    batch_size: int = 1  # how many shared it
    was_known: bool = False  # whether the encoding of the picture was there
    texts: list[BoxAnswer] | None = None  # of a model that answers in text, for each sentence


@dataclass
class _Encoding:
    """What no sentence and no setting changes."""

    media: EncodedMedia
    for_masks: Any


@dataclass
class _Selected:
    """A job with the visual tokens that its sentences keep."""

    place: int
    job: Job
    features: Any
    for_masks: Any
    encode_ms: float
    was_known: bool

    @property
    def is_pruned(self) -> bool:
        return isinstance(self.features, PrunedImageFeatures)

    @property
    def length(self) -> int:
        """Columns that the language model reads."""
        columns = self.job.inputs["input_ids"].shape[1]
        if not self.is_pruned:
            return columns
        return columns - self.features.num_visual_tokens[0] + max(map(len, self.features.retained_indices))


class Segmenter:
    """Answers jobs with a model. [`prepare`] may run in many threads, [`answer`] in one.

    Args:
        model, processor: of [`~models.auto.load_for_segmentation`].
        limits: of the server.
        exact: whether joined calls must give the masks of each request alone. Then only masks of SAM in float32 on a
            CPU are joined, where the difference is bounded by [`MARGIN_UNITS`].

    Attributes:
        cache: encodings of pictures.
        repeated: requests that were answered alone after a joined call.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits, exact: bool = True) -> None:
        self.model, self.processor, self.limits, self.exact = model, processor, limits, exact
        self.cache = EncodingCache(limits.cache_mb * 2**20)
        self.repeated = 0

    def prepare(self, request: SegmentRequest) -> Job:
        """Read the picture, and make the inputs of the model. Raises ServiceError if the picture, a sentence or a
        setting is refused."""
        start, config = time.perf_counter(), self.model.config
        with invalid_input():
            pruning = change_pruning(config.pruning_config, request.pruning)
            settings = self.model.model.settings(pruning)
            picture = read_picture(request.image, self.limits.max_pixels)
            inputs = self.processor.segmentation_inputs(images=[picture], expressions=[request.sentences])
        tiles, rows, columns = self.processor.visual_token_grids(inputs)[0]
        return Job(
            inputs=dict(inputs),
            pruning=pruning,
            key=digest_of(picture),
            sentences=request.sentences,
            size=picture.size,
            grid=(tiles * rows, columns),
            prepared_ms=milliseconds_since(start),
            shared_settings=_shared_settings(pruning, settings),
            may_share=self._may_share(settings),
        )

    def can_join(self, job: Job, others: Sequence[Job]) -> bool:
        """Whether a job may share a call with others that share one."""
        first, pixels = others[0], sum(other.mask_pixels for other in others)
        are_alike = job.may_share and first.may_share and job.shared_settings == first.shared_settings
        return are_alike and pixels + job.mask_pixels <= MAX_JOINED_PIXELS

    def _may_share(self, settings: PruningSettings) -> bool:
        # Inside the language model a tie of the last bits would keep another token, which no margin of logits shows.
        is_inside = settings.inside_language_model is not None
        is_bounded = self.model.dtype == torch.float32 and self.model.device.type == "cpu"
        # SAM 2 chooses between masks, or blanks one, by scores; their ties and signs no margin of logits shows either.
        is_bounded = is_bounded and isinstance(self.model.mask_decoder, SamMaskDecoder)
        # Text is generated one token after the other, each in a call of its own.
        return not self.model.answers_in_text and (not self.exact or (is_bounded and not is_inside))

    @torch.inference_mode()
    def answer(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """Answers in the order of jobs that may share a call; what one of them raises is its answer."""
        answers: list[Any] = [None] * len(jobs)
        selected: list[_Selected] = []
        for place, job in enumerate(jobs):
            try:
                selected.append(self._select(place, job))
            except Exception as error:
                answers[place] = _released(error)
        for part in parts_of_a_call(selected):
            for each, answer in zip(part, self._answer_together(part), strict=True):
                answers[each.place] = answer
        return answers

    def _answer_together(self, part: list[_Selected]) -> list[Answer | Exception]:
        if len(part) < 2:
            return [self._answer_alone(each) for each in part]
        together: list[Answer | None] = [None] * len(part)
        # Of one of them, or too much memory; each is to get its own, once the error no longer holds what was computed.
        with suppress(Exception):
            together = self._call(part)
        self.repeated += sum(answer is None for answer in together)
        return [answer or self._answer_alone(each) for each, answer in zip(part, together, strict=True)]

    def _answer_alone(self, selected: _Selected) -> Answer | Exception:
        try:
            with invalid_input():
                [answer] = self._call([selected])
                assert answer is not None
                return answer
        except Exception as error:
            return _released(error)

    def _select(self, place: int, job: Job) -> _Selected:
        """Encode, if need be, and select: always for one picture, so that it never depends on other requests."""
        start, misses, model = time.perf_counter(), self.cache.misses, self.model
        settings = model.model.settings(job.pruning)
        inputs = to_model(job.inputs, model)
        with invalid_input():
            encoding = self.cache.get(job.key, lambda: self._encode(inputs))
            features = model.select(encoding.media, inputs, Guidance.of(inputs), settings)
        self.cache.measure(job.key)
        was_known = self.cache.misses == misses
        return _Selected(place, job, features, encoding.for_masks, milliseconds_since(start), was_known)

    def _encode(self, inputs: dict[str, Any]) -> _Encoding:
        media = self.model.encode(inputs)
        media.finish()
        return _Encoding(media, self.model.encode_for_masks(inputs))

    def _call(self, part: list[_Selected]) -> list[Answer | None]:
        """One call of the model; `None` for who must be answered alone."""
        start, first = time.perf_counter(), part[0]
        inputs = [_without_pixels(each.job.inputs, self.model) for each in part]
        if len(part) == 1:
            joined, features, for_masks = inputs[0], first.features, first.for_masks
        else:
            rows = [by_dialogue(each.features, on_host(own)["shown"]) for each, own in zip(part, inputs, strict=True)]
            joined = join_inputs(inputs, padding_id(self.processor.tokenizer))
            features, for_masks = join_features(rows), join_mask_features([each.for_masks for each in part])
        output = self.model.segment(
            **to_model(joined, self.model),
            mm_encoder_outputs={self.model.mask_modality: features},
            mask_features=for_masks,
            pruning_config=first.job.pruning,
        ).require_finite()
        answers: list[Answer | None] = []
        took, row = milliseconds_since(start), 0
        for place, each in enumerate(part):
            rows_here = slice(row, row + len(each.job.inputs["input_ids"]))
            row = rows_here.stop
            if len(part) > 1 and self.exact and is_near_the_border(output.mask_logits[place]):
                answers.append(None)
                continue
            kept = output.retained_indices
            everything = [list(range(each.job.grid[0] * each.job.grid[1]))] * (rows_here.stop - rows_here.start)
            answers.append(
                Answer(
                    masks=output.masks[place].cpu().numpy(),
                    scores=output.scores[place].tolist(),
                    kept=everything if kept is None else [tokens.tolist() for tokens in kept[rows_here]],
                    times={"prepare": each.job.prepared_ms, "encode": each.encode_ms, "model": took},
                    batch_size=len(part),
                    was_known=each.was_known,
                    texts=output.answers[place] if self.model.answers_in_text else None,
                )
            )
        return answers


def parts_of_a_call(selected: Iterable[_Selected]) -> list[list[_Selected]]:
    """What is answered together: rows of a call are padded to the longest, so they are at most twice as long as the
    shortest. A picture that is smaller than the budget keeps all tokens, which is another kind of features."""
    parts: list[list[_Selected]] = []
    for each in sorted(selected, key=lambda each: (each.is_pruned, each.length)):
        first = parts[-1][0] if parts else None
        if first is not None and each.is_pruned == first.is_pruned and each.length <= 2 * first.length:
            parts[-1].append(each)
        else:
            parts.append([each])
    return parts


def is_near_the_border(mask_logits: torch.Tensor) -> bool:
    """Whether a pixel of masks in float32 could change sides with the order of sums, see [`MARGIN_UNITS`]."""
    sizes = mask_logits.abs()
    return bool((sizes <= MARGIN_UNITS * torch.finfo(torch.float32).eps * sizes.max()).any())


def milliseconds_since(start: float) -> float:
    """Since a time of `time.perf_counter`."""
    return (time.perf_counter() - start) * 1000


def _released(error: Exception) -> Exception:
    """Without the tensors of the frames that it came through: whoever waits for it would keep their memory."""
    for each in (error, error.__cause__):
        clear_frames(getattr(each, "__traceback__", None))
    return error


def _shared_settings(pruning: PruningConfig, settings: PruningSettings) -> str:
    """Tokens are selected for each job alone. After this, only the positions that they get matter; with a method
    inside the language model, everything does."""
    if settings.inside_language_model is None:
        return "original" if settings.keeps_positions else "compact"
    return json.dumps({**pruning.to_dict(), "presets": None}, sort_keys=True, default=str)


def _without_pixels(inputs: dict[str, Any], model: Any) -> dict[str, Any]:
    pixels = (*model.model.pixels_of.values(), "mask_pixel_values", "guidance_pixel_values")
    return {name: value for name, value in inputs.items() if name not in pixels}
