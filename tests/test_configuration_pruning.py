"""PruningConfig alone: strict, small, and the same after a trip through JSON."""

import copy
import json

import numpy as np
import pytest

from transformers_litelvlm import LlavaLiteConfig, PruningConfig


SETTINGS = [
    {},
    {"budget": 64},
    {"retention_ratio": 1 / 3, "token_order": "reference"},
    {"method": "random", "method_options": {"seed": 4}, "budget": 3, "position_ids": "original"},
    {"method": "litelvlm", "method_options": {"context_share": 0.5, "similarity": "cosine"}, "budget": 9},
    {"presets": {"mine": {"budget": 5}}},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_round_trip_of_the_small_file(tmp_path, settings):
    config = PruningConfig(**settings)
    config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pruning_config.json"]
    assert (tmp_path / "pruning_config.json").stat().st_size < 1000
    assert PruningConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert PruningConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


@pytest.mark.parametrize("settings", SETTINGS)
def test_round_trip_inside_a_model_config(tmp_path, settings):
    LlavaLiteConfig(pruning_config=PruningConfig(**settings)).save_pretrained(tmp_path)
    loaded = LlavaLiteConfig.from_pretrained(tmp_path).pruning_config
    assert type(loaded) is PruningConfig
    assert loaded.to_dict() == PruningConfig(**settings).to_dict()


BAD = [
    ({"budget": 0}, "`budget` must be a positive integer.*got 0"),
    ({"budget": -1}, "got -1"),
    ({"budget": 2.5}, "got 2.5"),
    ({"budget": "64"}, "got '64'"),
    ({"budget": True}, "got True"),
    ({"retention_ratio": 0}, r"`retention_ratio` must be a number in \(0, 1\].*got 0"),
    ({"retention_ratio": 1.01}, "got 1.01"),
    ({"method": "best"}, "'best'. Known methods: "),
    ({"method": None}, "`method` must be the name"),
    ({"token_order": "spiral"}, "`token_order` must be None or one of 'raster', 'reference', got 'spiral'"),
    ({"position_ids": "new"}, "`position_ids` must be None or one of 'original', 'compact', got 'new'"),
    ({"method_options": [1]}, r"`method_options` must be a dict, got \[1\]"),
    ({"method_options": {"nope": 1}}, r"`method_options` \['nope'\] do not exist for the method 'litelvlm'"),
    ({"method_options": {"context_share": 3}}, "`context_share` must be"),
]


@pytest.mark.parametrize("settings, message", BAD)
def test_bad_values_at_construction_and_at_run_time(settings, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**settings)
    config = PruningConfig()
    before = config.to_dict()
    with pytest.raises(ValueError, match=message):
        for name, value in settings.items():
            setattr(config, name, value)
    assert config.to_dict() == before


LONG = "x" * 10**6


@pytest.mark.parametrize(
    "settings",
    [{name: LONG} for name in ("method", "budget", "retention_ratio", "token_order", "then", "presets", LONG)]
    + [{"method_options": {LONG: 1}}, {"method_options": {"context_share": LONG}}, {"presets": {LONG: 7}}]
    + [{"then": {LONG: 1}}, {"then": {"method": LONG}}],
    ids=lambda settings: str(settings)[:30],
)
def test_long_values_are_quoted_in_part(settings):
    with pytest.raises(ValueError) as caught:
        PruningConfig(**settings)
    assert len(str(caught.value)) < 600


def test_budget_and_ratio_exclude_each_other():
    message = r"`budget` \(3\) and `retention_ratio` \(0.5\) exclude each other"
    with pytest.raises(ValueError, match=message):
        PruningConfig(budget=3, retention_ratio=0.5)
    config = PruningConfig(budget=3)
    with pytest.raises(ValueError, match=message):
        config.retention_ratio = 0.5
    assert (config.budget, config.retention_ratio) == (3, None)
    replaced = config.replace(retention_ratio=0.5)
    assert (replaced.budget, replaced.retention_ratio) == (None, 0.5)
    assert (config.budget, config.retention_ratio) == (3, None)


def test_replace_drops_the_options_of_another_method():
    config = PruningConfig(method_options={"context_share": 0.5})
    assert config.replace(method="random").method_options == {}
    assert config.replace(budget=3).method_options == {"context_share": 0.5}
    with pytest.raises(ValueError, match=r"PruningConfig has no field \['bugdet'\]"):
        config.replace(bugdet=3)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"pruning_budget": 3}, "Did you mean 'budget'"),
        ({"preset": "fast"}, r"`apply_preset\(name\)` uses a preset"),
        ({"pruning_preset": "fast"}, r"`apply_preset\(name\)` uses a preset"),
    ],
)
def test_keywords_of_other_places_are_no_fields(wrong, hint):
    """What `from_pretrained` and requests of a server take."""
    with pytest.raises(ValueError, match=hint):
        PruningConfig().changed_by(wrong)


