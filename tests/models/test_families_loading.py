"""From a folder to a model, for every family: Auto classes, keywords, code in checkpoints, pipelines."""

import inspect
import json
import logging
import shutil
from importlib.metadata import metadata
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from tests.support.families import FAMILIES, family_params, picture
from tests.support.hub_cache import put_into_cache
from tests.support.without_package import check_stub, run_script
from transformers_litelvlm import AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.models.pruned_config import PRUNING_KEYWORDS


@pytest.fixture(scope="module", params=family_params(FAMILIES), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return family.save(tmp_path_factory.mktemp(family.name))


def test_auto_classes_load_every_weight(family, checkpoint):
    saved = load_file(Path(checkpoint, "model.safetensors"))
    for auto, expected in (
        (AutoModel, family.base_class),
        (AutoModelForImageTextToText, family.model_class),
        (AutoModelForMultimodalLM, family.model_class),
    ):
        model, info = auto.from_pretrained(checkpoint, pruning_budget=5, output_loading_info=True)
        assert type(model) is expected and model.config.pruning_budget == 5
        assert not any(info.values()), info
        prefix = "model." if expected is family.base_class else ""
        for name, value in model.state_dict().items():
            assert torch.equal(value, saved[prefix + name])
    assert type(AutoProcessor.from_pretrained(checkpoint)) is family.processor_class
    assert type(AutoConfig.from_pretrained(checkpoint)) is family.config_class


def test_checkpoints_of_families_without_a_class_are_refused(family, tmp_path):
    """Upstream warns of another type, and weights that do not fit would be random or left out."""
    Path(tmp_path, "config.json").write_text(json.dumps({"model_type": "idefics3"}))
    for cls in (family.model_class, family.config_class):
        with pytest.raises(
            ValueError, match=f"another family, 'idefics3': there are .*{FAMILIES[0].stock_config_class.model_type}, "
        ):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "keywords, field, value",
    [
        ({"pruning_budget": 7}, "budget", 7),
        ({"pruning_retention_ratio": 0.5}, "retention_ratio", 0.5),
        ({"pruning_preset": "fast"}, "retention_ratio", 1 / 9),
        ({"pruning_method": "random", "pruning_method_options": {"seed": 3}}, "method_options", {"seed": 3}),
        ({"pruning_token_order": "reference"}, "token_order", "reference"),
        ({"pruning_position_ids": "original"}, "position_ids", "original"),
        ({"pruning_config": {"budget": 9}}, "budget", 9),
        ({"pruning_config": PruningConfig(budget=9)}, "budget", 9),
    ],
)
def test_keywords_of_from_pretrained(checkpoint, keywords, field, value):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, **keywords)
    assert getattr(model.config.pruning_config, field) == value


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"pruning_budget": 0}, "`budget` must be a positive integer.*got 0"),
        ({"pruning_budget": -3}, "got -3"),
        ({"pruning_budget": "64"}, "got '64'"),
        ({"pruning_retention_ratio": 1.5}, r"`retention_ratio` must be a number in \(0, 1\].*got 1.5"),
        (
            {"pruning_budget": 3, "pruning_retention_ratio": 0.5},
            r"`pruning_budget` \(3\) and `pruning_retention_ratio`",
        ),
        ({"pruning_method": "best"}, "Unknown pruning `method` 'best'. Known methods: .*`litelvlm methods` describes"),
        ({"pruning_method": "litelvml"}, "Unknown pruning `method` 'litelvml'. Did you mean 'litelvlm'[?]"),
        ({"pruning_preset": "slow"}, "Unknown `pruning_preset` 'slow'. Known presets: accurate, balanced"),
        ({"pruning_method_options": {"x": 1}}, r"`method_options` \['x'\] do not exist.*similarity"),
        (
            {"pruning_bugdet": 5},
            r"Unknown pruning settings \['pruning_bugdet'\]. Did you mean 'pruning_budget'[?] There are: pruning_",
        ),
    ],
)
@pytest.mark.parametrize("load", ["config", "model", "constructor"])
def test_bad_keywords(family, checkpoint, load, keywords, message):
    with pytest.raises(ValueError, match=message):
        if load == "constructor":
            family.config_class(**keywords)
        else:
            {"config": AutoConfig, "model": AutoModelForImageTextToText}[load].from_pretrained(checkpoint, **keywords)


