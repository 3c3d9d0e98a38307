"""What a conversion writes, and that it writes nothing where it cannot."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from tests.support import fake_family, warm_python
from tests.support.fake_family import assert_identical, expected, fake_conversion, make_source, written_tensors
from transformers_litelvlm.conversion import staging
from transformers_litelvlm.conversion.convert import MustEqual, convert_checkpoint
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.source import CheckpointSource


def convert(source: Path, target: Path, **kwargs):
    return convert_checkpoint(fake_conversion(CheckpointSource(source)), target, progress=False, **kwargs)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("form", "num_shards"), [("bin", 3), ("bin", 1), ("legacy", 2), ("safetensors", 3), ("safetensors", 1)]
)
def test_every_bit_arrives(tmp_path, form, num_shards):
    values = make_source(tmp_path / "source", form, num_shards)
    convert(tmp_path / "source", tmp_path / "out")
    assert_identical(written_tensors(tmp_path / "out"), expected(*values))
    assert names_in(tmp_path) == ["out", "source"]
    assert names_in(tmp_path / "out") == ["config.json", "conversion_report.json", "model.safetensors", "tokenizer"]


def test_result_does_not_depend_on_how_the_source_is_stored(tmp_path):
    make_source(tmp_path / "a", "bin", 3)
    make_source(tmp_path / "b", "safetensors", 1)
    for name in "ab":
        convert(tmp_path / name, tmp_path / f"out_{name}")
    first, second = ((tmp_path / f"out_{name}" / "model.safetensors").read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_weights_that_are_not_finite_are_named(tmp_path, form, value):
    source = tmp_path / "source"
    model, _ = make_source(source, form, 1)
    model["model.layers.2.weight"][3, 1] = value
    [file] = fake_family.save(source, model, form)
    with pytest.raises(
        ConversionError, match=rf"{file}: `model\.layers\.2\.weight`: .* not finite in torch\.bfloat16"
    ):
        convert(source, tmp_path / "out")
    assert names_in(tmp_path) == ["source"]
    # What is not used does not matter.
    model["model.layers.2.weight"][3, 1] = 0
    model["model.layers.0.inv_freq"][1] = value
    fake_family.save(source, model, form)
    convert(source, tmp_path / "out")


def test_weights_that_a_dtype_makes_infinite(tmp_path):
    model, _ = make_source(tmp_path / "source", "bin", 1)
    model["model.layers.1.weight"][0, 0] = 1e6
    fake_family.save(tmp_path / "source", model, "bin")
    with pytest.raises(ConversionError, match="not finite in torch.float16: too large for that --dtype: use bfloat16"):
        convert(tmp_path / "source", tmp_path / "out", dtype="float16")
    convert(tmp_path / "source", tmp_path / "out", dtype="bfloat16")


def test_dtype_casts_floating_point_alone(tmp_path):
    values = make_source(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", dtype="float16")
    half = {name: value.half() if value.is_floating_point() else value for name, value in expected(*values).items()}
    assert_identical(written_tensors(tmp_path / "out"), half)
    assert report.dtypes == {"float16": 11, "int64": 1}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "torch.float16"
    with pytest.raises(ConversionError, match="`dtype` must be one of auto, .*, got 'int8'"):
        convert(tmp_path / "source", tmp_path / "out2", dtype="int8")


@pytest.mark.parametrize("size", [1, 200, 300])
def test_shards(tmp_path, size):
    values = make_source(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out", max_shard_size=size)
    result = written_tensors(tmp_path / "out")
    assert_identical(result, expected(*values))
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    count = len(files)
    assert count == {1: len(result), 200: 6, 300: 3}[size]
    assert [file.name for file in files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    assert report.files == [file.name for file in files]


def test_shards_are_those_of_transformers(tmp_path):
    """The same files with the same tensors, and the same index, as `save_pretrained` makes of this state dict."""
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

    class Model(PreTrainedModel):
        config_class = PreTrainedConfig

        def __init__(self, config, values):
            super().__init__(config)
            self.values = nn.ParameterDict(values)
            self.post_init()

    values = {f"p{index}": torch.randn(10, index + 1) for index in range(8)}
    Model(PreTrainedConfig(), values).save_pretrained(tmp_path / "theirs", max_shard_size=700)
    from transformers_litelvlm.conversion.weight_files import TensorInfo
    from transformers_litelvlm.conversion.writing import ShardedWriter

    (tmp_path / "ours").mkdir()
    infos = {f"values.{name}": TensorInfo(tuple(value.shape), value.dtype) for name, value in values.items()}
    with ShardedWriter(tmp_path / "ours", infos, 700) as writer:
        for name, value in values.items():
            writer.write(f"values.{name}", value)
        writer.finish()
    index = "model.safetensors.index.json"
    assert json.loads((tmp_path / "ours" / index).read_text()) == json.loads((tmp_path / "theirs" / index).read_text())
    assert_identical(written_tensors(tmp_path / "ours"), written_tensors(tmp_path / "theirs"))


def test_windows_has_other_system_calls(tmp_path, monkeypatch):
    """No `pwrite`, no folder is opened, and what was opened for reading is not synced."""
    opened = []

    def open_file(path, flags):
        assert Path(path).is_file() and flags & os.O_RDWR
        opened.append(Path(path).name)
        return os.open(path, flags)

    monkeypatch.delattr(os, "pwrite")
    monkeypatch.setattr(staging, "os", SimpleNamespace(**{**vars(os), "name": "nt", "open": open_file}))
    values = make_source(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    assert_identical(written_tensors(tmp_path / "out"), expected(*values))
    assert {"model.safetensors", "config.json"} <= set(opened)


def test_tensors_are_aligned_to_their_width(tmp_path):
    """Readers that map the file need it; the first tensor here has 70 bytes, and four-byte numbers follow."""
    make_source(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"} and len(header) == 12
    for entry in header.values():
        width = {"I64": 8, "F32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
        assert entry["data_offsets"][0] % width == 0


def test_dtype_that_safetensors_lacks(tmp_path):
    make_source(tmp_path / "source", "bin", 1)
    file = tmp_path / "source" / "pytorch_model.bin"
    values = torch.load(file)
    values["head.gaussian"] = values["head.gaussian"].to(torch.float8_e4m3fnuz)
    torch.save(values, file)
    with pytest.raises(
        ConversionError, match="^first.position has the dtype torch.float8_e4m3fnuz, which safetensors"
    ):
        convert(tmp_path / "source", tmp_path / "out")
    assert names_in(tmp_path) == ["source"]
    convert(tmp_path / "source", tmp_path / "out", dtype="float32")
    assert torch.equal(written_tensors(tmp_path / "out")["first.position"], values["head.gaussian"].float())


def test_report(tmp_path):
    make_source(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert stored == report.as_dict()
    assert stored["mapped"]["model"]["points.1.weight"] == "points.weight" and len(stored["mapped"]["model"]) == 12
    assert stored["dropped"] == {
        "model": {"computed when the model is built": ["model.layers.0.inv_freq"]},
        "clip": {"not used": ["logit_scale"]},
    }
    assert stored["tied"] == fake_family.TIED and stored["missing"] == []
    assert stored["sources"]["model"]["path_or_id"] == str(tmp_path / "source")
    assert stored["total_size"] == sum(value.nbytes for value in written_tensors(tmp_path / "out").values())
    summary = report.summary()
    assert "12 tensors used, 1 dropped\n  1 dropped: computed when the model is built\n" in summary
    assert "missing: none\n" in summary and "(2 bfloat16, 8 float32, 1 float16, 1 int64)" in summary


def test_tensors_that_must_be_equal(tmp_path):
    make_source(tmp_path / "source")
    model, clip = fake_family.tensors(seed=1)
    fake_family.save(tmp_path / "other", clip, "bin")
    conversion = fake_conversion(CheckpointSource(tmp_path / "source"), str(tmp_path / "other"))
    own = fake_conversion(CheckpointSource(tmp_path / "source"))
    part = type(own.parts[1])("own", own.parts[1].source, [fake_family.Drop(".*", "to compare with")])
    pair = MustEqual(("clip", "vision_model.weight"), ("own", "vision_model.weight"), "wrong --clip")
    both = {**vars(conversion), "parts": [*conversion.parts, part], "must_equal": [pair]}
    with pytest.raises(ConversionError, match=f"vision_model.weight of {tmp_path}/other and .* differ: wrong --clip"):
        convert_checkpoint(type(own)(**both), tmp_path / "out", progress=False)
    assert names_in(tmp_path) == ["other", "source"]
    # The same weights rounded to bfloat16 are the same weights.
    rounded = {**fake_family.tensors()[1]}
    rounded["vision_model.weight"] = rounded["vision_model.weight"].bfloat16()
    fake_family.save(tmp_path / "other", rounded, "bin")
    both["parts"][0:2] = fake_conversion(CheckpointSource(tmp_path / "source"), str(tmp_path / "other")).parts
    convert_checkpoint(type(own)(**both), tmp_path / "out", progress=False)
    assert written_tensors(tmp_path / "out")["tower.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_existing_target_is_left_alone(tmp_path, kind):
    make_source(tmp_path / "source")
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    mine = target / "mine.txt" if kind == "folder" else target
    mine.write_text("mine")
    # The source is broken: nothing of it may be read before the target is looked at.
    (tmp_path / "source" / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match="out exists already: remove it"):
        convert(tmp_path / "source", target)
    assert mine.read_text() == "mine" and names_in(tmp_path) == ["out", "source"]


def test_empty_target_and_missing_parents(tmp_path):
    values = make_source(tmp_path / "source")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "source", tmp_path / "out")
    convert(tmp_path / "source", tmp_path / "a" / "b" / "c")
    for folder in (tmp_path / "out", tmp_path / "a" / "b" / "c"):
        assert_identical(written_tensors(folder), expected(*values))


@pytest.mark.parametrize("what", ["the current folder", "a mount point"])
def test_an_empty_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch, what):
    """The shell would stand in a folder that is gone; and the last step of hours would fail."""
    make_source(tmp_path / "source")
    (tmp_path / "out").mkdir()
    if what == "a mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
        target = tmp_path / "out"
    else:
        monkeypatch.chdir(tmp_path / "out")
        target = "."
    with pytest.raises(ConversionError, match=f"is {what}, which cannot be replaced: give a folder in it"):
        convert(tmp_path / "source", target)
    assert names_in(tmp_path) == ["out", "source"] and names_in(tmp_path / "out") == []


def test_leftovers_of_a_killed_run_are_replaced(tmp_path):
    values = make_source(tmp_path / "source")
    stale = tmp_path / ".out.converting"
    (stale / "rest").mkdir(parents=True)
    (stale / "model-00001-of-00009.safetensors").write_bytes(b"half")
    (tmp_path / ".out.converting.lock").touch()
    convert(tmp_path / "source", tmp_path / "out")
    assert_identical(written_tensors(tmp_path / "out"), expected(*values))
    assert names_in(tmp_path) == ["out", "source"]


def test_two_at_once(tmp_path):
    make_source(tmp_path / "source")
    (tmp_path / ".out.converting").mkdir()
    (tmp_path / ".out.converting" / "theirs").touch()
    with FileLock(tmp_path / ".out.converting.lock"):
        with pytest.raises(ConversionError, match="out is being written by another conversion"):
            convert(tmp_path / "source", tmp_path / "out")
    assert names_in(tmp_path / ".out.converting") == ["theirs"]


def test_many_at_once_make_one(tmp_path):
    """Of several converters that start together, one wins; the others say why they do not."""
    values = make_source(tmp_path / "source", num_layers=200)
    barrier, results = threading.Barrier(4), []

    def attempt():
        conversion = fake_conversion(CheckpointSource(tmp_path / "source"))
        barrier.wait()
        try:
            results.append(convert_checkpoint(conversion, tmp_path / "out", progress=False))
        except ConversionError as error:
            results.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    errors = [result for result in results if isinstance(result, str)]
    assert len(errors) == 3 and all("another conversion" in error or "exists already" in error for error in errors)
    assert_identical(written_tensors(tmp_path / "out"), expected(*values))
    assert names_in(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_an_error(tmp_path, error):
    make_source(tmp_path / "source")
    conversion = fake_conversion(CheckpointSource(tmp_path / "source"))

    def write_rest(folder, dtype):
        (folder / "config.json").write_text("{}")
        assert names_in(folder.parent) == ["model.safetensors", "rest"]
        raise error

    with pytest.raises(error):
        convert_checkpoint(type(conversion)(**{**vars(conversion), "write_rest": write_rest}), tmp_path / "out")
    assert names_in(tmp_path) == ["source"]


SCRIPT = """
import resource, sys, time
from tests.support.fake_family import fake_conversion
from transformers_litelvlm.conversion.convert import convert_checkpoint
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.source import CheckpointSource

