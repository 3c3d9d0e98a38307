"""`litelvlm benchmark`: its options reach the benchmark, and what is wrong is one line."""

import json
import os
import re
import signal
import sys

import pytest
import torch

from transformers_litelvlm.benchmark import grid
from transformers_litelvlm.benchmark.presets import PRESETS
from transformers_litelvlm.cli import benchmark
from transformers_litelvlm.cli.main import main


QUICK = ["--runs", "1", "--warmup", "0", "--without", "decode", "memory"]


def test_presets_are_listed(capsys):
    assert main(["benchmark", "--list-presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(len(line) < 140 for line in lines)


def test_table_progress_and_files(capsys, tmp_path):
    folder = tmp_path / "results"
    arguments = ["benchmark", "tiny", "--budgets", "16", "--output-dir", str(folder), *QUICK]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "## End to end" in printed.out and "16 of 64" in printed.out and "Selector" in printed.out
    assert "building tiny in float32" in printed.err and "end to end" in printed.err
    # 1 + 1 counted, which are done, 1 + 1 timed, and of the stages 1 + 1 counted and 1 + 1 timed.
    expected = r"expected duration from now on: about \d+ s \(an estimate: 6 more runs of the model, and one takes "
    assert re.search(expected, printed.err) and "/8 [" in printed.err and "expected" not in printed.out
    assert json.loads((folder / "benchmark.json").read_text())["points"][0]["budget"] == 16


@pytest.mark.parametrize("by_timeout", [False, True])
def test_what_was_measured_before_ctrl_c_is_not_lost(capsys, tmp_path, monkeypatch, by_timeout):
    def stop(self, runs):
        if by_timeout:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("nobody heard it")
        raise KeyboardInterrupt

    folder = tmp_path / "results"
    arguments = ["benchmark", "tiny", "--budgets", "16", "3", "--output-dir", str(folder), *QUICK, "stages"]
    monkeypatch.setattr(benchmark._Bar, "reached", stop)
    assert main(arguments) == 130
    printed = capsys.readouterr()
    assert "litelvlm, 16 of 64 tokens, batch 1, 1 sentence, float32: " in printed.err
    assert "**Stopped before the end**" in printed.out and "| litelvlm | 16 of 64 |" in printed.out
    assert printed.err.endswith("litelvlm: interrupted\n")
    found = json.loads((folder / "benchmark.json").read_text())
    assert [point["budget"] for point in found["points"]] == [16] and found["is_complete"] is False
    monkeypatch.setattr(benchmark._Bar, "expects", lambda self, *numbers: stop(self, 0))
    assert main([*arguments, "--json"]) == 130 and capsys.readouterr().out == ""  # before the first point


@pytest.mark.slow
def test_json_of_all_methods(capsys):
    assert main(["benchmark", "tiny", "--methods", "all", "--budgets", "16", "--json", *QUICK, "stages"]) == 0
    result = json.loads(capsys.readouterr().out)
    from transformers_litelvlm.pruning import list_pruners

    measured = {point["method"] for point in result["points"]}
    skipped = {point["method"]: point["reason"] for point in result["skipped"]}
    assert measured | set(skipped) == set(list_pruners()) - {"none"}
    assert set(skipped) <= {"sparsevlm"}, skipped  # its budgets are those of its authors' table


def test_a_checkpoint_with_its_processor(capsys, tiny_checkpoint, picture):
    arguments = ["benchmark", "--checkpoint", tiny_checkpoint, "--image", picture, "--budgets", "5", "--json", *QUICK]
    assert main([*arguments, "--expressions", "the red circle", "the star", "--sentences", "1", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(p["sentences"], p["num_visual_tokens"]) for p in result["points"]] == [(1, 16), (2, 16)]
    assert "against_one_by_one" in result["points"][1] and result["model"] == tiny_checkpoint
    assert main([*arguments, "--expressions", "the star", "--sentences", "3"]) == 2
    assert "3 sentences are asked for, but only 1" in capsys.readouterr().err


def test_quantizations(capsys, monkeypatch):
    pytest.importorskip("torchao")
    arguments = ["benchmark", "tiny", "--budgets", "16", "--json", *QUICK, "stages", "--quantization", "none", "int8"]
    assert main(arguments) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["quantization"] for point in points] == ["none", "int8"]
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "litelvlm: error: `quantization` 'int8' on cpu needs torchao.quantization, which is not installed: "
        '`pip install "transformers-litelvlm[quantization]"`.'
    )


@pytest.mark.parametrize("speedup, code", [(1.2, None), (0.9, 1)])
def test_check(monkeypatch, capsys, speedup, code):
    original = grid.run_benchmark

    def with_speedup(*args, **kwargs):
        result = original(*args, **kwargs)
        result["points"][0]["end_to_end"]["speedup"] = speedup
        return result

    monkeypatch.setattr(grid, "run_benchmark", with_speedup)
    arguments = ["benchmark", "tiny", "--budgets", "16", "--check", *QUICK, "stages"]
    if code is None:
        assert main(arguments) == 0
    else:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == code and "slower than unpruned at 1 point" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["glam"], "Unknown preset 'glam'. Known presets: tiny, grounding-1b"),
        (["--engine", "vllm", "--budgets", "5"], "`--engine vllm` needs `--checkpoint`"),
        (["--engine", "vllm", "--checkpoint", "."], "`--engine vllm` needs `--checkpoint`"),
        (["tiny", "--budgets", "64"], "`budgets` [64] leave nothing to prune"),
        (["tiny", "--methods", "fastest"], "Unknown pruning `method` 'fastest'"),
        (["--checkpoint", "/nowhere"], "checkpoint '/nowhere' cannot be read"),
        # What would be measured of something else than it says.
        (["tiny", "--image", "photo.jpg"], "--image needs --checkpoint"),
        (["--expressions", "the dog"], "--expressions needs --checkpoint"),
        (["tiny", "--checkpoint", "/nowhere"], "the preset 'tiny' or --checkpoint, not both"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 2
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1] and err[-1].startswith("litelvlm: error: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(capsys):
    assert main(["benchmark", "tiny", "--device", "cuda"]) == 2
    assert "there is no CUDA in this machine" in capsys.readouterr().err
