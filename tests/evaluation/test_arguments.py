"""The command line is the dataclass, and a sweep is what the options say."""

import argparse
import dataclasses
import re

import pytest

from transformers_litelvlm.cli import benchmark
from transformers_litelvlm.cli.main import main
from transformers_litelvlm.evaluation.arguments import (
    QUANTIZATIONS,
    EvaluationArguments,
    add_arguments,
    as_command_line,
    from_namespace,
)
from transformers_litelvlm.evaluation.measuring import choose_sentences
from transformers_litelvlm.evaluation.runs import parse_method, plan_runs
from transformers_litelvlm.models import quantization as models_quantization


def parsed(*words: str) -> EvaluationArguments:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_namespace(parser.parse_args(words), EvaluationArguments)


def test_at_most_fifteen_options():
    assert len(dataclasses.fields(EvaluationArguments)) <= 15


def test_quantizations_are_those_of_the_models():
    assert QUANTIZATIONS == benchmark.QUANTIZATIONS == models_quantization.QUANTIZATIONS


def test_defaults_of_the_command_line_are_those_of_the_class():
    assert parsed("--output-dir", "x") == EvaluationArguments(output_dir="x")


def test_command_line_and_back():
    args = EvaluationArguments(
        output_dir="x", methods=["none", "litelvlm:context_share=0.5"], budgets=[48, 0.25], seeds=[3], max_images=7
    )
    assert parsed(*as_command_line(args)) == args
    assert parsed("--import", "a.py", "--output-dir", "x", "--import", "b").imports == ["a.py", "b"]
    odd = dataclasses.replace(args, imports=["-odd name.py", "b"])
    assert parsed(*as_command_line(odd)) == odd
    assert [type(budget) for budget in parsed("--output-dir", "x", "--budgets", "1", "0.5").budgets] == [int, float]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int2"}, "`quantization` must be one of none, int8, int4, got 'int2'"),
        ({"protocol": "lisa"}, "`protocol` must be one of all, glamm, annotators, got 'lisa'"),
        ({"budgets": [0]}, "`budgets` must be .* got 0"),
        ({"budgets": [1.5]}, "`budgets` must be .* got 1.5"),
        ({"budgets": [8, 8]}, "without repetition"),
        ({"seeds": []}, "`seeds`"),
        ({"seeds": [-1]}, "`seeds` must be .*-1"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        ({"methods": []}, "`methods` is empty"),
        ({"imports": "low_norm.py"}, "`imports` must be a list"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationArguments(output_dir="x", **options)


def test_only_what_is_random_is_repeated():
    args = EvaluationArguments(
        output_dir="x", methods=["none", "litelvlm", "random", "random:seed=5"], budgets=[8, 0.5], seeds=[0, 1]
    )
    assert [run.run_id for run in plan_runs(args)] == [
        "none", "litelvlm@8", "litelvlm@0.5", "random@8#0", "random@8#1", "random@0.5#0", "random@0.5#1",
        "random:seed=5@8", "random:seed=5@0.5",
    ]  # fmt: skip
    glamm = plan_runs(dataclasses.replace(args, protocol="glamm", methods=["none", "litelvlm"], budgets=[8]))
    assert [run.run_id for run in glamm] == ["none#0", "none#1", "litelvlm@8#0", "litelvlm@8#1"]


def test_method_strings():
    assert parse_method("litelvlm:context_share=0.5,ranking=forward,token_order=raster") == (
        "litelvlm",
        {"context_share": 0.5, "ranking": "forward"},
        {"token_order": "raster"},
    )
    with pytest.raises(ValueError, match="NAME:KEY=VALUE"):
        parse_method("litelvlm:fast")
    for name, message in (("litelvm", "Known methods: .*litelvlm"), ("litelvlm:share=1", "Its options: ")):
        with pytest.raises(ValueError, match=message):
            plan_runs(EvaluationArguments(output_dir="x", methods=[name]))


def test_draws_belong_to_seed_and_image():
    sentences, templates = tuple("abcdefg"), [f"template {number}" for number in range(16)]

    def draw(seed, index, entries=sentences):
        return choose_sentences(entries, "glamm", templates, seed, index)

    assert draw(0, 5) == draw(0, 5)
    draws = [draw(seed, index) for seed in range(20) for index in range(20)]
    assert all(len(set(chosen)) == 3 for chosen, _ in draws)
    assert {text for chosen, _ in draws for text in chosen} == set(sentences)
    assert {text for _, questions in draws for text in questions} == set(templates)
    assert len({str(item) for item in draws}) > 390  # of 400: neither the seed nor the image is left aside
    assert sorted(draw(0, 0, ("a", "b"))[0]) == ["a", "b"]
    assert choose_sentences(sentences, "all", templates, None, 5) == (list(sentences), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "0"], "`budgets` must be"),
        (["--dataset", "refcoc"], "`name` must be one of .*refcoco"),
        (["--split", "testC"], "`split` of refshapes must be one of train, validation, test, got 'testC'"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--methods", "tome", "--budgets", "8"], "nothing to run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words, message, tmp_path, capsys):
    assert main(["evaluate", "--output-dir", str(tmp_path / "results"), "--max-images", "1", *words]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("litelvlm: error: ") and re.search(message, last)
    assert not (tmp_path / "results").exists()
