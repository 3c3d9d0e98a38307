"""
The command `litelvlm`, up to the import of the package.

It stands beside the package: to import a module of the package is to import transformers, and that imports the
quantization libraries it finds. This takes seconds, which `litelvlm --version` can do without; and some of them log
what is wrong with themselves. Those messages, and no others, are kept from the terminal here. The library itself
leaves logging alone.
"""

import importlib.metadata
import logging
import sys


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
    """Runs `litelvlm` with the arguments of the process and returns its exit code."""
    if sys.argv[1:] == ["--version"]:
        if sys.stdout is not None:  # closed
            sys.stdout.write(f"litelvlm {importlib.metadata.version('transformers-litelvlm')}\n")
        return 0
    for logger, text in FOREIGN_MESSAGES:
        logging.getLogger(logger).addFilter(_Without(text))
    from transformers_litelvlm.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
