"""The queue in front of the model, without a model."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from transformers_litelvlm.serving.batching import Batcher


class Held:
    """Answers a job by its double, once it is let go; remembers which jobs were answered together."""

    def __init__(self):
        self.batches, self.go, self.began = [], threading.Event(), threading.Event()

    def __call__(self, jobs):
        self.batches.append(list(jobs))
        self.began.set()
        assert self.go.wait(20)
        return [ValueError(f"no {job}") if job < 0 else 2 * job for job in jobs]


def same_parity(job, others):
    return job % 2 == others[0] % 2


@pytest.fixture
def held():
    answer = Held()
    yield answer
    answer.go.set()


def test_what_gathers_while_the_model_works_is_answered_together(held):
    batcher = Batcher(held, same_parity, wait_seconds=0, max_batch=3)
    first = batcher.submit(1)
    assert held.began.wait(20)
    others = [batcher.submit(job) for job in (2, 3, 4, 6, 8, 5)]
    assert len(batcher) == 6
    held.go.set()
    assert [future.result(20) for future in (first, *others)] == [2, 4, 6, 8, 12, 16, 10]
    assert held.batches == [[1], [2, 4, 6], [3, 5], [8]]  # the oldest first, with what may join it
    batcher.stop()


def test_the_oldest_job_waits_for_others_until_its_deadline(held):
    held.go.set()
    batcher = Batcher(held, same_parity, wait_seconds=0.5, max_batch=3)
    start = time.monotonic()
    futures = [batcher.submit(2), batcher.submit(4)]
    assert [future.result(20) for future in futures] == [4, 8]
    assert held.batches == [[2, 4]] and time.monotonic() - start >= 0.5
    batcher.stop()


def test_nobody_waits_when_a_batch_is_full(held):
    held.go.set()
    batcher = Batcher(held, same_parity, wait_seconds=600, max_batch=3)
    futures = [batcher.submit(job) for job in (2, 4, 6)]
    assert [future.result(20) for future in futures] == [4, 8, 12]
    batcher.stop()


@pytest.mark.parametrize("seconds", [float("inf"), 1e12])
def test_a_deadline_beyond_what_python_can_wait_for(held, seconds):
    batcher = Batcher(held, same_parity, seconds, max_batch=2)
    first = batcher.submit(1)
    time.sleep(0.1)  # the thread waits for another one by now
    assert batcher.is_working
    held.go.set()
    second = batcher.submit(3)
    assert (first.result(20), second.result(20)) == (2, 6)
    batcher.stop()


def test_a_job_that_nobody_waits_for_leaves_the_queue(held):
    batcher = Batcher(held, same_parity, wait_seconds=0, max_batch=3)
    batcher.submit(1)
    assert held.began.wait(20)
    given_up, other = batcher.submit(3), batcher.submit(5)
    assert given_up.cancel() and len(batcher) == 1
    held.go.set()
    assert other.result(20) == 10 and held.batches == [[1], [5]]
    with pytest.raises(CancelledError):
        given_up.result()
    batcher.stop()


def test_an_error_is_of_one_job_and_the_thread_goes_on(held):
    held.go.set()
    batcher = Batcher(held, same_parity, wait_seconds=0.05, max_batch=3)
    bad, good = batcher.submit(-2), batcher.submit(4)
    with pytest.raises(ValueError, match="no -2"):
        bad.result(20)
    assert good.result(20) == 8
    broken = batcher.submit("no number")
    with pytest.raises(TypeError):
        broken.result(20)
    assert batcher.is_working and batcher.submit(6).result(20) == 12
    batcher.stop()


def test_what_would_end_a_thread_ends_one_call(held):
    def answer(jobs):
        if jobs == ["exit"]:
            raise SystemExit(3)
        return held(jobs)

    held.go.set()
    batcher = Batcher(answer, lambda *_: False, wait_seconds=0, max_batch=3)
    with pytest.raises(RuntimeError, match="SystemExit"):
        batcher.submit("exit").result(20)
    assert batcher.is_working and batcher.submit(6).result(20) == 12
    batcher.stop()


def test_stopping_answers_what_waits_and_takes_nothing_more(held):
    batcher = Batcher(held, same_parity, wait_seconds=60, max_batch=3)
    futures = [batcher.submit(job) for job in (1, 3, 2)]
    held.go.set()
    batcher.stop()
    assert [future.result(0) for future in futures] == [2, 6, 4] and not batcher.is_working
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)
