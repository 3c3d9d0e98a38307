"""`litelvlm convert`, with a family that exists only in the tests."""

import ast
import re
import shlex

import pytest

from tests.support.fake_family import assert_identical, expected, fake_conversion, make_source, written_tensors
from transformers_litelvlm.cli import convert as convert_module
from transformers_litelvlm.cli.main import build_parser, main
from transformers_litelvlm.conversion.families import RECIPES


@pytest.fixture(autouse=True)
def fake_family(monkeypatch):
    monkeypatch.setitem(RECIPES, "fake", fake_conversion)
    monkeypatch.setattr(convert_module, "FAMILIES", (*convert_module.FAMILIES, "fake"))


def error_of(capsys, *arguments) -> str:
    assert main(["convert", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("litelvlm: error: ") and captured.err.count("\n") == 1 and captured.out == ""
    return captured.err.removeprefix("litelvlm: error: ").strip()


def test_converts_and_says_how_to_load(tmp_path, capsys):
    values = make_source(tmp_path / "source")
    assert main(["convert", "fake", str(tmp_path / "source"), str(tmp_path / "out"), "--max-shard-size", "0.3KB"]) == 0
    out = capsys.readouterr().out
    assert_identical(written_tensors(tmp_path / "out"), expected(*values))
    assert len(list((tmp_path / "out").glob("model-*-of-00003.safetensors"))) == 3
    assert "12 tensors used, 1 dropped" in out and "missing: none" in out
    assert f'FakeForReferringSegmentation.from_pretrained("{tmp_path}/out", dtype="auto", pruning_preset=' in out
    command = out.splitlines()[-1].strip()
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert args.model == f"{tmp_path}/out" and args.preset == "balanced"


def test_the_printed_lines_load_from_a_name_with_spaces(tmp_path, capsys):
    make_source(tmp_path / "source")
    target = f'{tmp_path}/my "öwn" model'
    assert main(["convert", "fake", str(tmp_path / "source"), target]) == 0
    out = capsys.readouterr().out
    assert build_parser().parse_args(shlex.split(out.splitlines()[-1])[1:]).model == target
    assert ast.literal_eval(re.search(r"from_pretrained\((\".*\"), dtype", out)[1]) == target


def test_clip_and_dtype(tmp_path):
    values = make_source(tmp_path / "source")
    (tmp_path / "source" / "clip").rename(tmp_path / "other")
    arguments = ["convert", "fake", str(tmp_path / "source"), str(tmp_path / "out"), "--dtype", "float32"]
    assert main(arguments) == 2
    assert main([*arguments, "--clip", str(tmp_path / "other")]) == 0
    single = {name: value.float() if value.is_floating_point() else value for name, value in expected(*values).items()}
    assert_identical(written_tensors(tmp_path / "out"), single)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "out"
    assert "nowhere' does not exist" in error_of(capsys, "fake", tmp_path / "nowhere", target)
    make_source(source)
    file = source / "pytorch_model-00002-of-00002.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-9])
    assert error_of(capsys, "fake", source, target).startswith(f"{file} is truncated or damaged")
    file.unlink()
    assert error_of(capsys, "fake", source, target).startswith(f"{file.name} is missing")
    file.write_bytes(content)
    (source / "config.json").write_text('{"num_layers": 5}')
    assert "fills decoder.4.weight, decoder.4.bias" in error_of(capsys, "fake", source, target)
    for config, kind in (('{"num_layers": "many"}', "TypeError"), ("{}", "KeyError: 'num_layers'")):
        (source / "config.json").write_text(config)
        assert f"{source}, or its CLIP, cannot be read as fake: {kind}" in error_of(capsys, "fake", source, target)
    (source / "config.json").unlink()
    assert "has no config.json" in error_of(capsys, "fake", source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "is a link to nothing" in error_of(capsys, "fake", source, tmp_path / "link")
    assert "File name too long" in error_of(capsys, "fake", source, tmp_path / "a" / ("n" * 300))
    target.mkdir()
    (target / "mine").touch()
    assert "exists already" in error_of(capsys, "fake", source, target)
    assert sorted(path.name for path in target.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["flamingo", "a", "b"],
        ["fake", "a"],
        ["fake", "a", "b", "--dtype", "int4"],
        ["fake", "a", "b", "--max-shard-size", "big"],
        ["fake", "a", "b", "--max-shard-size", "0GB"],
        ["fake", "a", "b", "--max-shard-size", "-5GB"],
    ],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", *arguments])
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_examples_in_the_help_are_understood():
    examples = [line.strip() for line in convert_module.EPILOG.splitlines() if line.strip().startswith("litelvlm ")]
    assert len(examples) == 5
    for example in examples:
        build_parser().parse_args(shlex.split(example)[1:])
