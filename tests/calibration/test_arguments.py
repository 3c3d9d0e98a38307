"""Options of a calibration: those of an evaluation, and what is refused."""

import argparse

import pytest

from transformers_litelvlm.calibration.arguments import CalibrationArguments
from transformers_litelvlm.evaluation.arguments import add_arguments, as_command_line, from_namespace


def parse(*words: str) -> CalibrationArguments:
    parser = argparse.ArgumentParser()
    add_arguments(parser, CalibrationArguments)
    return from_namespace(parser.parse_args(["--output-dir", "x", *words]), CalibrationArguments)


def test_the_presets_are_ninths_by_default():
    args = parse()
    assert args == CalibrationArguments(output_dir="x") and args.split == "validation" and args.write is False
    assert args.levels == {"fast": 1 / 9, "balanced": 2 / 9, "accurate": 1 / 3}


def test_what_is_parsed_is_what_was_written():
    args = parse("--budgets", "16", "32", "48", "--write", "--smallest-difference", "0.05", "--layouts", "checkpoint")
    assert args.levels == {"fast": 16, "balanced": 32, "accurate": 48} and args.write
    assert parse(*as_command_line(args)[2:]) == args


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"budgets": [16, 32]}, "`budgets` must be three"),
        ({"budgets": [32, 16, 48]}, "from the smallest"),
        ({"budgets": [16, 32, 0.5]}, "three integers or three fractions"),
        ({"test_split": "validation"}, "`test_split` is `split`, 'validation'"),
        ({"confidence": 1.0}, "`confidence` must be a number between 0 and 1, got 1.0"),
        ({"layouts": ["raster"]}, "`layouts` must be one or more of checkpoint, raster"),
        ({"first_images": 0}, "`first_images` must be an integer of at least 1, got 0"),
        ({"sampling_seed": -1}, "`sampling_seed` must be"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CalibrationArguments(output_dir="x", **changes)