def test_attributes_that_do_not_exist(family):
    config = family.config_class(pruning_budget=4)
    with pytest.raises(ValueError, match="Did you mean 'pruning_budget'"):
        config.pruning_bugdet = 5
    assert config.pruning_budget == 4 and not hasattr(config, "pruning_bugdet")


def test_keywords_beside_a_config(family, checkpoint):
    config = AutoConfig.from_pretrained(checkpoint, pruning_retention_ratio=0.5)
    for load in (family.model_class.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        model = load(checkpoint, config=config, pruning_budget=5)
        assert (model.config.pruning_budget, model.config.pruning_retention_ratio) == (5, None)
        assert load(checkpoint, config=config).config.pruning_retention_ratio == 0.5
    assert config.pruning_budget is None  # that of the caller is as it was


def test_a_dict_changes_the_fields_that_it_has(family, tmp_path):
    """Wherever the settings are from."""
    own = PruningConfig(method="random", method_options={"seed": 3}, budget=9)
    family.config(pruning_config=own).save_pretrained(tmp_path)
    expected = own.replace(retention_ratio=0.5).to_dict()
    loaded = AutoConfig.from_pretrained(tmp_path, pruning_config={"retention_ratio": 0.5})
    assert loaded.pruning_config.to_dict() == expected
    config = AutoConfig.from_pretrained(tmp_path, pruning_config=None)
    assert config.pruning_config.to_dict() == own.to_dict()
    config.set_pruning(pruning_config={"retention_ratio": 0.5})
    assert config.pruning_config.to_dict() == expected
    config.set_pruning(pruning_config=PruningConfig(budget=7).to_dict())
    assert config.pruning_config.to_dict() == PruningConfig(budget=7).to_dict()
    with pytest.raises(ValueError, match=r"no field \['budgt'\]. Did you mean 'budget'"):
        config.set_pruning(pruning_config={"budgt": 7})


def test_every_keyword_is_in_the_signatures(family):
    for load in (family.base_class, family.model_class, AutoModelForReferringSegmentation):
        signature = inspect.signature(load.from_pretrained)
        assert [name for name in signature.parameters if name.startswith("pruning_")] == list(PRUNING_KEYWORDS)
        assert all(name in load.from_pretrained.__doc__ for name in PRUNING_KEYWORDS)


def test_stock_checkpoints_are_configs_of_ours_without_a_word(family, tmp_path, caplog):
    """Those of upstream's classes: upstream would warn of another `model_type`."""
    family.stock(family.model()).config.save_pretrained(tmp_path)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        config = family.config_class.from_pretrained(tmp_path, pruning_budget=5)
    assert caplog.text == ""
    assert type(config) is family.config_class and config.model_type == family.config_class.model_type
    assert config.pruning_budget == 5 and config.to_dict()["model_type"] == family.config_class.model_type
    assert AutoConfig.from_pretrained(tmp_path).model_type == family.stock_config_class.model_type


def test_a_loaded_stock_checkpoint_saves_as_ours(family, tmp_path):
    if family.tiny is None:
        pytest.skip("needs a CLIP beside it: tested in the folder of the family")
    family.tiny.save_stock_checkpoint(tmp_path / "stock")
    model = family.model_class.from_pretrained(tmp_path / "stock", pruning_budget=3)
    processor = family.processor_class.from_pretrained(tmp_path / "stock")
    model.save_pretrained(tmp_path / "ours")
    # Saved last, it must not take the place of the code of the model: several families have this processor.
    processor.save_pretrained(tmp_path / "ours")
    check_stub(tmp_path / "ours")
    assert f"import {family.config_class.__name__}\n" in (tmp_path / "ours" / "litelvlm_remote.py").read_text()
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is family.model_class and not any(info.values()), info
    assert again.config.pruning_budget == 3
    assert type(AutoModel.from_pretrained(tmp_path / "ours")) is family.base_class
    assert type(AutoConfig.from_pretrained(tmp_path / "ours")) is family.config_class
    loaded = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(loaded) is family.processor_class
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "Where?"}]
    found, expected = (
        each.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        for each in (loaded, processor)
    )
    assert set(found) == set(expected) and all(torch.equal(found[name], value) for name, value in expected.items())
    output = again(**found)
    assert torch.equal(output.logits, model(**expected).logits) and len(output.retained_indices[0]) == 3


