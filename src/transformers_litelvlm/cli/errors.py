"""Errors of the command line: what is the user's to correct, in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager


class BadInputError(Exception):
    """What was asked cannot be done as it was asked. Exit code 2."""


@contextmanager
def bad_input(what: str = "", kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn errors of `kinds` inside the `with` block into [`BadInputError`], their message after `what`."""
    try:
        yield
    except BadInputError:
        raise
    except kinds as error:
        raise BadInputError(what + one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def positive_int(text: str) -> int:
    """Type of an argparse argument: 1, 2, 3, ..."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return value


def ratio(text: str) -> float:
    """Type of an argparse argument: a number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and at most 1, got {text!r}")
    return value