@pytest.mark.parametrize("name, kept", [("fast", 64), ("balanced", 128), ("accurate", 192)])
def test_presets_are_the_budgets_of_the_paper_at_576_tokens(name, kept):
    assert PruningConfig().apply_preset(name).resolve(576) == kept


def test_the_preset_context_keeps_mostly_context_whatever_the_budget():
    config = PruningConfig(method="random", budget=32).apply_preset("context")
    assert (config.method, config.budget, config.build_pruner().context_share) == ("litelvlm", 32, 0.75)
    assert config.apply_preset("fast").method_options == {"context_share": 0.75}


def test_presets_of_a_checkpoint_come_before_the_built_in_ones():
    config = PruningConfig(presets={"mine": {"budget": 5, "method": "random"}})
    assert config.apply_preset("mine").resolve(576) == 5
    assert config.apply_preset("fast").retention_ratio == 1 / 9
    assert PruningConfig(presets={"fast": {"budget": 5}}).apply_preset("fast").budget == 5
    with pytest.raises(ValueError, match="Unknown `pruning_preset` 'no'. Known presets: accurate, .*, fast, mine"):
        config.apply_preset("no")


def test_off():
    assert PruningConfig().resolve(576) is None
    assert PruningConfig(budget=576).resolve(576) is None
    assert PruningConfig(budget=577).resolve(576) is None
    assert PruningConfig(retention_ratio=1.0).resolve(576) is None
    assert PruningConfig(method="none", budget=3).resolve(576) is None
    assert PruningConfig(budget=575).resolve(576) == 575


def test_official_choices_are_the_default():
    config = PruningConfig()
    assert (config.resolved_token_order, config.resolved_position_ids) == ("reference", "compact")
    config = PruningConfig(token_order="raster", position_ids="original")
    assert (config.resolved_token_order, config.resolved_position_ids) == ("raster", "original")


@pytest.mark.parametrize("version", [float("inf"), 2, ["0.2"]])
def test_a_version_is_a_text(version):
    with pytest.raises(ValueError, match="`litelvlm_version` must be None or a text like"):
        PruningConfig(litelvlm_version=version)


def test_unknown_keys_of_a_newer_version_warn(tmp_path, caplog):
    content = {"model_type": "litelvlm_pruning", "budget": 5, "temperature": 2, "litelvlm_version": "99.0"}
    (tmp_path / "pruning_config.json").write_text(json.dumps(content))
    config = PruningConfig.from_pretrained(tmp_path)
    assert config.budget == 5 and not hasattr(config, "temperature")
    assert any("ignores the unknown keys ['temperature']" in r.message and "99.0" in r.message for r in caplog.records)


def test_configs_do_not_share_state():
    first, second = PruningConfig(), PruningConfig()
    first.presets["fast"]["retention_ratio"] = 0.9
    first.method_options["context_share"] = 0.5
    assert second.presets["fast"]["retention_ratio"] == 1 / 9 and second.method_options == {}


def test_unknown_names_are_errors_in_code():
    message = r"PruningConfig has no field \['budgt'\]. Did you mean 'budget'\? Its fields: method, budget"
    with pytest.raises(ValueError, match=message):
        PruningConfig(budgt=7)
    config = PruningConfig()
    with pytest.raises(
        AttributeError, match=r"has no field 'budgt'. Did you mean 'budget'\? Its fields: method, budget"
    ):
        config.budgt = 7
    with pytest.raises(ValueError, match=message):
        LlavaLiteConfig(pruning_config={"budgt": 7})


def test_keywords_of_from_pretrained_are_taken_together(tmp_path):
    PruningConfig(retention_ratio=0.5, method_options={"context_share": 0.5}).save_pretrained(tmp_path)
    config = PruningConfig.from_pretrained(tmp_path, budget=3, method="random", method_options={"seed": 4})
    assert (config.budget, config.retention_ratio, config.build_pruner().seed) == (3, None, 4)
    with pytest.raises(ValueError, match=r"no field \['budgt'\]"):
        PruningConfig.from_pretrained(tmp_path, budgt=3)
    config, unused = PruningConfig.from_pretrained(tmp_path, other=3, return_unused_kwargs=True)
    assert unused == {"other": 3} and config.retention_ratio == 0.5


