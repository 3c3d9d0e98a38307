"""The life of a request between HTTP and the model: admitted, read, prepared, queued, answered, or given up."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from transformers_litelvlm.serving.answers import describe
from transformers_litelvlm.serving.batching import Batcher
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.metrics import Metrics
from transformers_litelvlm.serving.requests import SegmentRequest, read_request
from transformers_litelvlm.serving.segmenter import Answer, Job, Segmenter, milliseconds_since


_T = TypeVar("_T")
# Threads that read pictures and write masks beside the one of the model.
HELPERS = 4


class Service:
    """Requests for masks, answered by one model; with `allow_urls`, their pictures may be addresses, which are
    fetched.

    Attributes:
        metrics: what happened.
        is_stopping: whether new requests are refused.
    """

    def __init__(self, segmenter: Segmenter, limits: Limits, allow_urls: bool = False) -> None:
        self.segmenter, self.limits, self.allow_urls = segmenter, limits, allow_urls
        self.metrics, self.is_stopping = Metrics(), False
        self._inside = 0
        self._recent_seconds = 1.0
        self._helpers = ThreadPoolExecutor(HELPERS, thread_name_prefix="litelvlm-helper")
        self._batcher = Batcher(
            segmenter.answer, segmenter.can_join, limits.batch_wait_ms / 1000, max_batch=limits.max_batch
        )
        cache = segmenter.cache
        self.metrics.watch("waiting", "Requests in the queue of the model.", lambda: len(self._batcher))
        self.metrics.watch("inside", "Requests that are read, wait, or are answered.", lambda: self._inside)
        self.metrics.watch("cache_bytes", "Bytes of encoded pictures.", lambda: cache.num_bytes)
        self.metrics.watch("cache_hits", "Requests about a picture that was encoded before.", lambda: cache.hits)
        self.metrics.watch("cache_misses", "Pictures that were encoded.", lambda: cache.misses)
        self.metrics.watch("cache_evictions", "Encoded pictures that were dropped.", lambda: cache.evictions)
        self.metrics.watch("repeated", "Requests answered again, alone.", lambda: segmenter.repeated)

    async def segment(self, request: Request, facts: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request whose body was not read, as [`SegmentAnswer`] without `id`. `facts`, for the log, is
        filled in.

        Raises:
            ServiceError: see [`~serving.errors.CODES`].
            ClientDisconnect: the client went away. Its job left the queue.
        """
        start, times = time.perf_counter(), {}
        with self.admitted():
            asked = await read_request(request, self.limits, self.allow_urls)
            times["read"] = milliseconds_since(start)
            job, answer = await self.answer(asked, request, facts, times)
            written = time.perf_counter()
            described = await self._help(lambda: describe(job, answer))
            times["write"] = milliseconds_since(written)
        times["total"] = milliseconds_since(start)
        self._count(answer, times)
        return {**described, "timings_ms": {name: round(value, 3) for name, value in times.items()}}

    async def answer(
        self, asked: SegmentRequest, request: Request, facts: dict[str, Any], times: dict[str, float]
    ) -> tuple[Job, Answer]:
        """The masks for what was asked, inside [`admitted`]. `facts`, for the log, and `times`, milliseconds by stage,
        are filled in.

        Args:
            request: whose body was read.

        Raises:
            ServiceError, ClientDisconnect: as [`segment`] does.
        """
        facts["sentences"] = len(asked.sentences)
        job = await self._help(lambda: self.segmenter.prepare(asked))
        queued = time.perf_counter()
        answer: Answer = await unless_gone(request, asyncio.wrap_future(self._batcher.submit(job)))
        times |= answer.times
        times["queue"] = max(milliseconds_since(queued) - answer.times["encode"] - answer.times["model"], 0.0)
        facts["kept_tokens"] = [len(kept) for kept in answer.kept]
        return job, answer

    def check_health(self) -> None:
        """Raises ServiceError if requests for masks would not be answered."""
        if self.is_stopping:
            raise ServiceError("stopping", "The server is stopping.")
        if not self._batcher.is_working:
            raise ServiceError("internal", "The thread of the model has ended.")

    def begin_stop(self) -> None:
        """Refuse new requests; those inside are finished."""
        self.is_stopping = True

    def close(self) -> None:
        """Wait for what is inside, and end the threads."""
        self.begin_stop()
        self._batcher.stop()
        self._helpers.shutdown()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Room for one request; before its body is read, so that bodies in memory have a bound."""
        if self.is_stopping:
            raise ServiceError("stopping", "The server is stopping: ask another one.", {"Connection": "close"})
        if self._inside >= self.limits.max_queue:
            seconds = math.ceil(self._recent_seconds)
            raise ServiceError("queue_full", "The queue is full: try again later.", {"Retry-After": str(seconds)})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def _help(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work)

    def _count(self, answer: Answer, times: dict[str, float]) -> None:
        seconds = times["total"] / 1000
        self._recent_seconds += 0.1 * (seconds - self._recent_seconds)
        self.metrics.seconds.observe(seconds)
        self.metrics.batches.observe(answer.batch_size)
        for stage, took in times.items():
            if stage != "total":
                self.metrics.stages.labels(stage).observe(took / 1000)


async def unless_gone(request: Request, future: asyncio.Future) -> Any:
    """The result of a future, which is cancelled if the client goes away first: then it raises ClientDisconnect."""
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise ClientDisconnect
        return future.result()
    finally:
        gone.cancel()
        future.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
