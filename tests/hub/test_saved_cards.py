"""save_pretrained and push_to_hub write a card where there is none."""

import os
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.utils._http import default_client_factory
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from tests.support.fake_hub import FakeHub
from tests.support.families import FAMILIES, family_params
from tests.support.tiny_llava import tiny_grounding_model
from transformers_litelvlm import DEFAULT_CHECKPOINT, AutoModelForReferringSegmentation, PruningConfig
from transformers_litelvlm.hub.model_card import render_saved_card
from transformers_litelvlm.models.llava_lite.modeling_llava_lite_segmentation import LlavaLiteForReferringSegmentation


ASSETS = Path(__file__).parents[2] / "examples" / "assets"
MINE = b"---\nlicense: mit\n---\n# Mine\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub()
    huggingface_hub.set_client_factory(fake.client)
    huggingface_hub.close_session()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    yield fake
    huggingface_hub.set_client_factory(default_client_factory)
    huggingface_hub.close_session()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_grounding_model()


@pytest.mark.parametrize("family", family_params(FAMILIES), ids=lambda family: family.name)
def test_every_family_gets_a_card(family, tmp_path):
    model = family.model()
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-text-to-text"
    assert card.data.base_model is None and card.data.license is None and card.data.eval_results is None
    assert "Nothing was measured" in card.text and "| `fast`" not in card.text and '| `"fast"` |' in card.text
    fast = re.search(r'\| `"fast"` \| (.*) \|', card.text)[1]
    assert fast == {"llava": "2 of 16 visual tokens"}.get(family.name, "0.111 of the visual tokens")


def test_part_of_a_model(tmp_path):
    FAMILIES[0].model().model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag is None and "LlavaLiteModel.from_pretrained" in card.text


def test_a_card_of_the_user_is_never_replaced(model, tmp_path):
    (tmp_path / "README.md").write_bytes(MINE)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == MINE
    (tmp_path / "other").mkdir()
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other" / "README.md").exists()


def run_snippet(card, path):
    """Runs the three lines under "Use" in the folder; returns the variables, and what the last line makes."""
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    lines, names = code.splitlines(), {}
    assert len(lines) == 3
    os.chdir(path)
    assert ("`photo.jpg` stands for a picture of yours" in card) == ("photo.jpg" in code)
    if "photo.jpg" in code:
        Image.new("RGB", (40, 30)).save("photo.jpg")
    exec("\n".join([*lines[:2], f"result = {lines[2]}"]), names)
    return names, names["result"]


