"""From a folder to a model, for every family: Auto classes, keywords, code in checkpoints, pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.support.families import FAMILIES, picture
from transformers_litelvlm import PruningConfig


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(family, tmp_path_factory):
    return family.save(tmp_path_factory.mktemp(family.name))


def test_auto_classes_load_every_weight(family, checkpoint):
    saved = load_file(Path(checkpoint, "model.safetensors"))
    for auto, expected in ((AutoModel, family.base_class), (AutoModelForImageTextToText, family.model_class)):
        model, info = auto.from_pretrained(checkpoint, pruning_budget=5, output_loading_info=True)
        assert type(model) is expected and model.config.pruning_budget == 5
        assert not any(info.values()), info
        prefix = "model." if expected is family.base_class else ""
        for name, value in model.state_dict().items():
            assert torch.equal(value, saved[prefix + name])
    assert type(AutoProcessor.from_pretrained(checkpoint)) is family.processor_class
    assert type(AutoConfig.from_pretrained(checkpoint)) is family.config_class


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
        ({"pruning_method": "best"}, "Unknown pruning `method` 'best'. Known methods: "),
        ({"pruning_preset": "slow"}, "Unknown `pruning_preset` 'slow'. Known presets: accurate, balanced"),
        ({"pruning_method_options": {"x": 1}}, r"`method_options` \['x'\] do not exist.*similarity"),
    ],
)
@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForImageTextToText])
def test_bad_keywords(checkpoint, auto, keywords, message):
    with pytest.raises(ValueError, match=message):
        auto.from_pretrained(checkpoint, **keywords)


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


def test_code_is_written_only_where_it_is_wanted(family, checkpoint, tmp_path):
    auto_map = json.loads(Path(checkpoint, "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"].endswith(f".{family.config_class.__name__}")
    AutoModelForImageTextToText.from_pretrained(checkpoint).save_pretrained(tmp_path, save_code=False)
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path, save_code=False)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()


ABSENT = """
import sys
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

folder, inputs_file, prompt, picture, target = sys.argv[1:]
try:
    import transformers_litelvlm
    raise SystemExit("the package must be absent here")
except ImportError:
    pass
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
inputs = torch.load(inputs_file, weights_only=True)
again = processor(images=Image.open(picture), text=prompt, return_tensors="pt")
assert set(again) == set(inputs) and all(torch.equal(again[name], inputs[name]) for name in inputs)
AutoModel.from_pretrained(folder, trust_remote_code=True, pruning_budget=5)
assert AutoConfig.from_pretrained(folder, trust_remote_code=True, pruning_preset="fast").pruning_budget is None
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


def test_a_checkpoint_runs_where_the_package_is_absent(family, checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, pruning_budget=5)
    picture().save(tmp_path / "picture.png")
    prompt = family.prompt("Where is the dog?")
    inputs = dict(processor(images=picture(), text=prompt, return_tensors="pt"))
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "run.py").write_text(ABSENT)
    blocker = tmp_path / "blocked" / "transformers_litelvlm"
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('absent')")
    site = [path for path in sys.path if path.endswith("site-packages")]
    # The same number of threads, so that sums are made in the same order.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join([str(blocker.parent), *site])}
    arguments = [checkpoint, tmp_path / "inputs.pt", prompt, tmp_path / "picture.png", tmp_path / "again"]
    run = subprocess.run(
        [sys.executable, tmp_path / "run.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    with torch.no_grad():
        expected = model(**inputs).logits
    assert torch.equal(torch.load(tmp_path / "inputs.pt.out", weights_only=True), expected)


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
