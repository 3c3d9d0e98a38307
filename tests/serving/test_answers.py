"""What is answered: the masks of the model, whatever else the server does at the time."""

import asyncio
import random

import numpy as np
import pytest

from tests.support.http_clients import alone, as_text, client_of, form, masks_of
from transformers_litelvlm.data.masks import box_around
from transformers_litelvlm.serving.answers import SegmentAnswer


SETTINGS = [
    {},
    {"budget": 48},
    {"preset": "fast"},
    {"method": "random", "budget": 20, "method_options": {"seed": 3}},
    {"method": "none"},
    {"budget": 30, "token_order": "reference", "position_ids": "original"},
    {"method": "fastv", "budget": 40, "method_options": {"layer": 1}},
    {"method": "tome", "retention_ratio": 0.5},
    {"budget": 40, "then": {"method": "fastv", "budget": 20, "method_options": {"layer": 1}}},
]


def check_answer(answer, expected, picture, sentences):
    assert SegmentAnswer.model_validate(answer)
    np.testing.assert_array_equal(masks_of(answer), expected.masks[0].numpy())
    kept = [list(range(144))] if expected.retained_indices is None else expected.retained_indices.tolist()
    assert answer["retained_indices"] == kept and answer["token_grid"] == [12, 12]
    assert (answer["width"], answer["height"]) == picture.size
    assert [each["sentence"] for each in answer["masks"]] == sentences
    for each, score, mask in zip(answer["masks"], expected.scores[0], expected.masks[0].numpy(), strict=True):
        assert each["score"] == pytest.approx(float(score), abs=1e-5)
        assert each["area"] == mask.sum() and each["box"] == (list(box_around(mask)) if mask.any() else None)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_form_and_json_give_the_masks_of_the_model(bundled, start_service, scenes, settings):
    picture, sentences = scenes[0]
    expected, service = alone(*bundled, picture, sentences, settings), start_service()

    async def ask():
        async with client_of(service) as client:
            body = {"image": as_text(picture), "sentences": sentences, **settings}
            return [
                await client.post("/v1/segment", **form(picture, sentences, **settings)),
                await client.post("/v1/segment", json=body),
            ]

    for answer in asyncio.run(ask()):
        assert answer.status_code == 200, answer.text
        check_answer(answer.json(), expected, picture, sentences)
        then = settings.get("then", {})  # both methods are named
        assert {name: answer.json().get("then", {})[name] for name in then} == then
        assert answer.headers["x-request-id"] == answer.json()["id"]
        assert set(answer.json()["timings_ms"]) == {"read", "prepare", "queue", "encode", "model", "write", "total"}


def ask_many(bundled, start_service, scenes, num_requests, **limits):
    """Many requests of 16 clients, each answer compared with that of the model alone; the sizes of batches."""
    rng, service = random.Random(0), start_service(max_queue=64, **limits)
    jobs = []
    for _ in range(num_requests):
        picture, sentences = rng.choice(scenes)
        jobs.append((picture, rng.sample(sentences, rng.randint(1, len(sentences))), rng.choice(SETTINGS)))

    async def ask():
        async with client_of(service) as client:
            left = iter(enumerate(jobs))
            answers = {}

            async def one():
                for place, (picture, sentences, settings) in left:
                    answers[place] = await client.post("/v1/segment", **form(picture, sentences, **settings))

            await asyncio.gather(*(one() for _ in range(16)))
            return answers

    answers = asyncio.run(ask())
    for place, (picture, sentences, settings) in enumerate(jobs):
        assert answers[place].status_code == 200, answers[place].text
        check_answer(answers[place].json(), alone(*bundled, picture, sentences, settings), picture, sentences)
    return [answers[place].json()["batch_size"] for place in range(num_requests)], service


def test_requests_at_the_same_time_get_the_answers_of_requests_alone(bundled, start_service, scenes):
    sizes, service = ask_many(bundled, start_service, scenes, 48, batch_wait_ms=5)
    assert max(sizes) > 1 and service.segmenter.cache.hits > 0


@pytest.mark.slow
def test_200_requests_of_16_clients_get_the_answers_of_requests_alone(bundled, start_service, scenes):
    sizes, _ = ask_many(bundled, start_service, scenes, 200, batch_wait_ms=5, cache_mb=8)
    assert max(sizes) > 2


def test_box_of_a_mask():
    mask = np.zeros((5, 7), dtype=bool)
    assert box_around(mask) is None
    mask[1:3, 2] = mask[4, 6] = True
    assert box_around(mask) == (2, 1, 7, 5)