def test_unknown_keys_in_the_file_of_a_model_warn(tmp_path, caplog):
    LlavaLiteConfig(pruning_budget=5).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["pruning_config"]["temperature"] = 2
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert LlavaLiteConfig.from_pretrained(tmp_path).pruning_budget == 5
    assert any("ignores the unknown keys ['temperature']" in record.message for record in caplog.records)


WRONG_KINDS = [
    ({"method": ["x"]}, r"`method` must be the name of a pruning method, got \['x'\]"),
    ({"presets": {"a": 7}}, r"`presets\['a'\]` must be a dict, got 7"),
    ({"presets": [1]}, r"`presets` must be a dict, got \[1\]"),
    ({"method": "trim", "method_options": {"adaptive": "False"}}, "`adaptive` must be of type bool, got 'False'"),
    ({"method": "trim", "method_options": {"aggregate": 1}}, "`aggregate` must be of type bool, got 1"),
    ({"method": "tome", "method_options": {"schedule": ["1"]}}, r"`schedule` must be .*, got \['1'\]"),
]


@pytest.mark.parametrize("settings, message", WRONG_KINDS)
def test_wrong_types_name_the_argument_and_the_value(settings, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**settings)
    config = PruningConfig()
    before = config.to_dict()
    with pytest.raises(ValueError, match=message):
        config.replace(**settings)
    assert config.to_dict() == before


def test_options_of_the_right_type_in_other_clothes():
    assert PruningConfig(method_options={"context_share": 1}).build_pruner().context_share == 1
    assert PruningConfig(method="tome", method_options={"schedule": [1, 2]}).build_pruner().schedule == (1, 2)


@pytest.mark.parametrize("value", [7, None, [("budget", 3)]])
def test_a_model_refuses_what_is_no_pruning_config(value):
    config = LlavaLiteConfig(pruning_budget=5)
    with pytest.raises(ValueError, match="`pruning_config` must be a PruningConfig or a dict, got"):
        config.pruning_config = value
    assert config.pruning_budget == 5


def test_the_pruner_is_built_once_until_a_setting_changes():
    config = PruningConfig(method_options={"context_share": 0.5}, budget=3)
    first = config.build_pruner()
    assert config.build_pruner() is first
    config.method_options["context_share"] = 0.25  # in place
    assert config.build_pruner().context_share == 0.25
    config.method_options = {}
    assert config.build_pruner().context_share is None
    copied = config.replace(budget=4)
    copied.method_options["context_share"] = 1.0
    assert config.method_options == {} and config.budget == 3


def test_presets_of_a_newer_version_are_left_out(tmp_path, caplog):
    """A preset that is not understood means nothing, least of all the package's own of that name."""
    presets = {"x": {"budget": 3, "new": 1}, "fast": {"budget": 3, "new": 1}, "mine": {"budget": 5}}
    content = {"budget": 9, "presets": presets, "litelvlm_version": "99.0"}
    config = PruningConfig.from_dict(content)
    message = "ignores the unknown keys ['presets.fast', 'presets.x']"
    assert any(message in r.message and "99.0" in r.message for r in caplog.records)
    assert config.budget == 9 and config.apply_preset("mine").budget == 5
    for own in (config, config.replace(budget=8), copy.deepcopy(config)):
        for name in ("x", "fast"):
            with pytest.raises(ValueError, match=f"Unknown `pruning_preset` '{name}'. Known presets: accurate, bal"):
                own.apply_preset(name)
    (tmp_path / "pruning_config.json").write_text(json.dumps(content))
    assert set(PruningConfig.from_pretrained(tmp_path).presets) == {
        "mine",
        "balanced",
        "accurate",
        "faithful",
        "context",
    }
    calibrated = config.replace(presets={**config.presets, "fast": {"budget": 4}})
    assert calibrated.apply_preset("fast").budget == 4
    # A version that changes all of its own presets.
    every = PruningConfig.from_dict({"presets": {name: {"new": 1} for name in PruningConfig().presets}})
    for own in (every, every.replace(budget=3)):
        with pytest.raises(ValueError, match="Unknown `pruning_preset` 'fast'. Known presets: "):
            own.apply_preset("fast")
    LlavaLiteConfig().save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text()) | {"pruning_config": content}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="Unknown `pruning_preset` 'fast'"):
        LlavaLiteConfig.from_pretrained(tmp_path, pruning_preset="fast")
    assert LlavaLiteConfig.from_pretrained(tmp_path).pruning_budget == 9
    with pytest.raises(ValueError, match=r"`presets\['x'\]`: PruningConfig has no field \['new'\]"):
        PruningConfig(presets=presets)