conversion = fake_conversion(CheckpointSource(sys.argv[1]))
if sys.argv[3:] == ["wait"]:  # after the weights: a fast machine is not done before the signal comes
    conversion = type(conversion)(**{**vars(conversion), "write_rest": lambda *_: time.sleep(60)})
elif len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    convert_checkpoint(conversion, sys.argv[2])
except ConversionError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.slow
def test_file_size_limit(tmp_path):
    """The real error of the operating system while weights are written."""
    work = tmp_path / "work"
    make_source(work / "source", num_layers=400)
    (tmp_path / "script.py").write_text(SCRIPT)
    [run] = warm_python.run([tmp_path / "script.py", work / "source", work / "out", 20_000])
    assert run.stdout == (
        f"model.safetensors cannot be written for {work}/out: File too large; nothing is left of this"
        " conversion, so make room or choose another target\n"
    )
    assert names_in(work) == ["source"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("this user may not mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_disk_fills_up(tmp_path, small_disk, monkeypatch):
    make_source(tmp_path / "source", num_layers=4000)
    with pytest.raises(ConversionError, match="disk has 2.* kB free, but the weights need .* kB: make room"):
        convert(tmp_path / "source", small_disk / "out")
    assert names_in(small_disk) == []
    # As if somebody else had filled it meanwhile.
    monkeypatch.setattr("transformers_litelvlm.conversion.convert._check_space", lambda *_: None)
    with pytest.raises(ConversionError, match="^model.safetensors cannot be written for .*: No space left on device"):
        convert(tmp_path / "source", small_disk / "out")
    assert names_in(small_disk) == []


def test_disk_fills_up_with_the_tokenizer(tmp_path, small_disk):
    """The weights fit, the tokenizer does not: a library in Rust writes it, whose errors are no `OSError`."""
    from tokenizers import Tokenizer, models

    make_source(tmp_path / "source")
    conversion = fake_conversion(CheckpointSource(tmp_path / "source"))
    tokenizer = Tokenizer(models.WordLevel({f"word{index}": index for index in range(20_000)}, "word0"))

    def write_rest(folder, dtype):
        tokenizer.save(str(folder / "tokenizer.json"))

    full = type(conversion)(**{**vars(conversion), "write_rest": write_rest})
    with pytest.raises(ConversionError, match="^the processor or config cannot be written for .*: No space left"):
        convert_checkpoint(full, small_disk / "out", progress=False)
    assert names_in(small_disk) == []


@pytest.mark.slow
def test_control_c(tmp_path):
    work = tmp_path / "work"
    make_source(work / "source", num_layers=4000)
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [tmp_path / "script.py", work / "source", work / "out", "wait"]
    process = warm_python.start(words, (tmp_path / "stdout", tmp_path / "stderr"))
    while not (work / ".out.converting" / "model.safetensors").exists():
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == -signal.SIGINT or process.exitcode == 1
    assert names_in(work) == ["source"]
