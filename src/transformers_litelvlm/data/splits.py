"""A split of a data set as samples, read one by one, and its size compared with the official one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from transformers_litelvlm.data.samples import ImageSample, UnreadableImageError, VideoSample


@dataclass(frozen=True)
class SplitCounts:
    """How much a split holds; `None` if that is not known.

    Args:
        samples: images, or videos.
        objects: objects referred to ("refs" in the RefCOCO family).
        sentences: sentences, or expressions.
    """

    samples: int | None = None
    objects: int | None = None
    sentences: int | None = None

    def agrees_with(self, other: SplitCounts) -> bool:
        """Whether all numbers known to both are equal."""
        pairs = zip(vars(self).values(), vars(other).values())
        return all(mine == theirs for mine, theirs in pairs if mine is not None and theirs is not None)

    def __str__(self) -> str:
        return ", ".join(f"{value} {name}" for name, value in vars(self).items() if value is not None) or "unknown"


def count_samples(samples: Iterable[ImageSample | VideoSample]) -> SplitCounts:
    """Counts the samples, objects and sentences of a split, or of any samples; no pixel is decoded. `objects` is
    `None` if the source does not name them, and for videos."""
    num_samples = sentences = 0
    objects: set[tuple[str, str]] | None = set()
    for sample in samples:
        num_samples += 1
        if isinstance(sample, VideoSample):
            sentences += len(sample.expressions)
            objects = None
            continue
        sentences += len(sample.sentences)
        if any(entry.object_id is None for entry in sample.sentences):
            objects = None
        elif objects is not None:
            objects.update((sample.image_id, entry.object_id) for entry in sample.sentences)
    return SplitCounts(num_samples, None if objects is None else len(objects), sentences)


@dataclass(frozen=True)
class CountReport:
    """What was counted beside what the split officially has.

    Args:
        name: data set and split.
        counted: what was read.
        official: published sizes, one per version of the data set; empty if none is known.
    """

    name: str
    counted: SplitCounts
    official: tuple[SplitCounts, ...]

    @property
    def matches(self) -> bool | None:
        """Whether the split is complete; `None` if no official size is known."""
        return None if self.version is None else self.counted.agrees_with(self.version)

    @property
    def version(self) -> SplitCounts | None:
        """The published size that agrees with what was counted, else the first; `None` if none is known."""
        agreeing = [entry for entry in self.official if self.counted.agrees_with(entry)]
        return next(iter((*agreeing, *self.official)), None)

    def __str__(self) -> str:
        if self.matches is None:
            return f"{self.name}: {self.counted}; no official size is known"
        verdict = "the official size" if self.matches else "NOT the official size, which is"
        tail = "" if self.matches else " " + " or ".join(map(str, self.official))
        return f"{self.name}: {self.counted}; {verdict}{tail}"

    def require(self) -> None:
        """Raises a `ValueError` unless the split is known to be complete."""
        if not self.matches:
            raise ValueError(f"The split is not complete. {self}.")


@dataclass(frozen=True, eq=False)
class ReferringSplit:
    """A split of a data set: iterate it, or take samples by number if the source is not streamed.

    Args:
        name: name of the data set, as in `load_split`.
        split: name of the split.
        source: where it was read from: a folder, a file or a Hub id.
        rows: the rows of the source, a sequence or (streamed) an iterable.
        read: makes a sample of a row and its number.
        official: published sizes.
        notes: what to know before comparing numbers; belongs into every report of results.
    """

    name: str
    split: str
    source: str
    rows: Any = field(repr=False)
    read: Callable[[int, Any], Any] = field(repr=False)
    official: tuple[SplitCounts, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def is_streamed(self) -> bool:
        """Whether samples come one after the other only, their number unknown before the last."""
        return not hasattr(self.rows, "__len__")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ImageSample | VideoSample:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be between 0 and {len(self) - 1}, got {index}.")
        return self._read(index, self.rows[index])

    def __iter__(self) -> Iterator[ImageSample | VideoSample]:
        rows, index = iter(self.rows), 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:  # pyarrow, fsspec and huggingface_hub all have their own
                raise ValueError(f"Row {index} of {self.source} cannot be read: {error}") from error
            yield self._read(index, row)
            index += 1
        if index == 0:
            raise ValueError(f"{self.source} has nothing of split {self.split!r}.")

    def batches(
        self, size: int, limit: int | None = None, is_wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[tuple[int, list[tuple[int, ImageSample | VideoSample]] | None]]:
        """The samples in portions, the same ones however they are read, whoever reads them.

        Args:
            size: samples in each.
            limit: only the first samples.
            is_wanted: given the number of a portion; the samples of others are not read if the source is not
                streamed.

        Yields:
            Number of the portion, and its samples with their numbers; `None` in their place if it is not wanted.
        """
        if self.is_streamed:
            samples = enumerate(itertools.islice(self, limit))
            for number in itertools.count():
                batch = list(itertools.islice(samples, size))
                if not batch:
                    return
                yield number, batch if is_wanted(number) else None
        total = len(self) if limit is None else min(limit, len(self))
        for number, start in enumerate(range(0, total, size)):
            indices = range(start, min(start + size, total))
            yield number, [(index, self[index]) for index in indices] if is_wanted(number) else None

    def _read(self, index: int, row: Any) -> ImageSample | VideoSample:
        try:
            return self.read(index, row)
        except UnreadableImageError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"Row {index} of {self.source} is not as `{self.name}` has it: {type(error).__name__}: {error}"
            ) from error

    def check_counts(self) -> CountReport:
        """Read the whole split, without decoding pixels, and compare its size with the official one. Print what is
        returned; `require()` makes a difference an error."""
        return CountReport(f"{self.name} {self.split}", count_samples(self), self.official)