FROM_NEWER = [
    {"method_options": {"new": 1}},
    {"then": {"method": "fastv", "budget": 3, "new": 1}},
    {"then": {"method": "fastv", "budget": 3, "method_options": {"new": 1}}},
    {"method": "brand_new"},
    {"position_ids": "spiral"},
]


@pytest.mark.parametrize("settings", FROM_NEWER, ids=str)
def test_what_a_newer_file_says_is_refused_with_its_version(settings):
    upgrade = "The file has version 99.0: upgrade transformers-litelvlm"
    with pytest.raises(ValueError, match=upgrade):
        PruningConfig.from_dict({**settings, "litelvlm_version": "99.0"})
    with pytest.raises(ValueError, match=upgrade):
        PruningConfig.from_dict({"presets": {"x": settings}, "litelvlm_version": "99.0"}).apply_preset("x")
    for version in ("0.0.1", "no version", None):
        with pytest.raises(ValueError) as caught:
            PruningConfig.from_dict({**settings, "litelvlm_version": version})
        assert "upgrade" not in str(caught.value)


def test_no_config_shares_its_insides():
    PruningConfig().presets["context"]["method_options"]["context_share"] = 0.1
    assert PruningConfig().apply_preset("context").method_options == {"context_share": 0.75}
    then = {"method": "fastv", "budget": 3, "method_options": {"layer": 1}}
    given = {"method": "tome", "method_options": {"schedule": [1, 2]}, "then": then, "presets": {"x": {"then": then}}}
    first = PruningConfig(**given)
    before = copy.deepcopy(first.to_dict())
    second = first.replace(budget=4)
    second.then["method_options"]["layer"] = 7
    second.presets["x"]["then"]["budget"] = 1
    second.method_options["schedule"].append(3)
    first.apply_preset("x").then["method_options"]["layer"] = 2
    then["method_options"]["layer"] = 4
    given["method_options"]["schedule"].append(5)
    assert first.to_dict() == before


def test_numbers_of_numpy_are_saved(tmp_path):
    options = {"context_share": np.float32(0.5)}
    config = PruningConfig(
        budget=np.int64(5),
        method_options=options,
        then={"method": "fastv", "retention_ratio": np.float64(0.5), "method_options": {"layer": np.int32(1)}},
        presets={"x": {"budget": np.int64(3), "method": "tome", "method_options": {"schedule": (np.int8(1), 2)}}},
    )
    assert type(config.method_options["context_share"]) is float
    config.save_pretrained(tmp_path / "alone")
    LlavaLiteConfig(pruning_config=config).save_pretrained(tmp_path / "model")
    loaded = PruningConfig.from_pretrained(tmp_path / "alone")
    assert loaded.build().then.method_options == {"layer": 1}
    assert LlavaLiteConfig.from_pretrained(tmp_path / "model").pruning_config.to_dict() == loaded.to_dict()
    config.method_options["context_share"] = np.float32(0.25)  # in place
    config.save_pretrained(tmp_path / "alone")
    assert PruningConfig.from_pretrained(tmp_path / "alone").method_options == {"context_share": 0.25}
    assert PruningConfig(method="random", method_options={"seed": np.int64(4)}).build_pruner().seed == 4


@pytest.mark.parametrize(
    "value", [np.array([1, 2]), {1}, object(), b"x", 1j, [np.array(1)], np.nan, [np.inf], np.float32(-np.inf)]
)
def test_what_json_cannot_hold_is_refused_at_once(value):
    message = "`method_options` must be what a JSON file can hold"
    with pytest.raises(ValueError, match=message):
        PruningConfig(method="tome", method_options={"schedule": value})
    with pytest.raises(ValueError, match="`presets` must be what"):
        PruningConfig(presets={"x": {"method_options": {"schedule": value}}})


def test_no_budget_is_off_in_a_preset_as_in_a_keyword():
    config = PruningConfig(retention_ratio=0.5, presets={"off": {"budget": None}, "same": {"token_order": "raster"}})
    assert not config.apply_preset("off").is_on and not config.replace(budget=None).is_on
    assert config.apply_preset("same").retention_ratio == 0.5
    assert config.replace(retention_ratio=0.25).retention_ratio == 0.25
    assert PruningConfig(budget=3).replace(retention_ratio=None).budget == 3
    assert not LlavaLiteConfig(pruning_config=config, pruning_budget=None).pruning_config.is_on
