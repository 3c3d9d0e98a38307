"""Dependencies that not everybody needs, the extras of setup.cfg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(name: str, what: str) -> Iterator[None]:
    """For imports inside the `with` block: if one fails, says which extra to install, and `what` needs it.

    Raises:
        ImportError: a module is missing.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{what} needs {error.name or error}, which is not installed: "
            f'`pip install "transformers-litelvlm[{name}]"`.'  # some shells take brackets for a pattern
        ) from error