def test_pruning_settings_travel_with_the_checkpoint(checkpoint, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, pruning_preset="balanced")
    model.config.pruning_method_options = {"context_share": 0.25}
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.config.pruning_config.to_dict() == model.config.pruning_config.to_dict()
    assert loaded.config.pruning_retention_ratio == 2 / 9
    # A new budget replaces the saved ratio.
    assert AutoConfig.from_pretrained(tmp_path, pruning_budget=3).pruning_retention_ratio is None
    assert not AutoConfig.from_pretrained(tmp_path, pruning_budget=None).pruning_config.is_on


def test_half_precision_and_device_map(checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_importing_leaves_stock_classes_alone(family, tmp_path):
    family.stock(family.model()).save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is family.stock_class
    assert set(family.stock_config_class.sub_configs_defaults) == {"vision_config", "text_config"}


@pytest.mark.parametrize("subfolder", [".", "inner"])
def test_models_load_from_the_cache_without_network(family, checkpoint, tmp_path, subfolder):
    old, new = put_into_cache(tmp_path, Path(checkpoint), {"v1": "1" * 40, "main": "2" * 40}, subfolder=subfolder)
    for budget, snapshot in ((4, old), (6, new)):
        AutoConfig.from_pretrained(snapshot, pruning_budget=budget).save_pretrained(snapshot)
    where = {"cache_dir": str(tmp_path), **({} if subfolder == "." else {"subfolder": subfolder})}
    for arguments, budget in (
        ({}, 6),
        ({"local_files_only": True}, 6),
        ({"revision": "v1"}, 4),
        ({"revision": "1" * 40, "local_files_only": True}, 4),
    ):
        for load in (family.model_class.from_pretrained, AutoModelForImageTextToText.from_pretrained):
            model = load("org/tiny", **where, **arguments)
            assert type(model) is family.model_class and model.config.pruning_budget == budget


# ---- the stub for trust_remote_code ---------------------------------------------------------------------------------


def test_a_checkpoint_carries_a_stub_instead_of_code(family, checkpoint, tmp_path):
    check_stub(checkpoint)
    stub = Path(checkpoint, "litelvlm_remote.py").read_text()
    assert f"from transformers_litelvlm import {family.config_class.__name__}\n" in stub
    assert "pip install .  " in stub and "not on PyPI" in stub
    # A class that Transformers got through the stub is not marked to have its source copied.
    reference = json.loads(Path(checkpoint, "config.json").read_text())["auto_map"]["AutoConfig"]
    get_class_from_dynamic_module(reference, checkpoint).register_for_auto_class()
    family.processor_class.register_for_auto_class()
    family.model_class.register_for_auto_class("AutoModelForImageTextToText")
    AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=True).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True).save_pretrained(tmp_path)
    check_stub(tmp_path)


NOT_IMPORTED = """
import sys
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, inputs_file, prompt, picture, target = sys.argv[1:]
assert "transformers_litelvlm" not in sys.modules
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
base = AutoModel.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True, pruning_preset="fast")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

import transformers_litelvlm

for each in (model, base, config, processor):
    assert type(each) is getattr(transformers_litelvlm, type(each).__name__), type(each)
inputs = torch.load(inputs_file, weights_only=True)
again = processor(images=Image.open(picture), text=prompt, return_tensors="pt")
assert set(again) == set(inputs) and all(torch.equal(again[name], inputs[name]) for name in inputs)
assert config.pruning_budget is None
with torch.no_grad():
    logits = model(**inputs).logits
model.save_pretrained(target)
processor.save_pretrained(target)
repeated = AutoModelForImageTextToText.from_pretrained(target, trust_remote_code=True)
AutoProcessor.from_pretrained(target, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(repeated(**inputs).logits, logits), "saved again, it differs"
torch.save(logits, inputs_file + ".out")
"""


