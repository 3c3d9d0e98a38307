"""What is tried: every setting once, and which of two is simpler."""

import pytest

from transformers_litelvlm.calibration.candidates import list_candidates
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.runs import parse_method


LAYOUTS = ["checkpoint", "raster+original", "raster+compact", "reference+compact"]


@pytest.fixture(scope="module")
def config():
    from transformers import AutoConfig

    from transformers_litelvlm import DEFAULT_CHECKPOINT

    return AutoConfig.from_pretrained(DEFAULT_CHECKPOINT)  # raster order, original positions


def test_settings_that_are_the_same_are_tried_once(config):
    names = [each.name for each in list_candidates(["uniform", "random", "litelvlm:similarity=dot"], LAYOUTS, config)]
    assert names == [
        "uniform",
        "uniform:token_order=raster,position_ids=compact",  # the authors' order of `uniform` is that of the raster
        "litelvlm:similarity=dot",
        "litelvlm:similarity=dot,token_order=raster,position_ids=compact",
        "litelvlm:similarity=dot,token_order=reference,position_ids=compact",
    ]
    method, options, layout = parse_method(names[-1])
    assert (method, options) == ("litelvlm", {"similarity": "dot"})
    assert layout == {"token_order": "reference", "position_ids": "compact"}


def test_the_published_default_is_always_among_them(config):
    assert [each.name for each in list_candidates(["uniform"], ["checkpoint"], config)] == ["uniform", "litelvlm"]
    assert [each.name for each in list_candidates(["litelvlm"], ["checkpoint"], config)] == ["litelvlm"]


def test_the_order_of_simplicity(config):
    methods = ["fastv:layer=1", "litelvlm:context_share=0.5,similarity=cosine", "divprune", "cdpruner", "uniform"]
    layouts = ["raster+compact", "checkpoint"]
    found = list_candidates([*methods, "litelvlm:context_share=1.0"], layouts, config)
    ranked = sorted(found, key=lambda each: each.simplicity)
    compact = "token_order=raster,position_ids=compact"
    assert [each.name for each in ranked] == [
        "litelvlm:context_share=1.0",  # what the checkpoint is set to
        "divprune",  # does not read the sentence
        "uniform",  # named later
        f"divprune:{compact}",
        f"uniform:{compact}",
        "cdpruner",
        "litelvlm",  # and named last, as what is published
        f"cdpruner:{compact}",
        f"litelvlm:context_share=1.0,{compact}",
        "litelvlm:context_share=0.5,similarity=cosine",
        f"litelvlm:context_share=0.5,similarity=cosine,{compact}",
        "fastv:layer=1",  # inside the language model
        f"fastv:layer=1,{compact}",
    ]


def test_a_preset_says_all_that_was_measured(config):
    first, second = list_candidates(["visionzip"], ["checkpoint", "reference+compact"], config)[:2]
    base = config.pruning_config
    own = PruningConfig(
        **base.to_dict() | {"presets": {"fast": first.preset(base, 0.25), "accurate": second.preset(base, 40)}}
    )
    fast, accurate = own.apply_preset("fast"), own.replace(budget=3).apply_preset("accurate")
    assert (fast.method, fast.retention_ratio, fast.budget) == ("visionzip", 0.25, None)
    assert (fast.token_order, fast.position_ids) == ("raster", "original")
    assert (accurate.budget, accurate.retention_ratio, accurate.token_order, accurate.position_ids) == (
        40, None, "reference", "compact",
    )  # fmt: skip


def test_what_is_no_candidate_is_refused(config):
    with pytest.raises(ValueError, match="`methods` names 'none', which prunes nothing"):
        list_candidates(["none"], LAYOUTS, config)
    with pytest.raises(ValueError, match="context_shape"):
        list_candidates(["litelvlm:context_shape=1"], LAYOUTS, config)
