"""`litelvlm methods`: the pruning methods and presets that this installation knows."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from typing import Any

from transformers_litelvlm.cli.errors import BadInputError, bad_input, positive_int
from transformers_litelvlm.cli.models import import_given
from transformers_litelvlm.evaluation.arguments import add_imports
from transformers_litelvlm.utils.files import to_json


HELP = "list the pruning methods, their options and the presets"
DESCRIPTION = "List the pruning methods that are registered, with their options and defaults, and the presets."
DEFAULT_MODEL = "LLaVA 1.5 7B"
EPILOG = """\
PROVIDED BY says where a method comes from: this package (bundled), an installed one (its name and version, by an entry
point "litelvlm.pruners"), or --import. docs/add_a_method.md says how to write one.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--budget",
        type=positive_int,
        metavar="K",
        help="also print how many visual tokens each method leaves at this budget, with its default options, how many "
        "the language model's layers compute on in the mean, and what they cost; or why it cannot",
    )
    parser.add_argument(
        "--visual-tokens",
        type=positive_int,
        metavar="N",
        help="visual tokens of an image, for --budget with a --model if they depend on the image's size",
    )
    parser.add_argument(
        "--text-tokens",
        type=positive_int,
        default=64,
        metavar="T",
        help="text tokens of the prompt whose cost --budget prints (default: 64)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="folder or Hub id whose config.json says how many visual tokens and layers there are, for --budget "
        f"(default: {DEFAULT_MODEL}, 576 tokens)",
    )
    add_imports(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> None:
    """Print the methods and presets."""
    from transformers_litelvlm.configuration_pruning import PruningConfig

    if args.budget is None and (args.model or args.visual_tokens):
        raise BadInputError("--model and --visual-tokens are for --budget K: what the methods keep at a budget")
    import_given(args)
    # The presets that every configuration starts with; a checkpoint may bring its own.
    methods, broken, presets = describe_methods(), describe_broken(), PruningConfig().presets
    sizes = None
    if args.budget is not None:
        config = _read_config(args.model)
        sizes = sizes_of(config)
        if args.visual_tokens is not None:
            sizes["num_tokens"] = args.visual_tokens
        if "num_tokens" not in sizes:
            raise BadInputError(
                f"--model {args.model}: the number of visual tokens depends on the image. Say it with --visual-tokens."
            )
        for method in methods:
            counts = tokens_per_layer(method["name"], args.budget, sizes, config)
            method["at_budget"] = describe_counts(counts, config.get_text_config(), args.text_tokens, sizes)
    if args.json:
        sized = {} if sizes is None else {"budget": args.budget, "text_tokens": args.text_tokens, "sizes": sizes}
        print(to_json({"methods": methods, "broken": broken, "presets": presets, **sized}, indent=2))
        return
    rows = [["NAME", "PROVIDED BY", "NEEDS GUIDANCE", "SOURCE", "WHAT IT DOES"]]
    for method in methods:
        needs_text = "yes" if method["needs_text"] else "no"
        rows.append([method["name"], method["provided_by"], needs_text, method["source"], method["what"]])
    print(_table(rows))
    if broken:
        print("\nBROKEN (entry points of installed packages that give no method)")
    for entry in broken:
        print(f"  {entry['entry_point']} of {entry['distribution']}: {entry['reason']}")
    if sizes is not None:
        print(
            f"\nAT BUDGET {args.budget} of {sizes['num_tokens']} visual tokens of {args.model or DEFAULT_MODEL}, "
            f"{sizes['num_layers']} language model layers, {sizes['num_tower_layers']} vision tower layers. "
            f"PREFILL: the former, with {args.text_tokens} text tokens, and its share of unpruned"
        )
        print(_table([["NAME", "RETAINED", "PER LAYER", "PREFILL"], *(_counted(method) for method in methods)]))
        for method in methods:
            if "unreachable" in method["at_budget"]:
                print(f"{method['name']}: not reachable: {method['at_budget']['unreachable']}")
    print("\nOPTIONS (--method-option NAME=VALUE, or `pruning_method_options` in Python), with defaults")
    for method in methods:
        options = ", ".join(f"{name}={json.dumps(default)}" for name, default in method["options"].items())
        print(f"  {method['name']}: {options or 'none'}")
    print("\nPRESETS (--preset NAME; those that a checkpoint has itself come before these)")
    for name, changes in presets.items():
        given = (f"{key}={_short(value)}" for key, value in changes.items() if value is not None)
        print(f"  {name}: {', '.join(given)}")


def describe_methods() -> list[dict[str, Any]]:
    """What the registry holds: name, who provides it, what it does, its options with defaults, ..."""
    from transformers_litelvlm.pruning import get_pruner, list_pruners
    from transformers_litelvlm.pruning.registry import provider_of

    described = []
    for name in list_pruners():
        pruner = get_pruner(name)
        what = (inspect.getdoc(pruner) or "").split("\n\n")[0].partition(". ")[0]
        described.append(
            {
                "name": name,
                "provided_by": provider_of(name),
                "needs_text": pruner.needs_text,
                "what": " ".join(what.split()).rstrip("."),
                "source": pruner.source,
                "token_order": pruner.official_token_order,
                "position_ids": pruner.official_position_ids,
                "options": {field.name: _default(field) for field in dataclasses.fields(pruner)},
            }
        )
    return described


def describe_broken() -> list[dict[str, str]]:
    """Entry points of installed packages that give no method: entry_point, distribution, reason."""
    from transformers_litelvlm.pruning.registry import broken_entry_points

    return [
        {"entry_point": entry.name, "distribution": entry.distribution, "reason": entry.reason}
        for entry in broken_entry_points()
    ]


def _read_config(model: str | None) -> Any:
    from transformers import AutoConfig

    from transformers_litelvlm.models.llava_lite.configuration_llava_lite import LlavaLiteConfig
    from transformers_litelvlm.utils.hub_names import check_source

    with bad_input(f"--model {model}: "):
        if model is not None:
            check_source(model)
        config = LlavaLiteConfig() if model is None else AutoConfig.from_pretrained(model)
        if getattr(config, "pruning_config", None) is None:
            raise ValueError(f"its config.json is of a {config.model_type!r}, which does not prune.")
    return config


def sizes_of(config: Any) -> dict[str, int]:
    """Visual tokens of an image, if all have as many, layers of the language model, and layers of the tower that
    make the features."""
    sizes = {
        "num_tokens": config.num_visual_tokens,
        "num_layers": config.get_text_config().num_hidden_layers,
        "num_tower_layers": config.num_tower_layers,
    }
    return {name: size for name, size in sizes.items() if size is not None}


def tokens_per_layer(name: str, budget: int, sizes: dict[str, int], config: Any) -> list[int] | str | None:
    """Visual tokens that each layer computes on; `None` if the image decides, or why the method is not defined for
    the model, or the budget out of reach."""
    from transformers_litelvlm.configuration_pruning import PruningConfig
    from transformers_litelvlm.pruning import build_pruner, get_pruner, resolve_budget

    if get_pruner(name).needs_class_token and not config.has_class_token:
        return "not defined for this model, whose vision tower has no class token."
    try:
        config.check_pruning(PruningConfig(method=name))
        return build_pruner(name).tokens_per_layer(budget=resolve_budget(sizes["num_tokens"], budget), **sizes)
    except ValueError as error:
        return str(error)


def describe_counts(
    counts: list[int] | str | None, text_config: Any, text_tokens: int, sizes: dict[str, int]
) -> dict[str, Any]:
    """What [`tokens_per_layer`] says, for a prompt with one image.

    Returns:
        `retained` after the last point at which a method prunes; `per_layer`, the mean over the layers;
        `prefill_flops` of the layers, and `prefill_ratio`, that relative to the unpruned model. All `None` if the
        image decides; `unreachable` says why the method cannot keep so many.
    """
    from transformers_litelvlm.models.decoder.flops import prefill_flops

    nothing = dict.fromkeys(("retained", "per_layer", "prefill_flops", "prefill_ratio"))
    if not isinstance(counts, list):
        return nothing if counts is None else {**nothing, "unreachable": counts}
    flops, unpruned = (
        prefill_flops(text_config, [text_tokens + count for count in visual])
        for visual in (counts, [sizes["num_tokens"]] * len(counts))
    )
    return {
        "retained": counts[-1],
        "per_layer": sum(counts) / len(counts),
        "prefill_flops": flops,
        "prefill_ratio": flops / unpruned,
    }


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _counted(method: dict[str, Any]) -> list[str]:
    counts = method["at_budget"]
    if counts["retained"] is None:
        return [method["name"], "not reachable" if "unreachable" in counts else "the image decides"]
    cost = f"{counts['prefill_flops'] / 1e12:.3g} TFLOPs, {counts['prefill_ratio']:.1%}"
    return [method["name"], str(counts["retained"]), _short(counts["per_layer"]), cost]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: list[list[str]]) -> str:
    rows = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
