"""Reading pickles of plain data without running what is in them."""

from __future__ import annotations

import os
import pickle
from typing import Any


class RefusedPickleError(pickle.UnpicklingError, ValueError):
    """A pickle that asks for more than plain data."""


class _PlainUnpickler(pickle.Unpickler):
    """Build dicts, lists, tuples, sets, strings and numbers; anything else needs a class or function, by name."""

    def find_class(self, module: str, name: str) -> Any:
        raise RefusedPickleError(f"it asks for `{module}.{name}`")


def load_plain_pickle(path: str | os.PathLike) -> Any:
    """Unpickle lists, dicts, strings and numbers, and nothing else; a file that Python 2 wrote is read too.

    An ordinary pickle can run any program when it is loaded. Every way to do so starts with looking up a class or a
    function by name, which is refused here before anything is called.

    Raises:
        RefusedPickleError: the file asks for a class or a function; names it.
        ValueError: the file is damaged.
    """
    # Python 2 stored text as bytes. Latin-1 can read any, so it comes second.
    for encoding in ("utf-8", "latin1"):
        try:
            with open(path, "rb") as stream:
                value = _PlainUnpickler(stream, encoding=encoding).load()
                if stream.read(1):
                    raise ValueError("something follows its end")
                return value
        except UnicodeDecodeError:
            continue
        except RefusedPickleError as error:
            raise RefusedPickleError(
                f"{path} was refused: {error}, so loading it would run a program. A file of references holds plain"
                " lists, dicts, strings and numbers; get it from its official source."
            ) from None
        except Exception as error:  # a damaged pickle can fail in any way
            raise ValueError(f"{path} is not a readable pickle: {type(error).__name__}: {error}") from error
    raise ValueError(f"{path} is not a readable pickle: its text is neither UTF-8 nor Latin-1.")
