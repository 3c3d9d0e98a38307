"""Pictures are encoded once: what runs for a second request, and what leaves."""

import asyncio

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.http_clients import alone, client_of, form, masks_of
from transformers_litelvlm.serving.cache import EncodingCache, tensor_bytes
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


class Counting(Segmenter):
    """Counts what runs: layers of the vision tower, and SAM's image encoder."""

    def __init__(self, model, processor, limits):
        super().__init__(model, processor, limits)
        self.ran = {"tower": 0, "sam": 0, "language_model": 0}
        parts = {
            "tower": model.model.vision_tower.encoder.layers[0],
            "sam": model.mask_model.vision_encoder,
            "language_model": model.model.language_model.layers[0],
        }
        self.hooks = [part.register_forward_hook(self.counter(name)) for name, part in parts.items()]

    def counter(self, name):
        def count(*args):
            self.ran[name] += 1

        return count


@pytest.fixture
def counting(bundled):
    segmenter = Counting(*bundled, Limits())
    yield segmenter
    for hook in segmenter.hooks:
        hook.remove()


def ask(service, *requests):
    """The bodies of the answers, one after the other."""

    async def all_of_them():
        async with client_of(service) as client:
            return [(await client.post("/v1/segment", **request)).json() for request in requests]

    return asyncio.run(all_of_them())


def changed(picture):
    """With one pixel changed by one."""
    pixels = np.array(picture)
    pixels[3, 4, 1] ^= 1
    return Image.fromarray(pixels)


def test_a_second_sentence_costs_the_language_model_and_the_mask_decoder(bundled, counting, start_service, scenes):
    picture, (first, second, third) = scenes[1]
    service = start_service(counting)
    one, two, three = ask(
        service,
        form(picture, [first]),
        form(picture, [second]),
        form(picture, [third], method="vispruner", budget=20),
    )
    assert counting.ran == {"tower": 1, "sam": 1, "language_model": 3}
    assert [each["cached"] for each in (one, two, three)] == [False, True, True]
    for answer, sentence, settings in (
        (one, first, {}),
        (two, second, {}),
        (three, third, {"method": "vispruner", "budget": 20}),
    ):
        expected = alone(*bundled, picture, [sentence], settings)
        np.testing.assert_array_equal(masks_of(answer), expected.masks[0].numpy())


def test_a_changed_picture_is_encoded(counting, start_service, scenes):
    picture, sentences = scenes[1]
    again = Image.new("RGB", picture.size)
    again.paste(picture)
    turned = picture.transpose(Image.Transpose.TRANSPOSE)  # the same pixels in another order
    service = start_service(counting)
    requests = [form(each, sentences) for each in (picture, again, changed(picture), turned)]
    assert [answer["cached"] for answer in ask(service, *requests)] == [False, True, False, False]
    assert counting.ran["tower"] == counting.ran["sam"] == 3


def test_the_size_is_part_of_what_a_picture_is(counting, start_service):
    """One colour has the same pixels in any shape."""
    requests = [form(Image.new("RGB", size, "red"), ["the star"]) for size in ((40, 30), (30, 40))]
    wide, high = ask(start_service(counting), *requests)
    assert not high["cached"] and wide["masks"][0]["mask"]["size"] == [30, 40]


def test_a_method_that_merges_inside_the_tower_runs_its_layers_again(counting, start_service, scenes):
    """Its states depend on the setting, so they are no part of what is kept; those of SAM are."""
    picture, sentences = scenes[1]
    before, during = ask(
        start_service(counting),
        form(picture, sentences),
        form(picture, sentences, method="tome", retention_ratio=0.5),
    )
    assert (before["cached"], during["cached"]) == (False, True) and counting.ran["sam"] == 1


def test_the_least_recently_used_picture_leaves(bundled, start_service, scenes):
    pictures = [changed(scenes[1][0]), scenes[3][0], scenes[5][0]]
    probe = start_service()
    ask(probe, form(pictures[0], ["the star"]))
    size = probe.segmenter.cache.num_bytes
    service = start_service()
    service.segmenter.cache.max_bytes = int(2.5 * size)
    order = [0, 1, 0, 2, 0, 1]  # when the third comes, the second one was not used for longest
    answers = ask(service, *(form(pictures[index], ["the star"]) for index in order))
    assert [answer["cached"] for answer in answers] == [False, False, True, False, True, False]
    cache = service.segmenter.cache
    assert len(cache) == 2 and cache.evictions == 2 and cache.num_bytes <= cache.max_bytes
    assert (cache.hits, cache.misses) == (2, 4)


def test_nothing_is_kept_without_room(bundled, start_service, scenes):
    picture, sentences = scenes[1]
    service = start_service(cache_mb=0)
    one, two = ask(service, form(picture, sentences), form(picture, sentences))
    assert not two["cached"] and len(service.segmenter.cache) == 0 and service.segmenter.cache.num_bytes == 0
    np.testing.assert_array_equal(masks_of(one), masks_of(two))


def test_an_entry_that_grows_is_measured_again():
    cache = EncodingCache(max_bytes=1000)
    growing = cache.get("growing", lambda: {"states": [torch.zeros(100)]})
    cache.get("other", lambda: torch.zeros(50))
    assert cache.num_bytes == 600
    growing["states"].append(torch.zeros(100))
    cache.get("growing", lambda: None)
    cache.measure("growing")
    assert len(cache) == 2 and cache.num_bytes == 1000
    growing["states"].append(torch.zeros(50))  # now the other one must leave
    cache.get("growing", lambda: None)
    cache.measure("growing")
    assert len(cache) == 1 and cache.num_bytes == 1000


def test_tensor_bytes():
    """Views share memory; weights of a model are not of the picture; what refers to itself ends."""

    class Encoded:
        def __init__(self):
            self.model = nn.Linear(100, 100)
            self.states = torch.zeros(10, 4)
            self.rows = [self.states[3:], {"half": torch.zeros(6, dtype=torch.float16)}]
            self.me = self

    assert tensor_bytes(Encoded()) == 160 + 12
