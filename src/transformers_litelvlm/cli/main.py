"""Entry point of the command `litelvlm`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from transformers_litelvlm.cli import (
    analyze,
    benchmark,
    calibrate,
    card,
    convert,
    demo,
    env,
    evaluate,
    gpu_report,
    methods,
    plot,
    segment,
    serve,
)
from transformers_litelvlm.cli.errors import BadInputError, bad_input, is_of_stdout, prepare_streams, report_failure
from transformers_litelvlm.utils.messages import did_you_mean
from transformers_litelvlm.version import __version__


# Each has HELP, DESCRIPTION and EPILOG, `add_arguments` and `run`; the name of the module is that of the sub-command,
# with `_` for `-`. With CHECKPOINT, the argument of that name is looked up before torch and transformers are imported.
SUBCOMMANDS = (
    segment,
    demo,
    serve,
    evaluate,
    analyze,
    calibrate,
    benchmark,
    gpu_report,
    plot,
    convert,
    card,
    methods,
    env,
)

DESCRIPTION = "Pixel grounding with a fraction of the visual tokens, chosen by the sentence that is grounded."
EPILOG = """\
examples:
  litelvlm segment scene.png "the red circle left of the blue square"
  litelvlm segment scene.png "the red circle" "the star" --preset fast --compare
  litelvlm demo
  litelvlm serve --port 8000
  litelvlm evaluate --output-dir results --max-images 100
  litelvlm plot results/results.json --output quality.png
  litelvlm analyze --output-dir analysis --max-images 100
  litelvlm benchmark grounding-1b --budgets 192 64
  litelvlm gpu-report --output-dir gpu
  litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg
  litelvlm calibrate --output-dir calibration --model ./glamm-refseg --write
  litelvlm card ./glamm-refseg --results results/results.json
  litelvlm methods
  litelvlm env

scene.png stands for an image of yours.

exit codes: 0 done, 1 a fault of ours (or --check found one), 2 usage, input or machine, 130 interrupted.
LITELVLM_DEBUG=1 in the environment shows the traceback of every error.
"""


class _Parser(argparse.ArgumentParser):
    """Say what is wrong in one line; the usage, which hides it in a long text, is left to --help."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; what a sub-command does not know is its own error, since its help has the options."""
        parsed = super().parse_known_args(args, namespace)
        if parsed[1]:
            near = did_you_mean(parsed[1], re.findall(r"(?<!\S)--[\w-]+", self.format_help()))
            self.error(f"unrecognized arguments: {' '.join(parsed[1])}.{near}".removesuffix("."))
        return parsed

    def error(self, message: str) -> NoReturn:
        where = "litelvlm methods" if re.search(r"--methods?\b(?!-)", message) else f"{self.prog} --help"
        self.exit(2, f"litelvlm: error: {message} (see: {where})\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(prog="litelvlm", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="sub-commands", metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        options = subparsers.add_parser(name, help=module.HELP, description=module.DESCRIPTION, epilog=module.EPILOG)
        module.add_arguments(options)
        options.set_defaults(func=module.run, checked=getattr(module, "CHECKPOINT", None))
    return parser


def main(argv: Sequence[str] | None = None, before_the_work: Callable[[], None] | None = None) -> int:
    """Run `litelvlm` and return its exit code; `before_the_work` is called once the arguments are known to be
    right."""
    prepare_streams()
    try:
        args = _parse(argv)
        if args.checked is not None:
            _check_checkpoint(args.checked, getattr(args, args.checked))
        if before_the_work is not None:
            before_the_work()
        args.func(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("litelvlm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if is_of_stdout(error):
            if isinstance(error, BrokenPipeError):
                return 0  # the reader (`| head`) has what it wanted
            error = BadInputError(f"standard output cannot be written: {error.strerror}")
        return report_failure(error)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        args = build_parser().parse_args(argv)
    finally:
        sys.stdout.flush()  # of --help: an error in writing it is told as any other
    args.arguments = list(sys.argv[1:] if argv is None else argv)
    return args


def _check_checkpoint(argument: str, source: str | None) -> None:
    """Whether there is such a folder, or can be such a repository; `None` is the bundled checkpoint."""
    from transformers_litelvlm.utils.hub_names import check_source

    if source is not None:
        with bad_input("" if argument == "source" else f"--{argument}: "):
            check_source(source)


if __name__ == "__main__":
    sys.exit(main())