def test_use_for_masks_runs_as_it_stands(tmp_path, monkeypatch):
    """In the folder of a copy, whose name its title is; and the masks are right."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "mine"
    LlavaLiteForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(copy)
    AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(copy)
    card = (copy / "README.md").read_text()
    names, masks = run_snippet(card, copy)
    assert names["segmenter"].model.config.pruning_config.resolve(144) == 32
    for place, mask in enumerate(masks):
        found, known = (np.asarray(of) > 0 for of in (mask["mask"], Image.open(ASSETS / f"demo_mask_{place}.png")))
        assert (found & known).sum() / (found | known).sum() > 0.5
    assert "\n# mine, with visual-token pruning\n" in card
    assert "without training" not in card and "trained since they were loaded, this card does not know" in card


def test_copies_of_the_embedded_checkpoint_say_what_it_knows(tmp_path):
    """Example, limits and setting are those of this checkpoint, in a copy of a copy, too."""
    source = DEFAULT_CHECKPOINT
    for folder in (tmp_path / "first", tmp_path / "second"):
        model = LlavaLiteForReferringSegmentation.from_pretrained(source, pruning_preset="accurate")
        model.save_pretrained(folder)
        source = str(folder)
    card = ModelCard.load(tmp_path / "second" / "README.md")
    assert 'segmenter("scene.png", ["the red triangle", "the dotted triangle right of the red triangle"])' in card.text
    assert 'litelvlm segment scene.png "the red triangle" --model .`' in card.text and "the man" not in card.text
    assert card.text.count("Of the checkpoint that it was loaded from:") == 1
    limits = card.text.partition("## Limits\n")[2].partition("\n## ")[0]
    assert "On a photo its masks mean nothing" in limits
    assert "worse than a random choice" not in card.text  # not known of a copy, which may have been trained
    assert "balanced" not in card.text.partition("## Use\n")[2].partition("\n## ")[0]  # it has a setting
    assert (
        "48 of 144 visual tokens, chosen by `litelvlm, context_share=1.0`, in raster order with original positions"
        in card.text
    )
    assert card.data.widget[0] == {"src": "scene.png", "text": "the red triangle"}
    plain = render_saved_card(AutoConfig.from_pretrained(DEFAULT_CHECKPOINT))
    assert "--model . --preset balanced`" in plain and 'model_kwargs={"pruning_preset": "balanced"}' in plain
    assert "Without a setting none is pruned" in plain


@pytest.mark.parametrize(
    "widget",
    ["no list", "[{text: 'no picture'}]", "[{src: a.png, text: 'x\")\nevil(\"'}]", "[]", "[3]", "[{src: 1, text: 2}]"]
    + [f"[{{src: {src}, text: x}}]" for src in ("a.png", "../here.png", "config.json")],
)
def test_examples_that_would_not_run_are_left_out(model, tmp_path, widget):
    (tmp_path / "README.md").write_text(f"---\nwidget: {widget}\n---\n<!-- litelvlm limits: begin")
    for name in ("here.png", "config.json"):
        (tmp_path / name).touch()
    model.config.architectures, model.config._name_or_path = [type(model).__name__], str(tmp_path)
    card = render_saved_card(model.config)
    assert '("photo.jpg", ["the man in the red shirt"' in card and "evil" not in card and "limits: begin" not in card


@pytest.mark.parametrize("family", family_params(FAMILIES), ids=lambda family: family.name)
def test_use_for_text_runs(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = family.save(tmp_path / "checkpoint")
    config = AutoConfig.from_pretrained(checkpoint)
    for name in (family.model_class.__name__, family.base_class.__name__):
        config.architectures = [name]
        names, result = run_snippet(render_saved_card(config), checkpoint)
        model = names["answerer"].model if "answerer" in names else names["model"]
        assert model.config.pruning_config.retention_ratio == 2 / 9 and type(model).__name__ == name
        assert result[0]["generated_text"] if "answerer" in names else result.image_processor


def test_base_model_is_what_came_from_the_hub(hub, model, tmp_path):
    model.push_to_hub("me/first")
    type(model).from_pretrained("me/first").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "me/first" and "loaded from me/first." in card.text
    # From there by way of a folder: what its card says.
    type(model).from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert ModelCard.load(tmp_path / "again" / "README.md").data.base_model == "me/first"


def test_licence_and_base_model_of_a_folder(model, tmp_path):
    config = model.config
    config.architectures = [type(model).__name__]
    # A folder, which is nothing that others can find.
    for config._name_or_path in (str(tmp_path), "out/gone"):
        assert ModelCard(render_saved_card(config)).data.base_model is None
    config._name_or_path = str(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: llama2\nbase_model: [a/b, c/d]\n---\n")
    card = ModelCard(render_saved_card(config))
    assert card.data.base_model == ["a/b", "c/d"] and card.data.license == "llama2"
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    assert ModelCard(render_saved_card(config)).data.license is None


def test_push_writes_a_card_where_the_repository_has_none(hub, model):
    model.push_to_hub("me/new", tags=["mine"], commit_message="First")
    [commit] = hub.commits
    assert (commit["repo_id"], commit["revision"], commit["summary"]) == ("me/new", "main", "First")
    assert {"README.md", "config.json", "model.safetensors", "litelvlm_remote.py"} <= set(commit["names"])
    card = ModelCard(hub.files["me/new"]["README.md"].decode())
    assert "\n# new, with visual-token pruning\n" in card.text
    assert card.data.tags == ["visual-token-pruning", "litelvlm", "referring-segmentation", "mine"]
    assert "Nothing was measured" in card.text


def test_push_leaves_the_card_of_the_repository(hub, model, tmp_path):
    hub.files["me/old"] = {"README.md": MINE}
    model.push_to_hub("me/old")
    assert hub.files["me/old"]["README.md"] == MINE and "model.safetensors" in hub.files["me/old"]
    model.push_to_hub("me/old", tags=["new"])
    assert hub.files["me/old"]["README.md"] == b"---\nlicense: mit\ntags:\n- new\n---\n# Mine\n"
    (tmp_path / "README.md").write_text("# Another")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/old")
    assert b"# Mine" in hub.files["me/old"]["README.md"] and (tmp_path / "README.md").read_text() == "# Another"


def test_save_and_push_publishes_the_card_of_the_folder(hub, model, tmp_path):
    (tmp_path / "README.md").write_bytes(MINE)
    (tmp_path / "private.txt").write_text("not to be uploaded")
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/saved", create_pr=True)
    [commit] = hub.commits
    assert commit["create_pr"] and commit["names"] == [
        "README.md",
        "config.json",
        "generation_config.json",
        "litelvlm_remote.py",
        "model.safetensors",
    ]
    assert hub.files["me/saved"]["README.md"] == MINE


@pytest.mark.parametrize("spelling", ["mine/", "."])
def test_a_repository_is_named_as_the_folder_however_it_is_written(hub, model, tmp_path, monkeypatch, spelling):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine" if spelling == "." else tmp_path)
    PruningConfig(budget=3).save_pretrained(spelling, push_to_hub=True)
    model.save_pretrained(spelling, push_to_hub=True)
    assert {"pruning_config.json", "model.safetensors", "config.json"} <= set(
        hub.files.pop("me/mine")
    ) and not hub.files


def test_a_picture_of_the_user_is_never_replaced(tmp_path):
    (tmp_path / "scene.png").write_bytes(b"mine")
    AutoModelForReferringSegmentation.from_pretrained(DEFAULT_CHECKPOINT).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").is_file() and (tmp_path / "scene.png").read_bytes() == b"mine"
