"""Hostile weights: `convert` refuses each, naming the file, soon, and nothing of it runs or is written."""

import json
import time

import pytest
from safetensors.torch import save_file

from tests.support import attacks, fake_family
from tests.support.fake_family import fake_conversion, make_source
from transformers_litelvlm.conversion.convert import convert_checkpoint
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.source import CheckpointSource


def refusal(folder) -> str:
    """The message of the conversion of `folder`/source, of which nothing may be left."""
    before = sorted(folder.rglob("*"))
    start = time.process_time()
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(fake_conversion(CheckpointSource(folder / "source")), folder / "out", progress=False)
    assert time.process_time() - start < 20  # it does not hang; how long it takes is no matter of a test
    assert sorted(folder.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 + len(str(folder))
    return message


@pytest.mark.parametrize("attack", attacks.SAFETENSORS)
def test_hostile_safetensors(tmp_path, attack):
    weights, _ = make_source(tmp_path / "source", "safetensors", 1)
    file = attacks.write(tmp_path / "source", "model.safetensors", attacks.SAFETENSORS[attack](weights))
    assert str(file) in refusal(tmp_path)


@pytest.mark.parametrize("attack", attacks.PICKLES)
def test_hostile_pickles(tmp_path, attack):
    weights, _ = make_source(tmp_path / "source", "bin", 1)
    content = attacks.PICKLES[attack](weights, tmp_path / "executed")
    file = attacks.write(tmp_path / "source", "pytorch_model.bin", content)
    message = refusal(tmp_path)
    assert str(file) in message and "weights_only=False" not in message
    assert not (tmp_path / "executed").exists()


def test_a_zip_bomb(tmp_path):
    weights, _ = make_source(tmp_path / "source", "bin", 1)
    content = attacks.bomb(weights, 256)
    assert len(content) < 2**20
    file = attacks.write(tmp_path / "source", "pytorch_model.bin", content)
    assert str(file) in refusal(tmp_path)


def test_a_compressed_archive(tmp_path):
    """Torch maps it, and takes the compressed bytes for the values: as it was, other weights were converted."""
    weights, _ = make_source(tmp_path / "source", "bin", 1)
    file = attacks.write(tmp_path / "source", "pytorch_model.bin", attacks.compressed(weights))
    assert f"{file} is truncated or damaged (a compressed archive, which torch never writes)" in refusal(tmp_path)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", ["../outside/w.safetensors", "{}/outside/w.safetensors", "..", "a/../../w.bin"])
def test_an_index_that_leads_out_of_its_folder(tmp_path, form, name):
    weights, _ = make_source(tmp_path / "source", "safetensors", 1)
    (tmp_path / "outside").mkdir()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "outside" / "w.safetensors")
    name = name.format(tmp_path)
    content = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}).encode()
    attacks.write(tmp_path / "source", f"{form}.index.json", content)
    assert refusal(tmp_path).startswith(f"{name} is missing, which {tmp_path / 'source' / form}.index.json names")


def test_the_weights_that_attacks_change_are_good(tmp_path):
    """Written the same way without an attack, they are converted."""
    weights, _ = make_source(tmp_path / "source", "safetensors", 1)
    attacks.write(tmp_path / "source", "model.safetensors", attacks.packed(*attacks.header_of(weights)))
    convert_checkpoint(fake_conversion(CheckpointSource(tmp_path / "source")), tmp_path / "out", progress=False)
    assert set(fake_family.written_tensors(tmp_path / "out")) == set(fake_family.expected(*fake_family.tensors()))
