"""What the page computes: the masks of a picture with and without pruning, and how far they agree."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from transformers_litelvlm.configuration_pruning import DEFAULT_PRESETS, PruningConfig
from transformers_litelvlm.evaluation.metrics import sentence_ious
from transformers_litelvlm.models.pruned_config import change_pruning
from transformers_litelvlm.pruning.registry import get_pruner, list_pruners
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.pictures import read_picture
from transformers_litelvlm.serving.requests import SegmentRequest, checked_sentences
from transformers_litelvlm.serving.segmenter import Answer, Job, Segmenter
from transformers_litelvlm.visualization import region_of
from transformers_litelvlm.visualization.tokens import Region


@dataclass(frozen=True)
class Comparison:
    """A picture segmented twice.

    Attributes:
        model: what the checkpoint is called.
        picture: RGB, upright.
        region: what the visual tokens cover, (left, top, right, bottom) in pixels.
        grid, places: of the visual tokens on the picture, see `processor.grid_on_picture`.
        job: with the sentences and the setting.
        pruned, unpruned: the answers; the same object if the setting prunes nothing.
        ious: of the masks of each sentence with and without pruning; 1 for two empty masks.
    """

    model: str
    picture: Image.Image
    region: Region
    grid: tuple[int, int]
    places: np.ndarray | None
    job: Job
    pruned: Answer
    unpruned: Answer
    ious: list[float]

    @property
    def is_pruned(self) -> bool:
        return self.pruned is not self.unpruned

    @property
    def num_tokens(self) -> int:
        """Visual tokens before pruning."""
        return self.job.grid[0] * self.job.grid[1]


class Comparer:
    """Compares with one model, one comparison at a time.

    Args:
        segmenter: the model, its limits, and its cache: a second setting on a picture encodes nothing again.
        model: what the checkpoint is called.
    """

    def __init__(self, segmenter: Segmenter, model: str) -> None:
        self.segmenter, self.model, self.limits = segmenter, model, segmenter.limits
        self._lock = threading.Lock()

    @property
    def presets(self) -> list[str]:
        """Names of the settings that the checkpoint and the package have."""
        return sorted(DEFAULT_PRESETS | self._config.pruning_config.presets)

    @property
    def methods(self) -> list[str]:
        """Names of the pruning methods that are defined for the model."""
        return [name for name in list_pruners() if name != "none" and self._is_defined(name)]

    def count_tokens(self, file: str) -> int:
        """Visual tokens of a picture. Raises ServiceError if it is refused."""
        rows, columns = self.segmenter.prepare(SegmentRequest(self._read(file), ["a thing"])).grid
        return rows * columns

    def setting(self, preset: str | None, method: str | None = None, budget: int | None = None) -> dict[str, Any]:
        """Keywords of `change_pruning`. A method of its own has its default options, so only its budget counts."""
        named = {"pruning_preset": preset, "pruning_method": method, "pruning_budget": budget}
        return {name: value for name, value in named.items() if value is not None}

    def budget_of(self, preset: str | None, num_tokens: int) -> int:
        """Visual tokens that a preset keeps, or the setting of the model if it is `None`."""
        pruning = change_pruning(self._config.pruning_config, self.setting(preset))
        return pruning.resolve(num_tokens) or num_tokens

    def compare(
        self,
        file: str | None,
        text: str,
        preset: str | None = None,
        method: str | None = None,
        budget: int | None = None,
    ) -> Comparison:
        """Segment a picture with a setting, and without pruning.

        Args:
            file: path of the picture.
            text: sentences, one a line; empty lines do not count.
            preset: the setting that is changed by `method` and `budget`; `None` is that of the model.
            method: `None` is that of the preset.
            budget: visual tokens to keep; `None` is that of the preset.

        Raises:
            ServiceError: the picture, a sentence or the setting is refused. The message says why.
        """
        content, sentences = self._read(file), self._sentences(text)
        job = self.segmenter.prepare(SegmentRequest(content, sentences, self.setting(preset, method, budget)))
        off = replace(job, pruning=job.pruning.replace(budget=None, retention_ratio=None))
        with self._lock:
            unpruned = self._answer(off)
            is_on = job.pruning.resolve(job.grid[0] * job.grid[1]) is not None
            pruned = self._answer(job) if is_on else unpruned
        picture, processor = read_picture(content, self.limits.max_pixels), self.segmenter.processor
        grid, places = processor.grid_on_picture(job.inputs, picture.size) or (job.grid, None)
        return Comparison(
            model=self.model,
            picture=picture,
            region=region_of(processor, picture.size, grid),
            grid=grid,
            places=places,
            job=job,
            pruned=pruned,
            unpruned=unpruned,
            ious=ious(pruned.masks, unpruned.masks),
        )

    @property
    def _config(self) -> Any:
        return self.segmenter.model.config

    def _is_defined(self, method: str) -> bool:
        try:
            self._config.check_pruning(PruningConfig(method=method))
        except ValueError:
            return False
        return self._config.has_class_token or not get_pruner(method).needs_class_token

    def _answer(self, job: Job) -> Answer:
        [answer] = self.segmenter.answer([job])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _read(self, file: str | None) -> bytes:
        if not file:
            raise ServiceError("invalid", "Choose an image first.")
        if (size := os.path.getsize(file)) > self.limits.max_request_bytes:
            raise ServiceError(
                "too_large", f"The file has {size / 2**20:.1f} MB, more than {self.limits.max_request_mb} MB."
            )
        with open(file, "rb") as stream:
            return stream.read()

    def _sentences(self, text: str) -> list[str]:
        sentences = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
        if not sentences:
            raise ServiceError("invalid", 'Write what to find, one sentence a line, such as "the red circle".')
        if len(sentences) > self.limits.max_sentences:
            raise ServiceError(
                "invalid", f"There are {len(sentences)} sentences. Write at most {self.limits.max_sentences}."
            )
        return checked_sentences(sentences, self.limits)


def ious(masks: np.ndarray, others: np.ndarray) -> list[float]:
    """Intersection over union of each pair of masks, both (T, H, W) booleans; 1 for two empty masks."""
    return sentence_ious((masks & others).sum((1, 2)), (masks | others).sum((1, 2))).tolist()
