"""Texts of other people in Markdown: they are shown as they are, and can neither end what they stand in nor run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2


def templates(folder: Path, **options: Any) -> jinja2.Environment:
    """The templates of a folder, with the filters `plain`, `code` and `fenced` for texts of other people."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), keep_trailing_newline=True, **options)
    environment.filters.update(plain=plain, code=code, fenced=fenced)
    return environment


def plain(value: Any) -> str:
    """In a sentence, a title or a cell of a table: no markup, no HTML, no link, no other cell."""
    text = re.sub(r"([\\`|])", r"\\\1", _one_line(value)).replace("](", "]\\(")
    return text.replace("<", "&lt;").replace(">", "&gt;")


def code(value: Any) -> str:
    """In backticks, more of them than stand in the text in a row. In a cell, `|` is to be escaped besides."""
    text = _one_line(value).replace("<!--", "<! --")  # in backticks, a mark of a card would still be found
    marks = "`" * (_most_backticks(text) + 1)
    return f"{marks} {text} {marks}" if "`" in text else f"{marks}{text}{marks}"


def fenced(value: Any, language: str = "") -> str:
    """A block of code of one line."""
    text = _one_line(value).replace("<!--", "<! --")
    marks = "`" * max(3, _most_backticks(text) + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def _one_line(value: Any) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def _most_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