@pytest.mark.slow
def test_a_checkpoint_loads_where_the_package_is_not_imported(family, checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, pruning_budget=5)
    picture().save(tmp_path / "picture.png")
    prompt = family.prompt("Where is the dog?")
    inputs = dict(processor(images=picture(), text=prompt, return_tensors="pt"))
    torch.save(inputs, tmp_path / "inputs.pt")
    files = [tmp_path / name for name in ("picture.png", "again")]
    run_script(NOT_IMPORTED, tmp_path, checkpoint, tmp_path / "inputs.pt", prompt, *files)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert torch.equal(torch.load(tmp_path / "inputs.pt.out", weights_only=True), expected)
    check_stub(tmp_path / "again")


NOT_INSTALLED = """
import sys
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

for auto in (AutoConfig, AutoProcessor, AutoModelForImageTextToText):
    try:
        auto.from_pretrained(sys.argv[1], trust_remote_code=True)
    except ImportError as error:
        assert "not found in your environment: transformers_litelvlm" in str(error), error
        assert "Run `pip install transformers_litelvlm`" in str(error), error
    else:
        raise SystemExit("it loaded")
"""


@pytest.mark.slow
def test_transformers_says_what_to_install(tmp_path):
    run_script(NOT_INSTALLED, tmp_path, FAMILIES[0].save(tmp_path / "checkpoint"), installed=False)
    # To pip, the name of the module and that of the package are one name.
    assert canonicalize_name("transformers_litelvlm") == "transformers-litelvlm"
    assert metadata("transformers_litelvlm")["Name"] == "transformers-litelvlm"


def test_a_checkpoint_with_copied_code_loads_and_loses_it_when_saved(family, checkpoint, tmp_path):
    """As version 0.1.0 wrote them: dozens of modules, named by `auto_map`. None of them runs."""
    old = tmp_path / "old"
    shutil.copytree(checkpoint, old)
    (old / "litelvlm_remote.py").unlink()
    for name in ("config.json", "processor_config.json"):
        content = json.loads((old / name).read_text())
        for auto, reference in content["auto_map"].items():
            content["auto_map"][auto] = f"litelvlm_models_{reference.partition('.')[2].lower()}.{auto}"
            (old / f"litelvlm_models_{reference.partition('.')[2].lower()}.py").write_text("raise SystemExit")
        (old / name).write_text(json.dumps(content))
    for trust in (None, True):
        model = AutoModelForImageTextToText.from_pretrained(old, trust_remote_code=trust)
        processor = AutoProcessor.from_pretrained(old, trust_remote_code=trust)
        assert type(model) is family.model_class and type(processor) is family.processor_class
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    check_stub(tmp_path / "new")


@pytest.mark.parametrize("budget", [None, 5])
def test_image_text_to_text_pipeline(family, checkpoint, budget):
    chat = pipeline("image-text-to-text", model=checkpoint, model_kwargs={"pruning_budget": budget})
    assert type(chat.model) is family.model_class and chat.model.config.pruning_budget == budget
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "Where is the dog?"}]
    arguments = {"max_new_tokens": 6, "do_sample": False}
    text = chat(text=[{"role": "user", "content": content}], return_full_text=False, **arguments)[0]["generated_text"]

    inputs = chat.processor(images=picture(), text=family.prompt("Where is the dog?"), return_tensors="pt")
    new = chat.model.generate(**inputs, **arguments)[0, inputs["input_ids"].shape[1] :]
    assert text == chat.processor.decode(new, skip_special_tokens=True)
