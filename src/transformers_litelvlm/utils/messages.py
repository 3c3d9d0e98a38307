"""How values look in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


_LONGEST = 80
SAID: set[str] = set()  # keys of [`is_first`]
_MOST_SAID = 1000  # a key may hold what clients of a server send


def shortened(text: str) -> str:
    """At most 80 characters: of a longer text its beginning and its end, where a path has the name of its file."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:40]}...{text[43 - _LONGEST :]}"


def quoted(value: Any) -> str:
    """`repr(value)` in at most 80 characters, whatever the length of a text."""
    if isinstance(value, str) and len(value) > _LONGEST:
        value = shortened(value)
    return shortened(repr(value))


def is_first(key: str) -> bool:
    """Whether this process asks for the first time; for warnings that name a case, but are meant for all of them.
    After 1000 different keys, none is new."""
    is_new = key not in SAID and len(SAID) < _MOST_SAID
    if is_new:
        SAID.add(key)
    return is_new


def did_you_mean(names: Iterable[str], known: Iterable[str]) -> str:
    """`" Did you mean 'budget'?"`, with the known name that is nearest to each; empty if none is near."""
    known = list(known)
    near = [match for name in names for match in difflib.get_close_matches(name, known, 1, cutoff=0.8)]
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""
