"""How values look in messages."""

from __future__ import annotations

from typing import Any


_LONGEST = 80


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
