"""Sources that are not what they should be: one line that names the file, and nothing executed."""

import json
import os
import pickle

import pytest
import torch
from huggingface_hub import constants

from tests.support import fake_family
from tests.support.fake_family import assert_identical, make_source
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.source import CheckpointSource
from transformers_litelvlm.utils.messages import quoted


def error_of(path, **kwargs) -> str:
    with pytest.raises(ConversionError) as caught:
        CheckpointSource(path, **kwargs).tensors()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_metadata_and_tensors(tmp_path, form, num_shards):
    model, _ = make_source(tmp_path, form, num_shards)
    source = CheckpointSource(tmp_path)
    infos = source.tensors()
    assert {name: (info.shape, info.dtype) for name, info in infos.items()} == {
        name: (tuple(value.shape), value.dtype) for name, value in model.items()
    }
    assert all(info.nbytes == model[name].nbytes for name, info in infos.items())
    loaded = {}
    for file in sorted({info.file for info in infos.values()}):
        content = dict(source.load(file))
        assert set(content) == {name for name, info in infos.items() if info.file == file}
        loaded |= content
    assert_identical(loaded, model)
    assert torch.equal(source.tensor("points.1.weight"), model["points.1.weight"])
    with pytest.raises(ConversionError, match="holds no tensor `points.9`"):
        source.tensor("points.9")


def test_metadata_of_a_bin_is_read_without_values(tmp_path, monkeypatch):
    """So a 7B checkpoint is checked in seconds."""
    make_source(tmp_path, "bin", 2)
    load, mapped = torch.load, []

    def watched_load(*args, **kwargs):
        mapped.append(kwargs["mmap"])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", watched_load)
    CheckpointSource(tmp_path).tensors()
    assert mapped == [True, True]


def test_order_of_formats(tmp_path):
    """As transformers: safetensors before .bin, one file before several."""
    model, _ = fake_family.tensors()
    for form, num_shards in (("bin", 2), ("bin", 1), ("safetensors", 2), ("safetensors", 1)):
        files = fake_family.save(tmp_path, model, form, num_shards)
        assert {info.file for info in CheckpointSource(tmp_path).tensors().values()} == set(files)


def test_hub_cache_without_network(tmp_path, monkeypatch):
    """Files of a repository in the cache, all of one commit; transformers runs offline in tests."""
    commit = "0123456789012345678901234567890123456789"
    repository = tmp_path / "models--org--name"
    model, _ = make_source(repository / "snapshots" / commit, "bin", 2)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = CheckpointSource("org/name")
    assert source.commit_hash is None and source.read_json("config.json") == {"num_layers": 4}
    assert source.commit_hash == commit and source.file("nothing.txt") is None
    assert set(source.tensors()) == set(model)
    assert source.describe() == {"path_or_id": "org/name", "revision": None, "commit_hash": commit}


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 3, 20, 0.3, 0.7, 0.99])
def test_truncated(tmp_path, form, kept):
    make_source(tmp_path, form, 2)
    file = sorted(tmp_path.glob("*-00002-of-00002.*"))[0]
    content = file.read_bytes()
    file.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    message = error_of(tmp_path)
    assert message.startswith(f"{file} is truncated or damaged (") and message.endswith("): download it again")


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_missing_shard(tmp_path, form):
    make_source(tmp_path, form, 3)
    file = sorted(tmp_path.glob("*-00002-of-00003.*"))[0]
    file.unlink()
    message = error_of(tmp_path)
    assert message.startswith(f"{file.name} is missing, which {tmp_path}") and "index.json names" in message


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_with_code(tmp_path, form):
    evil = {"weight": torch.ones(2), "evil": Malicious(tmp_path / "executed")}
    file = tmp_path / "pytorch_model.bin"
    if form == "pickle":
        file.write_bytes(pickle.dumps({"evil": evil["evil"]}, protocol=2))
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=form == "zip")
    message = error_of(tmp_path)
    assert message.startswith(f"{file} refused: it holds `posix.mkdir` beside tensors")
    assert not (tmp_path / "executed").exists()
    # The same file does run code where that is not forbidden.
    torch.load(file, weights_only=False) if form != "pickle" else pickle.loads(file.read_bytes())
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, "`state_dict` is a dict, not a tensor"),
        ({"a": torch.ones(1), "step": 3}, "`step` is a int, not a tensor"),
        ([torch.ones(1)], "holds a list instead of a table of named tensors"),
        ({0: torch.ones(1)}, "holds a dict instead of a table of named tensors"),
        ({"a": torch.ones(3).to_sparse()}, "`a` is sparse or quantized"),
    ],
)
def test_values_that_are_no_tensors(tmp_path, content, says):
    file = tmp_path / "pytorch_model.bin"
    torch.save(content, file)
    message = error_of(tmp_path)
    assert message.startswith(str(file)) and says in message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_git_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9976576152\n")
    assert error_of(tmp_path) == (
        f"{tmp_path / name} is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder"
    )


def test_index_names_a_key_that_its_file_lacks(tmp_path):
    make_source(tmp_path, "bin", 2)
    path = tmp_path / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "pytorch_model-00002-of-00002.bin"
    path.write_text(json.dumps(index))
    assert f"pytorch_model-00002-of-00002.bin of {tmp_path} lacks lm_head.weight, which the index" in error_of(
        tmp_path
    )


def test_index_names_the_wrong_file(tmp_path):
    make_source(tmp_path, "bin", 2)
    path = tmp_path / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    where["points.0.weight"], where["points.1.weight"] = where["points.1.weight"], where["points.0.weight"]
    path.write_text(json.dumps(index))
    assert "lacks points." in error_of(tmp_path)


def test_key_in_two_files(tmp_path):
    model, _ = make_source(tmp_path, "bin", 2)
    file = tmp_path / "pytorch_model-00002-of-00002.bin"
    torch.save({**torch.load(file), "model.layers.0.inv_freq": model["model.layers.0.inv_freq"]}, file)
    message = error_of(tmp_path)
    assert message.startswith("`model.layers.0.inv_freq` is in pytorch_model-00001-of-00002.bin and in ")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{}", "\udcff"])
def test_broken_index(tmp_path, text):
    path = tmp_path / "pytorch_model.bin.index.json"
    path.write_text(text, errors="surrogateescape")
    message = error_of(tmp_path)
    assert message.startswith(str(path))


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/../../secret.bin"])
def test_index_may_not_name_files_elsewhere(tmp_path, name):
    torch.save({"a": torch.ones(1)}, tmp_path / "secret.bin")
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"{name} is missing" in error_of(folder)


def test_nothing_there(tmp_path):
    assert error_of(tmp_path).startswith(f"{tmp_path}: no weights found in that folder; looked for model.safetensors,")
    nowhere = tmp_path / "nowhere"
    assert error_of(nowhere).startswith(f"{quoted(str(nowhere))} does not exist: check the path")
    (tmp_path / "file.bin").touch()
    assert "is no folder" in error_of(tmp_path / "file.bin")
    assert "HF_HUB_OFFLINE is set, and the cache does not have it" in error_of("org/unknown")
    assert error_of("not an id!").startswith("There is no folder 'not an id!' here")
    assert "Repo id must use alphanumeric" in error_of("not/an id!")
