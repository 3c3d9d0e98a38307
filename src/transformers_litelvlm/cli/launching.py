"""Sub-commands that work on all devices of this machine: in this process, or in several of their own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers_litelvlm.cli.errors import HOW_TO_REPORT, BadInputError, bad_input, positive_int
from transformers_litelvlm.evaluation.arguments import DataArguments, Options, add_arguments, as_command_line


def add_launched(parser: argparse.ArgumentParser, kind: type[DataArguments]) -> None:
    """Add the options of a kind, and `--processes`."""
    add_arguments(parser, kind)
    parser.add_argument(
        "--processes",
        metavar="N",
        type=positive_int,
        help="processes on this machine (default: one per GPU, else one)",
    )


def launch(module: str, options: Options, work: Callable[[Options, str], None], args: argparse.Namespace) -> None:
    """Do the work of a sub-command, in this process or by running a module with `-m` in each of several.

    Args:
        work: does it in this process, given the options and what was typed.
        args: what was parsed, with the options of [`add_launched`].
    """
    from transformers_litelvlm.evaluation.__main__ import CODE_VARIABLE
    from transformers_litelvlm.evaluation.provenance import COMMAND_VARIABLE, typed_command

    typed = typed_command("litelvlm", args.arguments)
    processes = args.processes
    if processes is None:
        import torch

        processes = max(1, torch.cuda.device_count())
    if processes == 1:
        with bad_input():
            work(options, typed)
        return
    # Not `accelerate launch`: on CPUs without MPI it starts a single process, whatever it is asked for.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    worker = ["-m", "transformers_litelvlm_command", "--as-worker", module]  # without messages of other libraries
    command = [sys.executable, *launcher, *worker, *as_command_line(options)]
    with tempfile.TemporaryDirectory() as folder:
        code_file = Path(folder, "code")  # torchrun itself ends with 1, whatever its processes end with
        environment = {**os.environ, COMMAND_VARIABLE: typed, CODE_VARIABLE: str(code_file)}
        if subprocess.run(command, env=environment).returncode == 0:
            return
        if code_file.exists():
            raise BadInputError("the " + module.rpartition(".")[2] + " was not done; its own message is above")
    print(HOW_TO_REPORT, file=sys.stderr)
    sys.exit(1)
