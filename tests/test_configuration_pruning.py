"""PruningConfig alone: strict, small, and the same after a trip through JSON."""

import json

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
