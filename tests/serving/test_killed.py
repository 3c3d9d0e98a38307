"""A server that is killed under load, and started again: its clients get errors, never other masks."""

import collections
import random
import signal
import threading

import numpy as np
import pytest
from huggingface_hub.utils import httpx

from tests.support.http_clients import alone, form, masks_of
from tests.support.serving import running_server


CLIENTS = 6
# Answers before the kill, and after the next start.
ANSWERS = 40


@pytest.mark.slow
def test_clients_of_a_killed_server_get_errors_and_no_wrong_masks(bundled, one_thread, scenes):
    settings = [{}, {"budget": 20}, {"method": "random", "budget": 30}, {"method": "none"}]
    asked = [(*scenes[place], settings[place % 4]) for place in range(8)]
    expected = [alone(*bundled, *each).masks[0].numpy() for each in asked]
    outcomes, changed, is_over = collections.Counter(), threading.Condition(), threading.Event()

    def count(outcome):
        with changed:
            outcomes[outcome] += 1
            changed.notify_all()

    def ask(address, seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=address, timeout=60) as client:
            while not is_over.is_set():
                place = rng.randrange(len(asked))
                picture, sentences, own = asked[place]
                try:
                    answer = client.post("/v1/segment", **form(picture, sentences, **own))
                    right = answer.status_code == 200 and np.array_equal(masks_of(answer.json()), expected[place])
                    count("right" if right else f"wrong {answer.status_code}")
                except httpx.TransportError:
                    count("refused")
                    is_over.wait(0.05)

    def wait_for(outcome, number):
        with changed:
            assert changed.wait_for(lambda: outcomes[outcome] >= number, 60), outcomes

    with running_server("--port", 0, OMP_NUM_THREADS="1") as (process, address):
        threads = [threading.Thread(target=ask, args=(address, seed)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            wait_for("right", ANSWERS)
            process.send_signal(signal.SIGKILL)
            wait_for("refused", CLIENTS)
            before = outcomes["right"]
            with running_server("--port", address.rpartition(":")[2], OMP_NUM_THREADS="1"):
                wait_for("right", before + ANSWERS)
                is_over.set()
                for thread in threads:
                    thread.join(60)
        finally:
            is_over.set()
    assert set(outcomes) == {"right", "refused"}, outcomes
