"""What a calibration tries, and which of two settings is the simpler one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers_litelvlm.calibration.arguments import AS_SET, BASELINE, PUBLISHED
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.evaluation.runs import parse_method, sized
from transformers_litelvlm.models.settings import PruningSettings
from transformers_litelvlm.pruning.layers import LayerPruner
from transformers_litelvlm.pruning.registry import build_pruner


SIMPLICITY = (
    "what the checkpoint is set to: nothing changes",
    "methods before the language model, before those inside it, which compute on all tokens first",
    "methods that do not read the sentence: their tokens can be kept for other sentences about the image",
    "fewer options that are set",
    "fewer changes of the layout",
    "the order in which candidates are named",
)


@dataclass(frozen=True)
class Candidate:
    """A setting without its budget.

    Args:
        name: as in the option `methods` of an evaluation.
        method: registered name.
        options: that are set.
        layout: `token_order` and `position_ids`, if they are not the checkpoint's.
        simplicity: compares as less than that of a candidate that is less simple; see `SIMPLICITY`.
    """

    name: str
    method: str
    options: dict[str, Any]
    layout: dict[str, str]
    simplicity: tuple[int, ...]

    def preset(self, base: PruningConfig, size: int | float) -> dict[str, Any]:
        """The changes of `base` that make this setting at a budget, or ratio: a preset for a checkpoint."""
        own = {name: value for name in ("token_order", "position_ids") if (value := getattr(base, name)) is not None}
        return {
            "method": self.method,
            "method_options": self.options,
            "then": None,
            **sized(size),
            **own,
            **self.layout,
        }


def list_candidates(methods: Sequence[str], layouts: Sequence[str], config: Any) -> list[Candidate]:
    """Every method in every layout, settings that are the same only once; the baseline is none of them.

    Args:
        methods: as in an evaluation. A method that says its layout itself is tried in that one only.
        layouts: of `LAYOUTS`.
        config: of the model.

    Raises:
        ValueError: unknown method or option, or the method `none`.
    """
    named = [(text, layout) for text in methods for layout in layouts]
    candidates, seen = [], []
    for place, (text, name_of_layout) in enumerate([*named, (PUBLISHED, AS_SET)]):
        method, options, layout = parse_method(text)
        pruner = build_pruner(method, **options)
        if method == "none":
            raise ValueError("`methods` names 'none', which prunes nothing: it is measured on the test split anyway.")
        if not layout and name_of_layout != AS_SET:
            layout = dict(zip(("token_order", "position_ids"), name_of_layout.split("+"), strict=True))
        settings = _settings(config, method, options, layout)
        if text == BASELINE or (method, settings) in seen:
            continue
        seen.append((method, settings))
        simplicity = (
            settings != _settings(config, config.pruning_config.method, config.pruning_config.method_options, {}),
            isinstance(pruner, LayerPruner),
            pruner.needs_text,
            len(options),
            len(layout),
            place,
        )
        candidates.append(Candidate(_name(method, options, layout), method, options, layout, simplicity))
    return candidates


def _settings(config: Any, method: str, options: dict[str, Any], layout: dict[str, str]) -> Any:
    """What decides which tokens stay, at a budget, and where: equal for equal settings."""
    pruning = config.pruning_config.replace(method=method, method_options=options, then=None, **layout)
    try:
        settings = PruningSettings.of(config, pruning.replace(budget=1))
    except ValueError:  # not for this model, which the runs of this candidate will say
        return method, options, layout
    order = settings.in_raster_order or settings.pruner.official_token_order == "raster"
    return settings.pruner, order, settings.keeps_positions


def _name(method: str, options: dict[str, Any], layout: dict[str, str]) -> str:
    """As `parse_method` reads it."""
    words = [f"{key}={_value(value)}" for key, value in options.items()]
    words += [f"{key}={value}" for key, value in layout.items()]
    return method + (":" + ",".join(words) if words else "")


def _value(value: Any) -> str:
    """JSON, or the text itself where it is none."""
    text = json.dumps(value)
    return value if isinstance(value, str) and parse_method(f"x:y={value}")[1] == {"y": value} else text
