"""What tests with random input share: how many inputs, how long each may take, and what the figures of a run are."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st


# How many times as many inputs as usual; `LITELVLM_FUZZ=20 make test-all PYTEST_ARGS=tests/fuzzing` runs long.
FACTOR = float(os.environ.get("LITELVLM_FUZZ", "1"))
SLOWEST = 2.0  # seconds of one call, of this process: other processes do not count

# By what was called: how many calls, and the seconds of the slowest.
CALLS: dict[str, tuple[int, float]] = {}


def examples(number: int) -> Any:
    """Decorator: so many inputs, times the factor of this run."""
    return settings(max_examples=max(1, round(number * FACTOR)))


@contextmanager
def quick(name: str) -> Iterator[None]:
    """Fail if what is inside takes too long."""
    start = time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - start
        count, worst = CALLS.get(name, (0, 0.0))
        CALLS[name] = count + 1, max(worst, seconds)
    assert seconds < SLOWEST, f"{name} took {seconds:.1f} s"


def peak_memory() -> int:
    """Of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- random values --------------------------------------------------------------------------------------------------

# Line breaks, ends of texts, halves of surrogate pairs, marks of Markdown and HTML, tokens of tokenizers.
PIECES = ["\n", "\r\n", "\x00", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u200b", "\u202e", "\ufeff", "\ud800", "\udcff"]
PIECES += ["<!--", "-->", "<script>alert(1)</script>", "`", "```", "|", "](", "<image>", "<IMAGE>", "</s>", "<s>"]
PIECES += ["[SEG]", "<|image_pad|>", "<|im_end|>", "<|endoftext|>", "{expression}", "{{ 7 * 7 }}", "{% raw %}", "---"]
PIECES += ["../", "%s", "İ", "ß", "e\u0301", "🦊", "a" * 5000, " ", "\t", "\\"]

texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(st.characters(), max_size=8)), max_size=6).map("".join)
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 10**9]),
    st.floats(),
    st.sampled_from([0.5, 1.0, 1e9, -1e300]),
)
# What JSON can hold.
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def places_in(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path to every part of a value made of lists and dicts, but the whole."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places_in(part, (*path, key))


@st.composite
def changed(draw: Any, value: Any, most: int = 2) -> Any:
    """A copy of a value made of lists and dicts, in which some parts are removed, doubled or replaced."""
    value = _copy(value)
    for _ in range(draw(st.integers(1, most))):
        places = list(places_in(value))
        if not places:
            return value
        *path, key = draw(st.sampled_from(places))
        owner = value
        for step in path:
            owner = owner[step]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if kind == "remove":
            del owner[key]
        elif kind == "double":
            owner[key] = [owner[key], _copy(owner[key])]
        else:
            owner[key] = draw(json_values)
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, list) else value


_WORDS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff", b"\x40\x1f\x00\x00")


@st.composite
def mutated(draw: Any, content: bytes, most: int = 6) -> bytes:
    """A copy of some bytes, in which some are set, removed, doubled, inserted or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(0, most))):
        # Headers are at the beginning, and more interesting than pixels.
        last = draw(st.sampled_from([min(64, len(result)), len(result)]))
        place, length = draw(st.integers(0, max(last, 1) - 1)), draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["set", "set", "flip", "word", "remove", "double", "insert", "cut"]))
        if kind == "set":
            result[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "flip" and place < len(result):
            result[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "word":
            result[place : place + 4] = draw(st.sampled_from(_WORDS))
        elif kind == "remove":
            del result[place : place + length]
        elif kind == "double":
            result[place:place] = result[place : place + length]
        elif kind == "insert":
            result[place:place] = draw(st.binary(min_size=1, max_size=16))
        else:
            del result[place:]
    return bytes(result)
