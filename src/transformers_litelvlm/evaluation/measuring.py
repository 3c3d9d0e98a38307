"""Records of a batch of images or videos, and what they cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers_litelvlm.data.samples import ImageSample, UnreadableImageError, VideoSample
from transformers_litelvlm.data.splits import count_samples
from transformers_litelvlm.evaluation.arguments import EvaluationArguments
from transformers_litelvlm.evaluation.measuring_images import count_image_as_wrong, measure_image
from transformers_litelvlm.evaluation.measuring_videos import count_video_as_wrong, measure_video
from transformers_litelvlm.evaluation.runs import Run
from transformers_litelvlm.evaluation.sweeping import RunCost, SweepSegmenter
from transformers_litelvlm.evaluation.tasks import Measured, Task


@dataclass
class BatchRecords:
    """What a batch is saved as; costs are summed over images or videos.

    Args:
        rows: the records.
        masks: predictions for a server, see [`Measured`].
        milliseconds: by run and stage.
        num_kept: by run, visual tokens per dialogue.
        peak_memory: by run, the most bytes on the device.
        num_samples: that were segmented.
        counts: samples, objects and sentences that were read.
    """

    rows: list[list[Any]] = field(default_factory=list)
    masks: list[list[Any]] = field(default_factory=list)
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    num_kept: dict[str, float] = field(default_factory=dict)
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    num_samples: int = 0
    counts: dict[str, int | None] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        """Add an image or video."""
        self.rows += measured.rows
        self.masks += measured.masks
        self.num_samples += bool(measured.costs)
        for run_id, cost in measured.costs.items():
            self._add_cost(run_id, cost)

    def _add_cost(self, run_id: str, cost: RunCost) -> None:
        stages = self.milliseconds.setdefault(run_id, {})
        for stage, milliseconds in cost.times.items():
            stages[stage] = stages.get(stage, 0.0) + milliseconds
        self.num_kept[run_id] = self.num_kept.get(run_id, 0.0) + sum(cost.num_kept) / len(cost.num_kept)
        peaks = [peak for peak in (self.peak_memory.get(run_id), cost.peak_memory) if peak is not None]
        self.peak_memory[run_id] = max(peaks, default=None)


def measure_batch(
    samples: list[tuple[int, ImageSample | VideoSample]],
    segmenter: SweepSegmenter,
    runs: list[Run],
    args: EvaluationArguments,
    task: Task,
) -> BatchRecords:
    """Segment a batch under every run.

    Args:
        samples: images or videos with their numbers in the split.
        segmenter, runs, args, task: the sweep.

    Raises:
        UnreadableImageError: a picture is missing or damaged, and `on_unreadable` is `"stop"`.
    """
    batch = BatchRecords(counts=asdict(count_samples(sample for _, sample in samples)))
    for index, sample in samples:
        try:
            if isinstance(sample, ImageSample):
                measured = measure_image(index, sample, segmenter, runs, args.protocol)
            else:
                measured = measure_video(sample, segmenter, runs, args.protocol, task)
        except UnreadableImageError:
            if args.on_unreadable == "stop":
                raise
            if isinstance(sample, ImageSample):
                measured = count_image_as_wrong(index, sample, segmenter, runs, args.protocol)
            else:
                measured = count_video_as_wrong(sample, runs, args.protocol, task)
        batch.add(measured)
    return batch
