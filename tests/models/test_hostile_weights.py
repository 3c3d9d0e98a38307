"""Hostile weights: `from_pretrained` refuses each, naming the file, soon, and nothing of it runs; in every family."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText

from tests.support import attacks
from tests.support.families import KINDS, family_params


@pytest.fixture(scope="module", params=family_params(KINDS), ids=lambda family: family.name)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp(family.name)
    family.save(folder)
    return folder, load_file(folder / "model.safetensors")


@pytest.fixture
def source(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "source"))


def refusal(load, folder, **kwargs) -> str:
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        load(folder, **kwargs)
    assert time.process_time() - start < 20  # it does not hang; how long it takes is no matter of a test
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 + len(str(folder)) and "weights_only=False" not in message
    return message


@pytest.mark.parametrize("attack", attacks.SAFETENSORS)
def test_hostile_safetensors(family, saved, source, attack):
    file = attacks.write(source, "model.safetensors", attacks.SAFETENSORS[attack](saved[1]))
    assert str(file) in refusal(family.model_class.from_pretrained, source)


@pytest.mark.parametrize("attack", attacks.PICKLES)
def test_hostile_pickles(family, saved, source, attack):
    canary = source.parent / "executed"
    file = attacks.write(source, "pytorch_model.bin", attacks.PICKLES[attack](saved[1], canary))
    assert str(file) in refusal(family.model_class.from_pretrained, source)
    assert not canary.exists()


def test_a_zip_bomb(family, saved, source):
    file = attacks.write(source, "pytorch_model.bin", attacks.bomb(saved[1], 256))
    assert str(file) in refusal(family.model_class.from_pretrained, source)


def test_a_compressed_archive(family, saved, source):
    """Torch maps it, and takes the compressed bytes for the values: as it was, the model had other weights."""
    file = attacks.write(source, "pytorch_model.bin", attacks.compressed(saved[1]))
    message = refusal(family.model_class.from_pretrained, source)
    assert message.startswith(f"{file} cannot be read as weights (a compressed archive")


def moved_out(source, weights, name, form):
    """The weights stand in a folder beside, and the index names them there."""
    outside = source.parent / "outside"
    outside.mkdir()
    save_file(weights, outside / "w.safetensors", metadata={"format": "pt"})
    torch.save(weights, outside / "w.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name.format(source.parent))}
    return attacks.write(source, f"{form}.index.json", json.dumps(index).encode())


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("model.safetensors", "../outside/w.safetensors"),
        ("model.safetensors", "{}/outside/w.safetensors"),
        ("model.safetensors", "x/../../outside/w.safetensors"),
        ("pytorch_model.bin", "../outside/w.bin"),
    ],
)
def test_an_index_that_leads_out_of_its_folder(family, saved, source, form, name):
    """F20: as it was, it was loaded."""
    index = moved_out(source, saved[1], name, form)
    for load in (
        family.model_class.from_pretrained,
        family.base_class.from_pretrained,
        AutoModel.from_pretrained,
        AutoModelForImageTextToText.from_pretrained,
    ):
        message = refusal(load, source)
        assert message.startswith(f"{index} must name files beside it, not '") and "outside/w." in message
    message = refusal(family.model_class.from_pretrained, source.parent, subfolder="source")
    assert message.startswith(str(index))


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": 3}}', "{}", "[" * 100_000])
def test_a_broken_index(family, source, text):
    index = attacks.write(source, "model.safetensors.index.json", text.encode())
    assert str(index) in refusal(family.model_class.from_pretrained, source)


def test_other_errors_stay_what_they_are(family, source):
    with pytest.raises(ValueError, match="`budget` must be a positive integer"):
        family.model_class.from_pretrained(source, pruning_budget=0)
    with pytest.raises(OSError, match="nowhere"):
        family.model_class.from_pretrained(str(source / "nowhere"))
    with pytest.raises(TypeError, match="nonsense"):
        family.model_class.from_pretrained(source, nonsense=7)


def test_several_files_load(family, source):
    """With an index as transformers writes it."""
    model = family.model_class.from_pretrained(source)
    model.save_pretrained(source.parent / "shards", max_shard_size="20KB")
    assert (source.parent / "shards" / "model.safetensors.index.json").is_file()
    loaded = family.model_class.from_pretrained(source.parent / "shards")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_files_that_are_not_loaded_do_not_matter(family, source):
    """What people have beside the weights: parts of other downloads, pointers of Git LFS, states of training."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9976576152\n"
    for name in ("consolidated.safetensors", "pytorch_model.bin", "optimizer.bin"):
        (source / name).write_text(pointer)
    index = {"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (source / "vocabulary.index.json").write_text("[]")
    family.model_class.from_pretrained(source)
