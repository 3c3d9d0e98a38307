"""Calls that requests share: what is joined, what is answered again alone, and another family."""

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.http_clients import alone, png
from tests.support.tiny_unipixel import tiny_checkpoint
from transformers_litelvlm.models.auto import load_for_segmentation
from transformers_litelvlm.serving import segmenter as module
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.requests import SETTINGS, SegmentRequest
from transformers_litelvlm.serving.segmenter import Segmenter, is_near_the_border


def request(picture, sentences, **settings):
    return SegmentRequest(png(picture), sentences, {SETTINGS[name]: value for name, value in settings.items()})


@pytest.fixture
def jobs(bundled, scenes, one_thread):
    """A segmenter, and three jobs with one setting about pictures of different sizes."""
    segmenter = Segmenter(*bundled, Limits())
    asked = [(scenes[0][0], scenes[0][1][:1]), (scenes[1][0], scenes[1][1]), (scenes[0][0], scenes[0][1][1:])]
    return segmenter, [segmenter.prepare(request(*each)) for each in asked]


def test_logits_near_zero():
    assert not is_near_the_border(torch.tensor([[8.0, -0.00003]]))
    assert is_near_the_border(torch.tensor([[8.0, -0.00002]]))  # 24 units of the last place of 8 are 2.3e-5
    assert is_near_the_border(torch.tensor([[0.0]]))


def test_a_request_with_a_pixel_near_the_border_is_answered_alone(jobs, monkeypatch):
    segmenter, three = jobs
    monkeypatch.setattr(module, "MARGIN_UNITS", 0)
    together = segmenter.answer(three)
    assert [answer.batch_size for answer in together] == [3, 3, 3] and segmenter.repeated == 0
    monkeypatch.setattr(module, "MARGIN_UNITS", 1e9)
    again = segmenter.answer(three)
    assert [answer.batch_size for answer in again] == [1, 1, 1] and segmenter.repeated == 3
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one.masks, other.masks)
        assert one.kept == other.kept


def test_who_may_share_a_call(bundled, scenes):
    segmenter, (picture, sentences) = Segmenter(*bundled, Limits()), scenes[0]
    job = segmenter.prepare(request(picture, sentences))

    def other(exact=True, **settings):
        own = Segmenter(*bundled, Limits(), exact)
        return own.prepare(request(picture, sentences, **settings))

    assert segmenter.can_join(other(), [job]) and segmenter.can_join(other(preset="balanced"), [job])
    for settings in ({"budget": 20}, {"method": "random", "budget": 9}, {"method": "none"}):
        assert segmenter.can_join(other(**settings), [job])
    assert not segmenter.can_join(other(position_ids="compact"), [job])
    inside = {"method": "fastv", "budget": 40, "method_options": {"layer": 1}}
    assert not segmenter.can_join(other(**inside), [other(**inside)])
    assert segmenter.can_join(other(exact=False, **inside), [other(exact=False, **inside)])
    assert not segmenter.can_join(other(exact=False, **{**inside, "budget": 41}), [other(exact=False, **inside)])


def test_different_settings_in_one_call(bundled, scenes, one_thread):
    """Each is selected by its own method and budget; pruned and unpruned ones are two calls."""
    segmenter = Segmenter(*bundled, Limits())
    settings = [{}, {"method": "random", "budget": 9}, {"method": "none"}, {"method": "vispruner", "budget": 50}]
    asked = [(*scenes[place], each) for place, each in enumerate(settings)]
    jobs = [segmenter.prepare(request(picture, sentences, **own)) for picture, sentences, own in asked]
    answers = segmenter.answer(jobs)
    assert (answers[1].batch_size, answers[2].batch_size) == (3, 1)
    for answer, (picture, sentences, own) in zip(answers, asked, strict=True):
        expected = alone(*bundled, picture, sentences, own)
        np.testing.assert_array_equal(answer.masks, expected.masks[0].numpy())
        kept = expected.retained_indices
        assert answer.kept == ([list(range(144))] if kept is None else kept.tolist())


