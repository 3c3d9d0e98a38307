"""A queue in front of the model: one thread answers, and puts requests together that wait at the same time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)  # each is itself
class Waiting:
    """A job in the queue. If its future was cancelled, it is never answered."""

    job: Any
    future: Future
    since: float  # `time.monotonic()` at which it came


class Batcher:
    """Answers jobs in the order in which they came, several at a time.

    The oldest job waits for others until its deadline, or until no more may join it. While the model works, jobs
    gather, so that under load nobody waits for the deadline.

    Args:
        answer: jobs to as many answers; an answer that is an exception is raised.
        can_join: whether a job may be answered with others, at most `max_batch` together.
        wait_seconds: that the oldest job waits.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], list[Any]],
        can_join: Callable[[Any, Sequence[Any]], bool],
        wait_seconds: float,
        max_batch: int,
    ) -> None:
        self._answer, self._can_join = answer, can_join
        self._wait_seconds, self._max_batch = wait_seconds, max_batch
        self._waiting: deque[Waiting] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._work, name="litelvlm-model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def is_working(self) -> bool:
        """Whether there is a thread that answers."""
        return self._thread.is_alive()

    def submit(self, job: Any) -> Future:
        """The answer to come. Cancelling the future takes the job out of the queue. Raises RuntimeError after
        [`stop`]."""
        waiting = Waiting(job, Future(), time.monotonic())
        with self._changed:
            if self._is_stopping:
                raise RuntimeError("The queue is closed.")
            self._waiting.append(waiting)
            self._changed.notify()
        waiting.future.add_done_callback(lambda future: self._forget(waiting) if future.cancelled() else None)
        return waiting.future

    def stop(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def _forget(self, waiting: Waiting) -> None:
        with self._changed:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._changed.notify()

    def _work(self) -> None:
        while batch := self._next():
            batch = [each for each in batch if each.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                answers = self._answer([each.job for each in batch])
            except BaseException as error:  # also what would end the thread, and with it all answers
                answers = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(batch)
            for each, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    each.future.set_exception(answer)
                else:
                    each.future.set_result(answer)

    def _next(self) -> list[Waiting]:
        """The jobs that are answered next, which leave the queue; none once everything is answered after [`stop`]."""
        with self._changed:
            while True:
                while not self._waiting and not self._is_stopping:
                    self._changed.wait()
                if not self._waiting:
                    return []
                batch = self._together()
                left = self._waiting[0].since + self._wait_seconds - time.monotonic()
                if len(batch) >= self._max_batch or left <= 0 or self._is_stopping:
                    for each in batch:
                        self._waiting.remove(each)
                    return batch
                self._changed.wait(min(left, threading.TIMEOUT_MAX))

    def _together(self) -> list[Waiting]:
        batch = [self._waiting[0]]
        for each in list(self._waiting)[1:]:
            if len(batch) < self._max_batch and self._can_join(each.job, [one.job for one in batch]):
                batch.append(each)
        return batch
