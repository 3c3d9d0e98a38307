"""Errors of the command line: what is the user's to correct, in one line; what is ours, with how to report it."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from transformers_litelvlm.utils.files import check_output


# The machine's or the installation's, wherever they come from.
_OF_THE_MACHINE = (OSError, ImportError, MemoryError)

# What a message says to Python, as an option.
_OF_PYTHON = re.compile(r"`method_options=\{'(\w+)': (.*?)\}`")

HOW_TO_REPORT = (
    "This is a fault of litelvlm, not of what you gave it. Please report it: an issue in the repository of"
    " transformers_litelvlm, with the lines above, the command, and what `litelvlm env` prints."
)


class BadInputError(Exception):
    """What was asked cannot be done as it was asked. Exit code 2."""


HOW_TO_REPORT_THEIRS = (
    "This is a fault of a pruning method that is not part of litelvlm, from {provider}. Please report it there, with"
    " the lines above."
)


@contextmanager
def bad_input(what: str = "") -> Iterator[None]:
    """Turn errors inside the `with` block into [`BadInputError`], the message after `what`.

    With `what`, it is somebody's files that are read, which make libraries raise all kinds: every error is theirs.
    Without, a `ValueError` is, and what the machine cannot do. Any other is a fault of ours.
    """
    try:
        yield
    except BadInputError:
        raise
    except Exception as error:
        if not what and not isinstance(error, ValueError) and not is_of_the_machine(error):
            raise
        is_explained = isinstance(error, (ValueError, *_OF_THE_MACHINE))
        reason = _OF_PYTHON.sub(r"`--method-option '\1=\2'`", one_line(error))
        raise BadInputError(what + ("" if is_explained else f"{type(error).__name__}: ") + reason) from error


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the machine is to blame: files, memory, packages that are not installed."""
    # By name and text: torch's are RuntimeErrors, and importing torch takes seconds.
    return (
        isinstance(error, _OF_THE_MACHINE)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def report_failure(error: Exception) -> int:
    """Print an error, and what to do about it; the exit code."""
    is_bad_input = isinstance(error, BadInputError) or is_of_the_machine(error)
    provider = None
    if not is_bad_input:
        from transformers_litelvlm.pruning.registry import provider_at_fault

        provider = provider_at_fault(error)
    if not is_bad_input or os.environ.get("LITELVLM_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"litelvlm: error: {one_line(error)}", file=sys.stderr)
    if provider is not None:
        print(HOW_TO_REPORT_THEIRS.format(provider=provider), file=sys.stderr)
    elif not is_bad_input:
        print(HOW_TO_REPORT, file=sys.stderr)
    return 1 if provider is None and not is_bad_input else 2


def prepare_streams() -> None:
    """Streams that were closed swallow what is written; characters that a stream does not have are escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for the rest of the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_of_stdout(error: Exception) -> TypeGuard[OSError]:
    """Whether standard output could not be written; what is left in its buffer is dropped then."""
    # An error of a file has its name.
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EPIPE)
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in numbers:
        return False
    # Python would complain when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def checked_output(option: str, folder: str, names: Sequence[str] = ()) -> str:
    """The folder, if files of these names can be written into it."""
    try:
        check_output(folder, names)
    except ValueError as error:
        raise BadInputError(f"{option}: {error}") from error
    return folder


def checked_device(name: str | None) -> Any:
    """The torch device of that name; by default CUDA if there is one."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadInputError(f"--device {name}: there is no CUDA in this machine or this build of torch; use cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda" and device.index:
            torch.cuda.set_device(device)  # events, and what waits for a device, are of the current one
    except Exception as error:
        raise BadInputError(f"--device {name}: torch cannot use it here; try cpu") from error
    return device


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
