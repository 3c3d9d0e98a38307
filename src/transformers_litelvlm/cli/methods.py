"""`litelvlm methods`: the pruning methods and presets that this installation knows."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from typing import Any


def register(subparsers: Any) -> None:
    """Adds the sub-command."""
    parser = subparsers.add_parser(
        "methods",
        help="list the pruning methods, their options and the presets",
        description="List the pruning methods that are registered, with their options and defaults, and the presets.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> None:
    """Prints the methods and presets."""
    methods, presets = describe_methods(), describe_presets()
    if args.json:
        print(json.dumps({"methods": methods, "presets": presets}, indent=2))
        return
    rows = [["NAME", "NEEDS TEXT", "SOURCE", "WHAT IT DOES"]]
    for method in methods:
        rows.append([method["name"], "yes" if method["needs_text"] else "no", method["source"], method["what"]])
    print(_table(rows))
    print("\nOPTIONS (--method-option NAME=VALUE, or `pruning_method_options` in Python), with defaults")
    for method in methods:
        options = ", ".join(f"{name}={json.dumps(default)}" for name, default in method["options"].items())
        print(f"  {method['name']}: {options or 'none'}")
    print("\nPRESETS (--preset NAME)")
    for name, changes in presets.items():
        given = (f"{key}={_short(value)}" for key, value in changes.items() if value is not None)
        print(f"  {name}: {', '.join(given)}")


def describe_methods() -> list[dict[str, Any]]:
    """What the registry holds: name, needs_text, what, source, official choices, options with defaults."""
    from transformers_litelvlm.pruning import get_pruner, list_pruners

    described = []
    for name in list_pruners():
        pruner = get_pruner(name)
        what = (inspect.getdoc(pruner) or "").split("\n\n")[0].partition(". ")[0]
        described.append(
            {
                "name": name,
                "needs_text": pruner.needs_text,
                "what": " ".join(what.split()).rstrip("."),
                "source": pruner.source,
                "token_order": pruner.official_token_order,
                "position_ids": pruner.official_position_ids,
                "options": {field.name: _default(field) for field in dataclasses.fields(pruner)},
            }
        )
    return described


def describe_presets() -> dict[str, dict[str, Any]]:
    """The presets that every configuration starts with; a checkpoint may bring its own."""
    from transformers_litelvlm.configuration_pruning import PruningConfig

    return PruningConfig().presets or {}


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
