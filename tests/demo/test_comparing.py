"""What the page computes, without a page."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_litelvlm.demo.comparing import Comparer, ious
from transformers_litelvlm.demo.running import describe_model, make_comparer
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


def masks_of(bundled, path, sentences, **changes):
    """As `model.segment` alone makes them."""
    model, processor = bundled
    inputs = processor.segmentation_inputs(images=[Image.open(path)], expressions=[sentences])
    with torch.inference_mode():
        output = model.segment(**inputs, pruning_config=model.config.pruning_config.replace(**changes))
    return output.masks[0].numpy(), output.retained_indices


def test_both_answers_are_those_of_the_model(comparer, bundled, scene):
    path, sentences = scene
    found = comparer.compare(path, "\n".join(sentences), budget=16)
    pruned, kept = masks_of(bundled, path, sentences, budget=16)
    whole, _ = masks_of(bundled, path, sentences, budget=None, retention_ratio=None)
    assert np.array_equal(found.pruned.masks, pruned) and np.array_equal(found.unpruned.masks, whole)
    assert found.pruned.kept == [kept[0].tolist()] and len(found.unpruned.kept[0]) == found.num_tokens == 144
    overlap, union = (pruned & whole).sum((1, 2)), (pruned | whole).sum((1, 2))
    assert found.ious == pytest.approx(overlap / union) and min(found.ious) < 1
    assert found.region == (25.0, 0.0, 175.0, 150.0), "the square in the middle of 200 x 150 pixels"


def test_a_second_setting_encodes_nothing(comparer, scene):
    path, sentences = scene
    comparer.compare(path, sentences[0], budget=48)
    assert comparer.segmenter.cache.misses == 1
    again = comparer.compare(path, sentences[1], "fast", "divprune", 9)
    assert comparer.segmenter.cache.misses == 1 and again.unpruned.was_known and again.pruned.was_known
    assert again.job.pruning.method == "divprune" and len(again.pruned.kept[0]) == 9


def test_settings_of_presets(comparer, scene):
    assert comparer.presets == ["accurate", "balanced", "context", "faithful", "fast"]
    assert [comparer.budget_of(name, 144) for name in (None, "balanced", "fast", "accurate")] == [32, 32, 16, 48]
    path, sentences = scene
    assert len(comparer.compare(path, sentences[0], "fast").pruned.kept[0]) == 16
    assert {"litelvlm", "divprune", "fastv", "cls_attention"} <= set(comparer.methods)
    assert "none" not in comparer.methods


@pytest.mark.parametrize("method", ["random", "fastv", "tome", "visionzip"])
def test_methods_keep_the_budget(comparer, scene, method):
    path, sentences = scene
    found = comparer.compare(path, "\n".join(sentences), None, method, 20)
    assert [len(kept) for kept in found.pruned.kept] == [20]


@pytest.mark.parametrize("budget", [144, 10**6])
def test_a_budget_of_all_tokens_runs_the_model_once(comparer, scene, budget):
    path, sentences = scene
    found = comparer.compare(path, sentences[0], budget=budget)
    assert not found.is_pruned and found.pruned is found.unpruned and found.ious == [1.0]


def test_ious():
    empty, full, half = np.zeros((2, 2), bool), np.ones((2, 2), bool), np.array([[True, True], [False, False]])
    pairs = np.stack([empty, empty, full, full]), np.stack([empty, full, half, full])
    assert ious(*pairs) == [1.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "setting", "message"),
    [
        ("", {}, "Write what to find"),
        (" \n\t\n", {}, "Write what to find"),
        ("a\nb\nc\nd\ne", {}, "There are 5 sentences. Write at most 4."),
        ("a" * 20_000, {}, "A sentence has 20000 characters, at most 10000 are allowed."),
        ("a star", {"budget": 0}, "`budget` must be"),
        ("a star", {"preset": "quick"}, "Unknown `pruning_preset` 'quick'"),
        ("a star", {"method": "magic"}, "magic"),
    ],
)
def test_what_cannot_be_says_why(comparer, scene, text, setting, message):
    with pytest.raises(ServiceError) as error:
        comparer.compare(scene[0], text, **setting)
    assert message in str(error.value)


def test_files_that_are_refused(bundled, tmp_path):
    comparer = Comparer(Segmenter(*bundled, Limits(max_pixels=1000, max_request_mb=1)), "")
    wrong, large, heavy = (str(tmp_path / name) for name in ("wrong.png", "large.png", "heavy.png"))
    (tmp_path / "wrong.png").write_text("not a picture")
    (tmp_path / "heavy.png").write_bytes(bytes(2**20 + 1))
    Image.new("L", (50, 21)).save(large)
    for path, message in (
        (None, "Choose an image first."),
        (wrong, "cannot be read as a picture (unknown format)."),
        (large, "has 50 x 21 pixels, more than 1000: scale it down."),
        (heavy, "The file has 1.0 MB, more than 1 MB."),
    ):
        with pytest.raises(ServiceError) as error:
            comparer.compare(path, "a star")
        assert message in str(error.value)
        if path is not None:
            with pytest.raises(ServiceError):
                comparer.count_tokens(path)


def test_empty_lines_and_spaces_do_not_count(comparer, scene):
    assert comparer.compare(scene[0], "\n  the   red\tcircle \r\n\n a star\n").job.sentences == [
        "the red circle",
        "a star",
    ]


def test_the_page_says_which_checkpoint(bundled):
    ours = make_comparer(*bundled, None, Limits())
    assert ours.segmenter.cache.misses == 1, "the first call, which is slower, is done"
    assert "The bundled checkpoint" in describe_model(ours) and "not photos" in describe_model(ours)
    other = Comparer(ours.segmenter, "./glamm-refseg")
    assert "`./glamm-refseg`" in describe_model(other) and "photos" not in describe_model(other)
