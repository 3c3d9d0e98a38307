"""Types of the options of a method: those that its dataclass declares."""

from __future__ import annotations

import functools
import types
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(cls: type, options: dict[str, Any]) -> None:
    """Compare the values of options with the annotations of the fields of `cls`.

    A list stands for a tuple, as JSON has no other, and an integer for a float.

    Raises:
        ValueError: for a value of another type; the message names the option, the value and the type.
    """
    for name, value in options.items():
        kind = _hints(cls).get(name, Any)
        if not _fits(value, kind):
            expected = kind.__name__ if isinstance(kind, type) else str(kind)
            raise ValueError(f"`method_options`: `{name}` must be of type {expected}, got {value!r:.80}.")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a third party's annotation that exists for type checkers alone
        return {}


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            return False
        items = parts if origin is tuple and parts[-1] is not Ellipsis else parts[:1] * len(value)
        return len(items) == len(value) and all(map(_fits, value, items))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    # What else a third party may declare is for its own class to check.
    return isinstance(value, kind) if isinstance(kind, type) else True
