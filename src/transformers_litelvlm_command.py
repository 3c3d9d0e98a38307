"""
The command `litelvlm`: first the command line is read, then the package is imported.

It stands beside the package: to import a module of the package is to import torch and transformers, which register
classes and find quantization libraries. This takes seconds, which help, `--version` and a wrong option can do without;
and some of those libraries log what is wrong with themselves. Those messages, and no others, are kept from the
terminal here. The library itself leaves logging alone.
"""

import importlib.util
import logging
import runpy
import sys
from collections.abc import Callable


PACKAGE = "transformers_litelvlm"
AS_WORKER = "--as-worker"
# Logger and a part of the message: torchao and torch about one another, whatever is done with either.
FOREIGN_MESSAGES = (
    ("torchao", "Failed to load "),  # kernels for CUDA, with a build of torch that has none
    ("torchao", "Skipping import of cpp extensions due to incompatible torch version"),
    ("torch.utils._pytree", "is an Enum subclass and is now natively supported by torch.compile"),
)


class _Without(logging.Filter):
    """Lets everything through but one message."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message goes on."""
        return self.text not in record.getMessage()


def main() -> int:
    """Runs `litelvlm` with the arguments of the process and returns its exit code.

    After `AS_WORKER` stands a module of the package instead, which is run with the arguments after it: so the
    processes that the command starts are as quiet as the command.
    """
    if sys.argv[1:2] == [AS_WORKER]:
        _hide_foreign_messages()
        del sys.argv[:2]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return 0
    import_package = None if PACKAGE in sys.modules else _import_in_two_steps()
    from transformers_litelvlm.cli.main import main as run

    return run(before_the_work=import_package)


def _import_in_two_steps() -> Callable[[], None]:
    """Makes the package a module of which nothing has run, so that modules in it can be imported on their own.

    Python runs `__init__.py` of a package before any module in it, and ours has to register all classes. Names that
    are imported when they are asked for (PEP 562) would register nothing, unless the package knew who imports it; a
    help text that was written ahead of time would be a second one to keep true. So the package stays as it is, for
    everybody: it is this process that has importlib make the module first, and run it when the arguments were right.
    What the parsers are built from imports neither torch nor transformers; a test looks.

    Returns:
        The second step.
    """
    spec = importlib.util.find_spec(PACKAGE)
    package = sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)

    def run_package() -> None:
        _hide_foreign_messages()
        spec.loader.exec_module(package)

    return run_package


def _hide_foreign_messages() -> None:
    for logger, text in FOREIGN_MESSAGES:
        logging.getLogger(logger).addFilter(_Without(text))


if __name__ == "__main__":
    sys.exit(main())