def test_long_prompts_do_not_lengthen_short_ones(bundled, scenes, one_thread):
    """With 21 columns of text, those with 9 and 20 visual tokens share a call, and those with 60 and 140."""
    segmenter, (picture, _) = Segmenter(*bundled, Limits()), scenes[0]
    budgets = (140, 9, 60, 20)
    asked = [request(picture, ["the star"], method="random", budget=budget) for budget in budgets]
    answers = segmenter.answer([segmenter.prepare(each) for each in asked])
    assert [len(answer.kept[0]) for answer in answers] == list(budgets)
    assert [answer.batch_size for answer in answers] == [2, 2, 2, 2]


def test_too_large_masks_do_not_share_a_call(jobs, monkeypatch):
    segmenter, (first, second, _) = jobs
    monkeypatch.setattr(module, "MAX_JOINED_PIXELS", first.mask_pixels + second.mask_pixels)
    assert segmenter.can_join(second, [first])
    monkeypatch.setattr(module, "MAX_JOINED_PIXELS", first.mask_pixels + second.mask_pixels - 1)
    assert not segmenter.can_join(second, [first])


def test_what_one_request_raises_is_not_the_fault_of_others(jobs, bundled, scenes):
    segmenter, three = jobs
    long = segmenter.prepare(request(scenes[1][0], ["star " * 2000]))
    first, error, last = segmenter.answer([three[0], long, three[2]])
    assert isinstance(error, ServiceError) and error.code == "invalid" and "positions" in str(error)
    for answer, job in ((first, three[0]), (last, three[2])):
        [expected] = segmenter.answer([job])
        np.testing.assert_array_equal(answer.masks, expected.masks)


def test_what_only_a_shared_call_raises_is_nobodys_error(jobs, monkeypatch):
    """Memory that is enough for each alone."""
    segmenter, three = jobs
    call = segmenter._call

    def call_of_one(part):
        if len(part) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return call(part)

    monkeypatch.setattr(segmenter, "_call", call_of_one)
    assert [answer.batch_size for answer in segmenter.answer(three)] == [1, 1, 1] and segmenter.repeated == 3


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
@pytest.mark.parametrize("where", ["select", "segment"])
def test_an_error_does_not_keep_the_memory_of_the_call(jobs, monkeypatch, kind, where):
    segmenter, three = jobs
    held = []

    def fails(*args, **kwargs):
        assert all(each() is None for each in held)
        computed = torch.zeros(1000)
        held.append(weakref.ref(computed))
        raise kind("not enough memory")

    monkeypatch.setattr(segmenter.model, where, fails)
    errors = segmenter.answer(three)
    assert ["not enough memory"] * 3 == [str(error) for error in errors]
    assert len(held) == (4 if where == "segment" else 3) and held[-1]() is None


@pytest.mark.parametrize("settings", [{"method": "none"}, {"retention_ratio": 0.5}, {"budget": 6}], ids=str)
def test_a_family_whose_pictures_have_different_numbers_of_tokens(tmp_path_factory, one_thread, settings):
    model, processor = load_for_segmentation(tiny_checkpoint(tmp_path_factory.mktemp("unipixel")))
    segmenter = Segmenter(model, processor, Limits(), exact=False)
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (96, 64), (64, 128)]
    pictures = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    asked = [(pictures[0], ["the red star"]), (pictures[1], ["it", "the star"]), (pictures[2], ["a blue circle"])]
    jobs = [segmenter.prepare(request(*each, **settings)) for each in asked]
    assert segmenter.can_join(jobs[1], jobs[:1])
    # SAM 2 chooses between masks by scores, and blanks some: no margin of the logits of a mask bounds that.
    first, second = (Segmenter(model, processor, Limits()).prepare(request(*each, **settings)) for each in asked[:2])
    assert not segmenter.can_join(second, [first])
    answers = segmenter.answer(jobs)
    for answer, (picture, sentences) in zip(answers, asked, strict=True):
        expected = alone(model, processor, picture, sentences, settings)
        np.testing.assert_array_equal(answer.masks, expected.masks[0].numpy())
        assert answer.scores == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
        if expected.retained_indices is not None:
            assert answer.kept == [row.tolist() for row in expected.retained_indices]
